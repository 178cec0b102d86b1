"""Perturbations on arrays, overlap with pretraining, and both through the command up to its page."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from shapely.geometry import box

from cluster.batches import sensor_specs
from cluster.run import Run
from jobs.archives import write_statistics
from jobs.evaluate import EvaluateConfig, evaluate
from jobs.evaluation.cell import REFUSED, read
from jobs.evaluation.disturbances import (
    DeadBands,
    Noise,
    OtherDate,
    OtherRegion,
    Removed,
    Shifted,
    Turned,
    WrongScale,
    regions,
    suite,
)
from jobs.evaluation.overlap import block_hashes, by_ground, overlaps
from jobs.evaluation.task import label_task
from jobs.report import report
from models.encoder import Encoder, EncoderConfig
from models.vit import VitConfig
from pipeline.archive import Archive, create_archive, open_archive
from pipeline.augment import SensorArrays
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import load_sensor
from pipeline.shard import Tile

SENSOR = load_sensor("sentinel2_l1c")
GRID = Grid(site_size_m=320)
SIDE_DEG = 0.003


def arrays(num: int = 40) -> SensorArrays:
    rng = np.random.default_rng(0)
    pixels = (0.1 + 0.03 * rng.standard_normal((num, 1, 13, 16, 16))).astype(np.float32)
    shape = (num, 1)
    return SensorArrays(SENSOR, pixels, np.ones((*shape, 16, 16), bool), np.ones(shape, bool), np.zeros(shape))


def changed(disturbance: object) -> SensorArrays:
    return disturbance.arrays(arrays(), np.random.default_rng(1))  # type: ignore[attr-defined]


def test_a_perturbation_does_what_its_strength_says() -> None:
    plain = arrays()
    assert changed(Removed(0.25)).is_present.sum() == 30
    assert not changed(Removed(1.0)).is_valid.any()
    noise = changed(Noise(0.3)).pixels - plain.pixels
    assert noise.std() == pytest.approx(0.3 * 0.03, rel=0.05)
    dead = changed(DeadBands(4.0)).pixels
    assert ((dead == 0).all((-2, -1)).sum(2) == 4).all()
    assert len(np.unique((dead == 0).all((-2, -1))[:, 0], axis=0)) > 10, "other bands in other tiles"
    moved = changed(Shifted(2.0))
    assert np.array_equal(moved.pixels[..., 2:, 2:], plain.pixels[..., :-2, :-2])
    assert moved.is_valid.sum() == 40 * 14 * 14
    assert changed(WrongScale(10000.0)).pixels == pytest.approx(plain.pixels * 10000)
    assert np.array_equal(changed(Turned(90.0)).pixels, np.rot90(plain.pixels, 1, (-2, -1)))


def test_a_perturbation_is_the_same_every_time_and_leaves_other_sensors_and_its_input_alone() -> None:
    plain = arrays()
    for disturbance in (Removed(0.5), Noise(1.0), DeadBands(2.0), Shifted(4.0), WrongScale(2.0)):
        first, second = changed(disturbance), changed(disturbance)
        assert np.array_equal(first.pixels, second.pixels)
        assert np.array_equal(first.is_present, second.is_present)
        other = replace(disturbance, sensor="dsm")
        assert changed(other).pixels.tobytes() == plain.pixels.tobytes()
        untouched = arrays()
        disturbance.arrays(untouched, np.random.default_rng(1))
        assert untouched.pixels.tobytes() == plain.pixels.tobytes()
        assert untouched.is_valid.all()


def test_regions_are_places_near_each_other() -> None:
    place = np.repeat([f"city{n}" for n in range(8)], 3)
    lon = np.repeat([2.0, 2.5, 100, 101, -60, -61, 20, 21], 3)
    lonlat = np.stack([lon, np.repeat([48.0, 48, 10, 10, -10, -10, -33, -33], 3)], 1)
    found = regions(lonlat, place)
    assert sorted(np.bincount(found)) == [6, 6, 6, 6]
    assert all(len(set(found[at : at + 6])) == 1 for at in range(0, 24, 6))
    unplaced = regions(np.full((24, 2), np.nan), place)
    assert sorted(np.bincount(unplaced)) == [6, 6, 6, 6]
    assert len({(p, r) for p, r in zip(place, unplaced)}) == 8


def tile(split: str, number: int, order: int, east_deg: float, is_placed: bool, seed: int) -> Tile:
    """Bright or dark ground: two classes."""
    rng, cover = np.random.default_rng([seed, number, order]), number % 2
    pixels = SENSOR.to_stored(0.1 + 0.1 * cover + 0.02 * rng.standard_normal((13, 32, 32)))
    west = 10 + east_deg + SIDE_DEG * (10 * number + ("train", "val", "test").index(split))
    outline = box(west, 45, west + SIDE_DEG, 45 + SIDE_DEG) if is_placed else None
    when = datetime(2020, 1 + order, 1, tzinfo=UTC)
    facts = {"geometry": outline, "crs": "EPSG:32632" if is_placed else None, "labels": {"cover": cover}}
    return Tile(
        SENSOR.name, f"{split}/{number}/r0c{number}", pixels, np.ones((32, 32), bool), when, order, f"scene {order}", **facts
    )


def make_archive(url: Path, east_deg: float = 0.0, is_placed: bool = True, seed: int = 0) -> Archive:
    archive = create_archive(str(url), GRID, {SENSOR.name: SENSOR}, {"cover": Label("class", "tile", ("dark", "bright"))})
    for split, count in (("train", 12), ("val", 8), ("test", 12)):
        tiles = [tile(split, number, order, east_deg, is_placed, seed) for number in range(count) for order in range(2)]
        archive.publish(f"{split}_0", split, tiles, "x")
    write_statistics(archive)
    return open_archive(str(url))


def save_run(folder: Path, archive: Archive) -> str:
    """A pretrained run of no steps."""
    config = EncoderConfig(VitConfig(embed_dim=16, depth=1, num_heads=2), 80.0, sensor_specs(archive))
    Encoder(config, torch.Generator().manual_seed(0)).save(folder / "model")
    content = {"job": "pretrain", "inputs": {"recipe": "none", "archive": archive.url}, "config": {}}
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robust")


@pytest.fixture(scope="module")
def trained_on(home: Path) -> Archive:
    return make_archive(home / "trained_on")


@pytest.fixture(scope="module")
def run(home: Path, trained_on: Archive) -> str:
    return save_run(home / "run", trained_on)


def test_other_dates_and_other_regions_choose_other_samples(trained_on: Archive) -> None:
    (samples,) = label_task(trained_on, "cover").samples(frozenset([SENSOR.name]))
    other = OtherDate(1.0, archive=trained_on).samples(samples)
    is_test = samples.split == "test"
    rows, before = (found.tiles.rows[SENSOR.name][:, 0] for found in (other, samples))
    assert (rows[is_test] != before[is_test]).all()
    assert (rows[is_test] // 2 == before[is_test] // 2).all(), "the same sites"
    assert (rows[~is_test] == before[~is_test]).all()
    with pytest.raises(InputError, match="no test site has a tile 2 dates away"):
        OtherDate(2.0, archive=trained_on).samples(samples)
    held = [OtherRegion(float(n)).samples(samples) for n in range(1, 5)]
    assert sum(len(found.part("test")) for found in held) == is_test.sum()
    number = regions(samples.tiles.lonlat_deg, samples.place)
    assert [len(found.part("train")) for found in held] == [
        int(((samples.split == "train") & (number != n)).sum()) for n in range(4)
    ]
    names = {d.name for d in suite(samples, trained_on, "class")}
    changes = {f"{kind} {SENSOR.name}" for kind in ("removed", "noise", "dead bands", "shifted", "wrong scale")}
    assert names >= changes | {"turned", "other date", "other region"}
    assert "turned" not in {d.name for d in suite(samples, trained_on, "segmentation")}


def test_ground_counts_as_seen_where_it_is_shared_not_where_it_touches() -> None:
    def table(*boxes: tuple[float, float, float, float], day: int) -> pd.DataFrame:
        time = [datetime(2020, 1, day, tzinfo=UTC)] * len(boxes)
        return pd.DataFrame({"geometry": [box(*b) for b in boxes], "time": time, "sample": range(len(boxes))})

    seen = table((0, 0, 1, 1), day=1)
    assert by_ground(seen, table((1, 0, 2, 1), (5, 5, 6, 6), day=3)) is None
    found = by_ground(seen, table((0.9, 0, 1.9, 1), (5, 5, 6, 6), day=3))
    assert found is not None
    assert str(found) == "1 of 2 test samples lie on ground that it was trained on, as little as 2 days apart"
    unplaced = table((0, 0, 1, 1), day=1)
    assert by_ground(seen, unplaced.assign(geometry=None)) is None


def test_hashes_know_the_same_pixels_in_tiles_of_another_size() -> None:
    image = np.random.default_rng(0).integers(1, 99, (2, 64, 64)).astype(np.uint16)
    everywhere = np.ones((64, 64), bool)
    whole, part = block_hashes(image, everywhere), block_hashes(image[:, 32:, :32], everywhere[:32, :32])
    assert len(whole) == 4
    assert part[0] in whole
    assert len(block_hashes(np.zeros_like(image), everywhere)) == 0
    assert block_hashes(image + 1, everywhere)[0] not in whole


@pytest.mark.parametrize(
    ("is_placed", "message"), [(True, "lie on ground that it was trained on"), (False, "have pixels that it was trained on")]
)
def test_test_places_that_were_trained_on_are_refused(
    is_placed: bool, message: str, home: Path, run: str, trained_on: Archive, cluster: str, tmp_path: Path
) -> None:
    # Its test tiles are the training tiles of the other: the same ground, or without ground the same numbers.
    archive = create_archive(str(tmp_path / "archive"), GRID, {SENSOR.name: SENSOR}, trained_on.labels)
    for split, of in (("train", "test"), ("val", "val"), ("test", "train")):
        tiles = [tile(of, number, 0, 0.0 if is_placed else 50.0, is_placed, 0) for number in range(8)]
        archive.publish(f"{split}_0", split, tiles, "x")
    write_statistics(archive)
    (samples,) = label_task(archive, "cover").samples(frozenset([SENSOR.name]))
    asked, models = [(label_task(archive, "cover"), samples)], [Run(run, "pretrain")]
    with pytest.raises(InputError, match=f"8 of 8 test samples {message}.*add --allow-overlap cover"):
        overlaps(asked, models, ())
    with pytest.raises(InputError, match="--allow-overlap names 'other', which is none of the tasks cover"):
        overlaps(asked, models, ("other",))
    (note,) = overlaps(asked, models, ("cover",))
    assert note.startswith("overlap allowed: cover")
    (own,) = label_task(trained_on, "cover").samples(frozenset([SENSOR.name]))
    assert overlaps([(label_task(trained_on, "cover"), own)], models, ()) == []
    config = EvaluateConfig(seeds=1, protocols=("knn",))
    if is_placed:
        with pytest.raises(InputError, match="add --allow-overlap cover"):
            evaluate("cover", run, (), (archive.url,), str(tmp_path / "scores"), config)


class Page(HTMLParser):
    """Headings, table cells, pictures and scripts' sources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


