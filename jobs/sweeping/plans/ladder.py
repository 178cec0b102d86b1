"""Scaling laws: a ladder of sizes on more and more samples, sizes at equal budgets, and the rates that sizes want.

Losses are of pixels scaled by the archive's statistics, never by each patch's own, so that all runs are asked the same.
Every run has a schedule of its own length; D counts samples seen, of which `passes` says how often each came.
"""

from dataclasses import dataclass

from jobs.recipes import load_recipe
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.family import rate, shape
from jobs.sweeping.plan import Plan
from jobs.sweeping.settings import Setting
from pipeline.archive import Archive

CAVEATS = (
    "D counts samples seen; where passes exceed 1 the same samples came again, which helps less than new ones.",
    "N counts the backbone's parameters, without stems, decoder and heads.",
)


@dataclass(frozen=True)
class Family:
    """What all runs of a family share."""

    recipe: str = "mae_tiny"
    """A pretrain recipe with a transformer."""
    seeds: int = 2
    batch_size: int = 16
    """Samples a step; small, so that short runs have steps enough."""
    base_rate: float = 2e-3
    """Peak learning rate of size 2."""
    rate_exponent: float = 1.0
    """The rate goes as width^-exponent; see rate_transfer."""

    def settings(self, size: int, learning_rate: float | None = None) -> tuple[Setting, ...]:
        chosen = rate(self.base_rate, size, self.rate_exponent) if learning_rate is None else learning_rate
        common: list[Setting] = [
            ("train.batch_size", self.batch_size),
            ("train.lanes", 1),
            ("train.optimiser.learning_rate", chosen),
        ]
        if getattr(load_recipe("pretrain", self.recipe), "normalise_patches", False):
            common.append(("normalise_patches", False))
        return (*shape(self.recipe, size), *common)

    def cell(self, size: int, budget: Budget, seed: int, learning_rate: float | None = None) -> Cell:
        return Cell(f"size {size}", self.recipe, self.settings(size, learning_rate), seed, budget)


@dataclass(frozen=True)
class LadderOptions(Family):
    """L(N, D) of a family: every size on every number of samples."""

    sizes: tuple[int, ...] = (1, 2, 3, 4)
    samples: tuple[int, ...] = (2048, 4096, 8192, 16384)
    budgets: tuple[float, ...] = ()
    """Operations that the law is asked what to spend on; none: those of the largest run, and ten times as many."""


@dataclass(frozen=True)
class IsoflopOptions(Family):
    """The best size of each budget, read off runs that spend the same."""

    sizes: tuple[int, ...] = (1, 2, 3, 4, 6)
    teraflops: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Budgets, 10^12 operations each."""


@dataclass(frozen=True)
class RateOptions(Family):
    """Several learning rates for each size on the same samples: does a rule carry one size's best rate to the others?"""

    sizes: tuple[int, ...] = (1, 2, 4, 6)
    rates: tuple[float, ...] = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016)
    samples: int = 4096


def ladder(options: LadderOptions, archive: Archive) -> Plan:
    cells = tuple(
        options.cell(size, Budget(samples=samples), seed)
        for samples in options.samples
        for size in options.sizes
        for seed in range(options.seeds)
    )
    question = f"How does the held-out loss of {options.recipe} fall with parameters N and samples D?"
    return Plan("ladder", question, cells, "law", caveats=CAVEATS, budgets=options.budgets)


def isoflop(options: IsoflopOptions, archive: Archive) -> Plan:
    cells = tuple(
        options.cell(size, Budget(flops=teraflops * 1e12), seed)
        for teraflops in options.teraflops
        for size in options.sizes
        for seed in range(options.seeds)
    )
    return Plan(
        "isoflop", f"Which size of {options.recipe} is best for a given number of operations?", cells, "isoflop", caveats=CAVEATS
    )


def rate_transfer(options: RateOptions, archive: Archive) -> Plan:
    cells = tuple(
        options.cell(size, Budget(samples=options.samples), seed, learning_rate)
        for size in options.sizes
        for learning_rate in options.rates
        for seed in range(options.seeds)
    )
    return Plan("rate_transfer", f"How does the best learning rate of {options.recipe} go with its width?", cells, "rates")


PLANS = {"ladder": (LadderOptions, ladder), "isoflop": (IsoflopOptions, isoflop), "rate_transfer": (RateOptions, rate_transfer)}
