"""Real samples through the whole of ingest, verify and inspect."""

from pathlib import Path

import numpy as np
import pytest

from jobs.archives import verify
from jobs.ingest import ingest
from jobs.inspect import inspect
from pipeline.archive import open_archive
from pipeline.datasets import layout_names, load_layout
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.sensors import Sensor


@pytest.mark.parametrize(
    ("layouts", "site_size_m", "labels"),
    [
        (("bigearthnet",), 1200.0, {"bigearthnet_43": 12}),
        (("landslide4sense", "sen12mscr", "sen1floods11"), 1280.0, {"landslide": 32, "water": 112}),
    ],
)
def test_real_samples(
    layouts, site_size_m: float, labels: dict[str, int], shared_data: Path, tmp_path: Path, cluster: None
) -> None:
    url = str(tmp_path / "archive")
    for layout in layouts:
        found = ingest(layout, str(shared_data / layout), url, Grid(site_size_m))
        assert (found["refused"], found["places_without_tiles"]) == ({}, 0)
    assert verify(url)["faults"] == 0
    described = inspect(url)
    assert {name: described["labels"][name]["labelled_tiles"] for name in labels} == labels
    archive = open_archive(url)
    catalog = archive.catalog()
    assert set(catalog["split"]) == {"train", "val", "test"}
    for label, name in (("water", "sentinel1_grd"), ("landslide", "landslide4sense_dem")):
        if label in labels:
            rows = catalog[(catalog["sensor"] == name) & catalog["labels"].str.contains(f'"{label}"')]
            shard = rows["shard"].iloc[0]
            chosen = rows.loc[rows["shard"] == shard, "row"].to_numpy()
            found_map = archive.read_map(shard, name, label, chosen)
            assert found_map.is_labelled.any(axis=(1, 2)).all()
            assert set(np.unique(found_map.classes[found_map.is_labelled])) <= {0, 1}
    again = ingest(layouts[0], str(shared_data / layouts[0]), url, Grid(site_size_m))
    assert (again["shards_written"], again["digest"]) == (0, archive.digest())


def test_a_site_larger_than_the_chips_is_refused_with_the_size_to_give(shared_data: Path, tmp_path: Path, cluster: None) -> None:
    url = str(tmp_path / "archive")
    with pytest.raises(InputError, match=r"none of the 10 places .* give --site-size-m of at most 1200; .*archive' is empty still"):
        ingest("bigearthnet", str(shared_data / "bigearthnet"), url, Grid(2400))
    assert open_archive(url).published() == []


@pytest.mark.parametrize("name", layout_names())
def test_every_layout_says_what_it_needs(name: str, tmp_path: Path) -> None:
    layout = load_layout(name)
    assert "site-size-m" in str(layout.__doc__)
    assert f"| `{name}` |" in (Path(__file__).parents[3] / "docs" / "layouts.md").read_text()
    assert all(isinstance(sensor, Sensor) and sensor.name == key for key, sensor in layout.sensors().items())
    assert all(label.kind in ("class", "binary", "fraction", "multilabel", "map") for label in layout.LABELS.values())
    with pytest.raises(InputError, match=r"no .* under|lacks patches.npz") as raised:
        layout.places(str(tmp_path))
    assert "expected" in str(raised.value)
    assert "\n" not in str(raised.value)
