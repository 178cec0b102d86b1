"""A planted law is found again, with intervals that hold it; runs that cannot tell are refused; budgets are spent best."""

import numpy as np
import pytest

from jobs.scaling.budget import SampleCost, best_size, valleys
from jobs.scaling.evidence import NotIdentifiable, extrapolation, fit_law
from jobs.scaling.joint import fit_joint
from jobs.scaling.law import Law, Runs, projected_fit, robust_fit
from pipeline.errors import InputError

PLANTED = Law(0.35, 40.0, 0.35, 300.0, 0.45)
SIZES, DATA, SEEDS = np.geomspace(2e5, 2e7, 4), np.geomspace(3e3, 3e5, 4), 2


def planted(noise: float, rng: np.random.Generator, sizes: np.ndarray = SIZES, data: np.ndarray = DATA) -> Runs:
    """Return a grid of runs whose losses are the planted ones times noise."""
    parameters, samples, _ = (x.ravel() for x in np.meshgrid(sizes, data, np.arange(SEEDS)))
    return Runs(parameters, samples, PLANTED.loss(parameters, samples) * np.exp(rng.normal(0, noise, parameters.shape)))


@pytest.mark.parametrize("fit", [robust_fit, projected_fit])
def test_without_noise_the_law_is_found_to_the_digit(fit) -> None:
    found = fit(planted(0.0, np.random.default_rng(0)))
    assert found.size_exponent == pytest.approx(0.35, rel=1e-2)
    assert found.data_exponent == pytest.approx(0.45, rel=1e-2)
    assert found.floor == pytest.approx(0.35, rel=2e-2)
    assert found.loss(1e9, 1e7) == pytest.approx(PLANTED.loss(1e9, 1e7), rel=1e-2)


def test_one_run_that_went_wrong_moves_the_robust_fit_less() -> None:
    runs = planted(0.0, np.random.default_rng(0))
    runs.loss[5] *= 1.5
    errors = [abs(fit(runs).data_exponent - 0.45) for fit in (robust_fit, projected_fit)]
    assert errors[0] < 0.005 < errors[1]


def test_intervals_hold_the_planted_exponents_in_90_of_100_sweeps() -> None:
    rng, held = np.random.default_rng(1), np.zeros(2)
    for sweep in range(100):
        intervals = fit_law(planted(0.01, rng), num_draws=40, seed=sweep).intervals()
        for number, (name, true) in enumerate((("size_exponent", 0.35), ("data_exponent", 0.45))):
            held[number] += intervals[name][0] <= true <= intervals[name][1]
    assert held.min() >= 90


def test_the_largest_runs_are_forecast() -> None:
    forecasts = extrapolation(planted(0.005, np.random.default_rng(2)), num_held=4, num_draws=30)
    assert len(forecasts) == 4
    assert all(one["parameters"] * one["samples"] >= SIZES[-2] * DATA[-2] for one in forecasts)
    assert max(abs(one["error"]) for one in forecasts) < 0.05
    assert all(one["low"] < one["forecast"] < one["high"] for one in forecasts)


def test_runs_that_cannot_tell_are_refused_in_words() -> None:
    rng = np.random.default_rng(0)
    grid = planted(0.01, rng)
    ladder = grid[np.isin(grid.parameters * 0 + np.searchsorted(SIZES, grid.parameters), np.searchsorted(DATA, grid.samples))]
    diagonal = np.flatnonzero(np.searchsorted(SIZES, ladder.parameters) == np.searchsorted(DATA, ladder.samples))
    with pytest.raises(NotIdentifiable, match=r"grow together \(correlation of logarithms 1.00\)"):
        fit_law(ladder[diagonal])
    with pytest.raises(NotIdentifiable, match="2 values of parameters over a factor of 4"):
        fit_law(planted(0.01, rng, sizes=SIZES[[0, 0, 1, 1]] * 0 + np.array([1e6, 1e6, 4e6, 4e6])))
    with pytest.raises(NotIdentifiable, match="they are 6, expected at least 8"):
        fit_law(grid[np.array([0, 3, 9, 18, 23, 30])])
    level = Runs(grid.parameters, grid.samples, 0.5 + 300 * grid.samples**-0.45 * np.exp(rng.normal(0, 0.01, len(grid))))
    with pytest.raises(NotIdentifiable, match=r"size changes the loss by|exponent of size"):
        fit_law(level, num_draws=30)
    with pytest.raises(NotIdentifiable, match="leave out runs that failed"):
        fit_law(Runs(grid.parameters, grid.samples, np.where(grid.samples > 1e5, np.nan, grid.loss)))


