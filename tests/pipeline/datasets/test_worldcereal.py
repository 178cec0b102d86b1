from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.datasets import worldcereal
from pipeline.errors import InputError
from pipeline.grid import Grid

GRID = Grid(site_size_m=40)


def write_series(folder: Path, months: dict[str, int], codes: dict[str, int], num_regions: int = 2) -> str:
    rows = [
        {
            "sample_id": sample,
            "timestamp": pd.Timestamp("2017-01-01") + pd.DateOffset(months=month),
            "lat": 50.0,
            "lon": -100.0 + number,
            "h3_l3_cell": f"cell {number % num_regions}",
            "CROPTYPE_LABEL": codes[sample],
            **dict.fromkeys(worldcereal.COLUMNS["worldcereal_optical"], 1000 * (month + 1)),
            **dict.fromkeys(worldcereal.COLUMNS["worldcereal_sar"], 1000),
        }
        for number, (sample, count) in enumerate(months.items())
        for month in reversed(range(count))
    ]
    rows[1]["S2-L2A-B08"] = worldcereal.NONE
    pd.DataFrame(rows).to_parquet(folder / "x_timeseries.parquet")
    return str(folder)


def test_a_series_is_a_site_of_twelve_months(tmp_path: Path) -> None:
    folder = write_series(tmp_path, {"a": 12, "b": 14, "short": 11}, {"a": 4100, "b": 77, "short": 1110})
    found = worldcereal.places(folder)
    assert set(found) == {"a", "b"}
    tiles = worldcereal.tiles("a", found["a"], GRID)
    optical = [tile for tile in tiles if tile.sensor == "worldcereal_optical"]
    assert [tile.order for tile in optical] == list(range(12))
    assert [tile.time.month for tile in optical] == list(range(1, 13))
    assert [int(tile.pixels[0, 0, 0]) for tile in optical if tile.order != 10] == [1000 * m for m in range(1, 13) if m != 11]
    assert [tile.is_valid.all() for tile in optical] == [order != 10 for order in range(12)], "a month without data stays a date"
    assert all(np.ptp(tile.pixels, axis=(1, 2)).max() == 0 and tile.pixels.shape[1:] == (4, 4) for tile in tiles)
    radar = next(tile for tile in tiles if tile.sensor == "worldcereal_sar")
    assert radar.pixels[0, 0, 0] == round((20 * np.log10(1000) - 83) * 100)
    assert tiles[0].labels == {"crop": 3.0}
    assert worldcereal.tiles("b", found["b"], GRID)[0].labels == {}, "a rare code"


@pytest.mark.parametrize(("num_regions", "is_known"), [(3, True), (8, True), (8, False), (40, True)])
def test_no_split_is_empty(tmp_path: Path, num_regions: int, is_known: bool) -> None:
    samples = [f"sample {number}" for number in range(5 * num_regions)]
    codes = [code if is_known else 77 for code in worldcereal.CODES for _ in range(num_regions)]
    folder = write_series(tmp_path, dict.fromkeys(samples, 12), dict(zip(samples, codes)), num_regions)
    splits = worldcereal.splits(folder, worldcereal.places(folder))
    assert set(splits) == set(samples)
    of_region = [{splits[sample] for sample in samples[region::num_regions]} for region in range(num_regions)]
    assert all(len(found) == 1 for found in of_region)
    assert set.union(*of_region) == {"train", "val", "test"}


def test_what_is_no_series_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected <name>_timeseries\.parquet"):
        worldcereal.places(str(tmp_path))
    (tmp_path / "x_timeseries.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"cannot read '.*x_timeseries.parquet'"):
        worldcereal.places(str(tmp_path))


def test_real_series_are_split_by_region(shared_data: Path) -> None:
    folder = str(shared_data / "worldcereal")
    found = worldcereal.places(folder)
    assert len(found) == 2648
    splits = worldcereal.splits(folder, found)
    table = pd.read_parquet(next(iter(found.values())), columns=["sample_id", "h3_l3_cell"]).drop_duplicates("sample_id")
    by_cell = (
        table[table["sample_id"].isin(found)].assign(split=lambda t: t["sample_id"].map(splits)).groupby("h3_l3_cell")["split"]
    )
    assert by_cell.nunique().eq(1).all()
    assert set(splits.values()) == {"train", "val", "test"}
    facts = pd.read_parquet(next(iter(found.values())), columns=["sample_id", "CROPTYPE_LABEL"]).drop_duplicates("sample_id")
    crops = facts[facts["CROPTYPE_LABEL"].isin(worldcereal.CODES)]
    counts = pd.crosstab(crops["CROPTYPE_LABEL"], crops["sample_id"].map(splits))
    assert (counts["val"] >= 0.1 * (counts["train"] + counts["val"])).all(), "val has some of each crop"
    assert counts["val"].sum() < 0.3 * counts["train"].sum()
