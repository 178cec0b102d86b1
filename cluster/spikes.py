"""Which steps are not taken: those whose loss or gradient is not finite, or far above what it was of late.

One bad batch, an overflow on one rank, would otherwise stand in Adam's moments for hundreds of steps. The rule is that of
OLMo-core's optimiser that skips steps (Groeneveld et al. 2024, arXiv 2402.00838): a number of standard deviations above the
mean of the last steps, here of the same sensors, whose losses have levels of their own.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from pipeline.errors import RunFailed

WINDOW = 128
"""Steps that are remembered of each set of sensors; with fewer than half of them nothing is too high."""
MAX_IN_A_ROW = 5
"""So many steps in a row that are not finite are no accident."""
SMALLEST_SPREAD = 0.01
"""Of the mean: where steps hardly differ, this stands for their standard deviation."""


@dataclass
class Spikes:
    """Judges steps; `limit` in standard deviations, 0: only steps that are not finite are left out."""

    limit: float
    recent: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    in_a_row: int = 0

    def judge(self, kind: str, loss: float, norm: float) -> str | None:
        """Return why the step of sensors `kind` should not be taken, or None. Remember it.

        loss and norm, the gradient's, are those of the whole step: the same on every rank, so the verdict is, too.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.in_a_row += 1
            return f"loss {loss:g} and gradient norm {norm:g}, expected finite numbers"
        self.in_a_row = 0
        recent = self.recent.setdefault(kind, deque(maxlen=WINDOW))
        found = self._too_high(recent, loss, norm) if self.limit and len(recent) >= WINDOW // 2 else None
        recent.append((loss, norm))
        return found

    def _too_high(self, recent: deque[tuple[float, float]], loss: float, norm: float) -> str | None:
        for name, value, before in zip(("loss", "gradient norm"), (loss, norm), zip(*recent)):
            mean = fmean(before)
            above = (value - mean) / max(pstdev(before), SMALLEST_SPREAD * abs(mean))
            if above > self.limit:
                return f"{name} {value:.4g} is {above:.1f} standard deviations above the {mean:.4g} of the last {len(before)} steps"
        return None

    def require_progress(self, step: int) -> None:
        """Raise RunFailed after too many steps in a row that were not finite; on every rank or on none."""
        if self.in_a_row >= MAX_IN_A_ROW:
            raise RunFailed(
                f"step {step + 1}: loss or gradient is not finite, {MAX_IN_A_ROW} steps in a row; lower the learning rate, "
                f"lengthen the warm-up or clip harder, and begin in a new folder"
            )

    def state(self) -> dict[str, Any]:
        return {"recent": {kind: list(values) for kind, values in self.recent.items()}, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        self.recent = {kind: deque(values, maxlen=WINDOW) for kind, values in state["recent"].items()}
        self.in_a_row = state["in_a_row"]