def test_exponents_that_losses_share_are_found_or_refused() -> None:
    """Two losses of one grid, on scales of their own; where residuals are larger than what size changes there is no law."""

    def two(noise: float) -> dict[str, Runs]:
        rng = np.random.default_rng(3)
        found = {}
        for name, floor, scale in (("optical", 0.35, 1.0), ("radar", 0.1, 0.2)):
            runs = planted(0.0, rng)
            loss = floor + scale * (runs.loss - PLANTED.floor)
            found[name] = Runs(runs.parameters, runs.samples, loss * np.exp(rng.normal(0, noise, len(runs))))
        return found

    found = fit_joint(two(0.01), num_draws=20)
    assert found.size_interval[0] <= 0.35 <= found.size_interval[1]
    assert found.data_interval[0] <= 0.45 <= found.data_interval[1]
    assert found.laws["radar"].floor == pytest.approx(0.1, rel=0.2)
    with pytest.raises(NotIdentifiable, match=r"no joint law from these runs: \w+ changes the loss by .*%, residuals by"):
        fit_joint(two(0.5), num_draws=20)
    diagonal = {
        name: runs[np.searchsorted(SIZES, runs.parameters) == np.searchsorted(DATA, runs.samples)]
        for name, runs in two(0.01).items()
    }
    assert len(diagonal["radar"]) == len(SIZES) * SEEDS
    with pytest.raises(NotIdentifiable, match=r"no joint law from these runs: parameters and samples grow together"):
        fit_joint(diagonal, num_draws=20)


def test_a_budget_is_spent_where_the_derivatives_balance() -> None:
    """With k N operations a sample the best size is (alpha A / (beta B))^(1 / (alpha + beta)) (C / k)^(beta / (alpha + beta))."""
    fit, cost = fit_law(planted(0.0, np.random.default_rng(0)), num_draws=5), SampleCost.of(SIZES, 12.0 * SIZES)
    assert (cost.factor, cost.power) == pytest.approx((12.0, 1.0))
    best = best_size(fit, cost, 1e15)
    law, total = fit.law, fit.law.size_exponent + fit.law.data_exponent
    ratio = law.size_exponent * law.size_scale / (law.data_exponent * law.data_scale)
    assert best.parameters == pytest.approx(ratio ** (1 / total) * (1e15 / 12) ** (law.data_exponent / total), rel=1e-3)
    assert best.samples == pytest.approx(1e15 / 12 / best.parameters)
    assert best.loss == pytest.approx(float(PLANTED.loss(best.parameters, best.samples)), rel=1e-2)
    with pytest.raises(InputError, match="known for one size only"):
        SampleCost.of(SIZES[:1], SIZES[:1])


def test_valleys_of_equal_budgets_are_read_off_parabolas() -> None:
    size = np.tile(np.geomspace(1e5, 1e7, 5), 2)
    flops = np.repeat([1e12, 1e14], 5) * np.linspace(0.99, 1.01, 10)
    loss = 1 + 0.1 * (np.log(size) - np.where(flops < 1e13, np.log(3e5), np.log(5e7))) ** 2
    small, large = valleys(size, flops, loss)
    assert small.parameters == pytest.approx(3e5)
    assert small.loss == pytest.approx(1.0)
    assert small.is_inside
    assert not large.is_inside  # its best size is larger than any that was run
    assert valleys(size[:2], flops[:2], loss[:2]) == []