def test_the_command_draws_curves_and_records_refusals(
    run: str, trained_on: Archive, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = str(tmp_path / "scores")
    asked = [Noise(1.0, SENSOR.name), WrongScale(0.5, SENSOR.name), WrongScale(10000.0, SENSOR.name)]
    monkeypatch.setattr("jobs.evaluate.suite", lambda *_: asked)  # all of them take a minute
    config = EvaluateConfig(seeds=1, protocols=("knn",), robustness=True, label_fractions=(0.5, 1.0))
    summary = evaluate("cover", run, (), (), scores, config)
    rows = list(read(scores).values())
    refused = [row for row in rows if row.error]
    assert {(row.model, row.perturbation, row.strength) for row in refused} == {
        (model, f"wrong scale {SENSOR.name}", 10000.0) for model in ("pretrained", "random initialisation")
    }
    assert all(row.error.startswith(f"{REFUSED}band ") for row in refused)
    assert summary["failed"] == 0
    assert sum("refused" in note for note in summary["notes"]) == 2
    clean = next(row for row in rows if row.model == "image statistics" and not row.perturbation and row.fraction == 1)
    assert clean.score == 1
    wrong = next(row for row in rows if row.model == "image statistics" and row.strength == 10000)
    assert wrong.score < 1, "what checks nothing answers, wrongly"
    text = Path(report([scores], str(tmp_path / "page.html"))["report"]).read_text()
    page = Page()
    page.feed(text)
    assert [h for h in page.texts["h2"] if h.startswith("Evaluation")] == ["Evaluation: cover"]
    assert page.texts["h3"] == ["Fewer labels", "Disturbed test tiles"]
    assert {"image statistics", "pretrained", "random initialisation", "knn"} <= set(page.texts["td"])
    assert {"F1 dark", "F1 bright", "balanced accuracy", "95 %"} <= set(page.texts["th"])
    assert any("10000: refused: band" in text for text in page.texts["li"])
    assert "confusion: pretrained, knn" in text
    assert not [source for source in page.sources if source.startswith("http")]
