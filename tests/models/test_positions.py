from datetime import UTC, datetime, timedelta

import pytest
import torch

from models.errors import InputError
from models.positions import calendar, lonlat, prithvi_time, resample, satmae_time, sincos_1d, sincos_2d, sincos_3d


def test_one_number_by_hand() -> None:
    code = sincos_1d(4, torch.tensor([0.0, 2.0]))
    assert code[0].tolist() == [0, 0, 1, 1]
    expected = torch.tensor([2.0, 0.02]).sin().tolist() + torch.tensor([2.0, 0.02]).cos().tolist()
    assert code[1].tolist() == pytest.approx(expected, abs=1e-7)


def test_two_dimensions_as_mae_has_them() -> None:
    """Row by row, the column in the first half: token (row 1, column 2) of a 3 x 4 grid."""
    table = sincos_2d(8, 3, 4)
    assert table.shape == (12, 8)
    assert torch.equal(table[1 * 4 + 2], torch.cat([sincos_1d(4, torch.tensor(2)), sincos_1d(4, torch.tensor(1))]))
    assert len(table.unique(dim=0)) == 12


def test_scaled_positions_are_ground_distances() -> None:
    """A pixel twice as large: its token k is where the fine grid's token 2 k is."""
    fine, coarse = sincos_2d(16, 4, 6), sincos_2d(16, 2, 3, gsd_scale=2.0)
    assert torch.allclose(coarse, fine.view(4, 6, 16)[::2, ::2].flatten(0, 1))


def test_three_dimensions() -> None:
    table = sincos_3d(32, 2, 3, 4).view(2, 3, 4, 32)
    assert torch.equal(table[1, 2, 3, :12], sincos_1d(12, torch.tensor(3)))
    assert torch.equal(table[1, 2, 3, 12:24], sincos_1d(12, torch.tensor(2)))
    assert torch.equal(table[1, 2, 3, 24:], sincos_1d(8, torch.tensor(1)))


def test_time_and_place() -> None:
    year, month, hour = torch.tensor([2017]), torch.tensor([6]), torch.tensor([11])
    code = satmae_time(12, year, month, hour)[0]
    assert torch.equal(code, torch.cat([sincos_1d(4, torch.tensor(v)) for v in (15, 5, 11)]))
    assert prithvi_time(8, year, torch.tensor([167])).shape == (1, 8)
    places = lonlat(8, torch.tensor([[11.0, 48.0], [float("nan"), 48.0]]))
    assert torch.equal(places[0], torch.cat([sincos_1d(4, torch.tensor(48.0)), sincos_1d(4, torch.tensor(11.0))]))
    assert not places[1].any()


def test_calendar_is_that_of_the_standard_library() -> None:
    start = datetime(1970, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(days=d, hours=5) for d in (*range(0, 60_000, 97), 11_016, 11_017, 789, 790, -1, -400)]
    days = torch.tensor([(m - start).total_seconds() / 86_400 for m in moments], dtype=torch.float64)
    year, month, of_year, hour = calendar(days)
    assert year.tolist() == [m.year for m in moments]
    assert month.tolist() == [m.month for m in moments]
    assert of_year.tolist() == [m.timetuple().tm_yday - 1 for m in moments]
    assert hour.tolist() == pytest.approx([5] * len(moments), abs=1e-4)


def test_a_table_for_another_grid() -> None:
    table = sincos_2d(16, 8, 8)
    assert torch.allclose(resample(table, (8, 8), (8, 8)), table, atol=1e-6)
    assert resample(table, (8, 8), (4, 12)).shape == (48, 16)
    with pytest.raises(InputError, match="does not fit a grid"):
        resample(table, (8, 9), (4, 4))


@pytest.mark.parametrize("call", [lambda: sincos_1d(3, torch.zeros(1)), lambda: sincos_2d(6, 2, 2), lambda: sincos_3d(24, 1, 1, 1)])
def test_widths_that_do_not_divide_are_refused(call: object) -> None:
    with pytest.raises(InputError, match="has dim"):
        call()  # type: ignore[operator]
