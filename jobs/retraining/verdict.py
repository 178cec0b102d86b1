"""Whether a challenger becomes champion: better on the target, worse on nothing, each beyond the 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """is_suspect: the challenger was worse, so that what it was trained on is not to be trusted."""

    is_promoted: bool
    is_suspect: bool
    reason: str


def verdict_of(lines: Sequence[dict[str, Any]], target: str) -> Verdict:
    """Judge comparisons as `compare` makes them.

    Worse: an interval that lies below 0 as a whole. Better: one of the target's lies above 0. An interval that is not known (NaN)
    is neither. One comparison in forty is called worse by chance, and as many better.
    """
    worse = [line for line in lines if line["high"] < 0]
    if worse:
        return Verdict(False, True, f"worse on {'; '.join(map(_said, worse))}")
    of_target = [line for line in lines if line["task"] == target]
    better = [line for line in of_target if line["low"] > 0]
    if not better:
        return Verdict(False, False, f"not better on the target, {'; '.join(map(_said, of_target)) or target}")
    return Verdict(True, False, f"better on {'; '.join(map(_said, better))}; worse on none of {len(lines)} comparisons")


def _said(line: dict[str, Any]) -> str:
    scores = f"{line['metric']} {line['champion']:.3f} to {line['challenger']:.3f}"
    gain = f"{line['gain']:+.3f}, 95 %: {line['low']:+.3f} … {line['high']:+.3f}"
    return f"{line['task']} ({line['sensors']}, {line['protocol']}): {scores}, {gain}"
