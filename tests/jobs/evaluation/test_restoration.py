"""Cloud removal and pan-sharpening on small archives of smooth ground: which tiles are taken, what answers are worth."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from cluster.batches import spec_of
from cluster.embedding import ImageStatistics
from jobs.archives import write_statistics
from jobs.evaluate import EvaluateConfig, chosen_samples
from jobs.evaluation import cell as cells
from jobs.evaluation.cloud_removal import CloudRemoval
from jobs.evaluation.clouds import patterns
from jobs.evaluation.contenders import STATISTICS, Contender
from jobs.evaluation.features import FeatureStore
from jobs.evaluation.pan_sharpening import PanSharpening
from jobs.evaluation.plan import Work, answered
from jobs.evaluation.protocols import load_protocol
from jobs.evaluation.question import Question, TrainingConfig
from jobs.evaluation.restored import CLOUD_REMOVAL, OTHER, PATTERN, SHARPENING, TARGET
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.sharpening import SHARPENERS, Pair, bicubic, degrade
from jobs.evaluation.table import table_of
from jobs.leaderboard import leaderboard
from models.encoder import Encoder, EncoderConfig
from models.vit import VitConfig
from pipeline.archive import Archive, create_archive
from pipeline.grid import Grid
from pipeline.labels import Label
from pipeline.sensors import Sensor, load_sensor
from pipeline.shard import Tile

torch.set_num_threads(1)
OPTICAL, RADAR = load_sensor("sentinel2_l1c"), load_sensor("sentinel1_grd")
MS, PAN = load_sensor("worldview_ms"), load_sensor("worldview_pan")
SIDE = 32
RNG = np.random.default_rng(1)


def field(bands: int, side: int, smooth: float = 2.0) -> np.ndarray:
    """Correlated bands of unit variance."""
    base = ndimage.gaussian_filter(RNG.standard_normal((bands + 1, side, side)), (0, smooth, smooth))
    mixed = base[:1] * 2 + base[1:]
    return mixed / mixed.std()


def clear() -> np.ndarray:
    return np.clip(0.12 + 0.02 * field(13, SIDE), 0.02, 1)


def cloudy(ground: np.ndarray) -> np.ndarray:
    opacity = np.clip(field(1, SIDE, 4.0)[0], 0, 1)
    return ground * (1 - opacity) + 0.6 * opacity


def tile(sensor: Sensor, site: str, pixels: np.ndarray, order: int = 0, **facts: object) -> Tile:
    labels = {"cloudy": float(order == 9)} if sensor is OPTICAL else {}
    is_valid = np.ones(pixels.shape[1:], bool)
    return Tile(sensor.name, site, sensor.to_stored(pixels), is_valid, None, order, "scene", labels=labels, **facts)  # type: ignore[arg-type]


def site(split: str, number: int, kind: str) -> list[Tile]:
    name, ground = f"chip{number}/{split}/r0c{number}", clear()
    radar = tile(RADAR, name, -12 + 3 * (ground[:2] - 0.12) / 0.02)
    if kind == "cloud alone":
        return [tile(OPTICAL, name, cloudy(ground), 9)]
    if kind == "pair":
        return [radar, tile(OPTICAL, name, ground, 0), tile(OPTICAL, name, cloudy(ground), 9)]
    return [radar, tile(OPTICAL, name, ground + 0.01, 0), tile(OPTICAL, name, ground, 1)]


@pytest.fixture(scope="module")
def cloud_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """In each split sites with a real pair and sites with two clear dates; clouds without a twin in train."""
    url = str(tmp_path_factory.mktemp("clouds") / "archive")
    sensors, labels = {s.name: s for s in (OPTICAL, RADAR)}, {"cloudy": Label("binary", "tile")}
    archive = create_archive(url, Grid(site_size_m=320), sensors, labels)
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        kinds = ["pair", "two dates"] * count + (["cloud alone"] * 8 if split == "train" else [])
        archive.publish(f"made_{split}_0", split, [t for n, kind in enumerate(kinds) for t in site(split, n, kind)], "x")
    return archive


def contender(sensors: list[Sensor], mean: list[float], std: list[float], token_m: float, role: str) -> Contender:
    specs = tuple(spec_of(s, [m] * len(s.bands), [d] * len(s.bands)) for s, m, d in zip(sensors, mean, std))
    config = EncoderConfig(VitConfig(embed_dim=16, depth=1, num_heads=2), token_m, specs)

    class Maker:
        def load(self) -> Encoder:
            return Encoder(config, torch.Generator().manual_seed(0))

    return Contender("pretrained", frozenset([role]), (Maker(),), "digest")  # type: ignore[arg-type,list-item]


@pytest.fixture
def question(tmp_path: Path) -> Callable[..., Question]:
    def make(task: object, samples: TaskSamples, who: Contender, **settings: int) -> Question:
        training = replace(TrainingConfig(decoder_steps=25, batch_size=8), **settings)
        return Question(task, samples, who, samples.part("train"), 0, FeatureStore(str(tmp_path)), training)  # type: ignore[arg-type]

    return make


PIXELS = Contender(STATISTICS, frozenset(["pixels"]), (ImageStatistics(),), "")


def test_a_site_is_a_real_pair_or_a_clear_tile_under_clouds_of_others(cloud_archive: Archive) -> None:
    task = CloudRemoval(cloud_archive)
    alone, both = task.samples(frozenset([OPTICAL.name, RADAR.name]))
    assert (alone.sensors, both.sensors) == ((OPTICAL.name,), (OPTICAL.name, RADAR.name))
    assert len(alone) == len(both) == 28
    is_laid = alone.labels[:, PATTERN] >= 0
    assert is_laid.sum() == 14
    assert (alone.labels[is_laid, OTHER] >= 0).all()
    assert (alone.labels[~is_laid, OTHER] == -1).all()
    # Where a real cloudy tile is the input, the truth is another tile; else it is the tile itself.
    assert ((alone.tiles.rows[OPTICAL.name][:, 0] == alone.labels[:, TARGET]) == is_laid).all()
    used = {split: set(alone.labels[is_laid & (alone.split == split), PATTERN]) for split in ("train", "val", "test")}
    assert sum(map(len, used.values())) == len(set().union(*used.values()))
    assert CloudRemoval(cloud_archive).samples(frozenset([OPTICAL.name]))[0].labels.tolist() == alone.labels.tolist()


def test_sensors_with_too_few_samples_are_left_out_of_those_that_have_enough(cloud_archive: Archive) -> None:
    class RadarInTrain(CloudRemoval):
        def samples(self, sensors: frozenset[str]) -> list[TaskSamples]:
            alone, both = super().samples(sensors)
            return [alone, replace(both, split=np.full(len(both), "train"))]

    who = contender([OPTICAL, RADAR], [0.12, -12], [0.05, 3], 40, "maps")
    who = replace(who, specs=who.encoder(0).config.sensors, parameters=1)
    asked, left_out = chosen_samples([RadarInTrain(cloud_archive)], [who, PIXELS], EvaluateConfig(), must=True)
    assert [samples.sensors for _, samples in asked] == [(OPTICAL.name,)]
    assert [text.partition(" is left out")[0] for text in left_out] == ["cloud_removal of sentinel2_l1c + sentinel1_grd"]


def test_clouds_lie_over_the_clear_tile_and_nothing_else_changes(cloud_archive: Archive) -> None:
    task = CloudRemoval(cloud_archive)
    samples = task.samples(frozenset([OPTICAL.name]))[0]
    example = task.reader(samples).example(np.arange(len(samples)))
    is_laid = samples.labels[:, PATTERN] >= 0
    change = example.guess[is_laid] - example.truth[is_laid]
    opacity = np.stack([task.patterns[OPTICAL.name][p].opacity for p in samples.labels[is_laid, PATTERN]])
    assert change.min() > -0.2
    assert change.max() > 0.25
    assert np.isclose(change, 0, atol=1e-6).all(1).mean() == pytest.approx((opacity == 0).mean(), abs=0.01)
    turned = example.turned(np.full(len(samples), 5))
    assert np.array_equal(turned.inputs[OPTICAL.name].pixels[:, 0], turned.guess)
    assert np.array_equal(turned.truth[..., ::-1], np.rot90(example.truth, 1, (-2, -1)))


def test_a_pattern_over_its_own_ground_is_the_cloudy_image() -> None:
    ground = np.full((13, 16, 16), 0.1)
    image = ground.copy()
    image[:, 4:9, 4:9] = 0.25
    image[:, 6:8, 6:8] = 0.7
    (found,) = patterns(OPTICAL, image[None].astype(np.float32), np.ones((1, 16, 16), bool))
    assert found.over(ground) == pytest.approx(image, abs=1e-6)
    assert (found.opacity[0, 0], found.opacity[6, 6]) == (0, 1)
    assert found.opacity[4, 4] == pytest.approx(0.5, abs=1e-6)
    assert patterns(OPTICAL, ground[None], np.ones((1, 16, 16), bool)) == []


def test_decoders_beat_what_does_not_learn(cloud_archive: Archive, question: Callable[..., Question]) -> None:
    task = CloudRemoval(cloud_archive)
    _, both = task.samples(frozenset([OPTICAL.name, RADAR.name]))
    scores = {}
    for name in ("cloudy_image", "band_means", "other_date"):
        answer = load_protocol(name).answer(question(task, both, PIXELS))
        scores[name] = answer.outcome.scores()
        assert {picture.shape for picture in answer.pictures.values()} == {(6, SIDE, SIDE, 3)}
    truth, _ = task.reader(both).clear(both.part("test"), TARGET)
    perfect = task.outcome(both, both.part("test"), truth).scores()
    assert (perfect["MAE"], perfect["SSIM"], perfect["PSNR"]) == (0, pytest.approx(1, abs=1e-9), np.inf)
    # Half of the test sites have another date, which is brighter by 0.01.
    has_other = both.labels[both.part("test"), OTHER] >= 0
    mae = load_protocol("other_date").answer(question(task, both, PIXELS)).outcome.values[:, 1]  # type: ignore[attr-defined]
    assert mae[has_other] == pytest.approx(0.01, abs=1e-4)
    for protocol, role in (("restore", "maps"), ("restore_tuned", "tuned")):
        who = contender([OPTICAL, RADAR], [0.12, -12], [0.05, 3], 40, role)
        made = load_protocol(protocol).answer(question(task, both, who, decoder_steps=50)).outcome.scores()
        assert made["MAE"] < min(scores["cloudy_image"]["MAE"], scores["band_means"]["MAE"] * 1.2), protocol
        assert load_protocol(protocol).KINDS == (CLOUD_REMOVAL, SHARPENING)


def test_a_decoder_told_the_other_date_beats_one_that_is_not(cloud_archive: Archive, question: Callable[..., Question]) -> None:
    task = CloudRemoval(cloud_archive)
    alone, _ = task.samples(frozenset([OPTICAL.name, RADAR.name]))
    who, mae = contender([OPTICAL], [0.12], [0.05], 40, "maps"), {}
    for name in ("cloudy_image", "restore", "restore_other_date"):
        asked = question(task, alone, PIXELS if name == "cloudy_image" else who, decoder_steps=40)
        mae[name] = load_protocol(name).answer(asked).outcome.values[:, 1]  # type: ignore[attr-defined]
    has_other = alone.labels[alone.part("test"), OTHER] >= 0
    assert mae["restore_other_date"][has_other].mean() < 0.7 * mae["restore"][has_other].mean()
    assert mae["restore_other_date"][~has_other].mean() < 0.5 * mae["cloudy_image"][~has_other].mean(), "where there is none"


def test_degrading_keeps_levels_and_takes_detail() -> None:
    assert degrade(np.full((2, 16, 16), 7.0), 4, 0.3) == pytest.approx(7)
    wave = np.cos(2 * np.pi * (np.arange(256) - 1.5) / 8)  # the coarse grid's Nyquist frequency at ratio 4
    assert np.abs(degrade(np.tile(wave, (1, 256, 1)), 4, 0.3)[0, 30, 8:-8]).max() == pytest.approx(0.3, abs=0.01)
    ramp = np.tile(np.arange(64.0), (1, 64, 1))
    assert degrade(ramp, 4, 0.3)[0, 8, 4:-4] == pytest.approx(np.arange(4, 12) * 4 + 1.5)
    fine = bicubic(Pair(ramp, np.zeros((256, 256))))
    assert fine[0, 100, 40:-40] == pytest.approx((np.arange(40, 216) - 1.5) / 4, abs=1e-9)


def scene(side: int) -> Pair:
    fine = 400 + 120 * field(8, side * 4, 1.5)
    return Pair(degrade(fine, 4, 0.3), fine.mean(0))


def test_sharpeners_find_detail_where_pan_is_the_mean_of_the_bands() -> None:
    rng = np.random.default_rng(4)
    shared = ndimage.gaussian_filter(rng.standard_normal((128, 128)), 1) * 200
    fine = 400 + shared + 5 * rng.standard_normal((8, 1, 1))
    pair = Pair(degrade(fine, 4, 0.3), fine.mean(0))
    error = {name: np.abs(sharpen(pair) - fine).mean() for name, sharpen in SHARPENERS.items()}
    assert error["Gram-Schmidt"] < 0.4 * error["bicubic"]
    assert error["Brovey"] < 0.8 * error["bicubic"]


@pytest.fixture(scope="module")
def pan_archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = create_archive(
        str(tmp_path_factory.mktemp("pan") / "archive"), Grid(site_size_m=64), {s.name: s for s in (MS, PAN)}, {}
    )
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        pairs = [scene(SIDE) for _ in range(count)]
        names = [f"image/{split}/r0c{n}" for n in range(count)]
        made = [tile(MS, name, pair.ms) for name, pair in zip(names, pairs)]
        made += [tile(PAN, name, pair.pan[None]) for name, pair in zip(names, pairs)]
        archive.publish(f"made_{split}_0", split, made, "x")
    write_statistics(archive)
    return archive


def test_pan_sharpening_is_judged_at_both_resolutions(pan_archive: Archive, question: Callable[..., Question]) -> None:
    task = PanSharpening(pan_archive)
    (samples,) = task.samples(frozenset(pan_archive.sensors))
    assert samples.sensors == ("worldview_ms", "worldview_pan")
    reader = task.reader(samples)
    example, full = reader.example(samples.part("test")), reader.full(samples.part("test"))
    assert [a.pixels.shape[-1] for a in example.inputs.values()] == [8, 32]
    assert [a.pixels.shape[-1] for a in full.inputs.values()] == [32, 128]
    assert (example.guess.shape, full.guess.shape) == ((3, 8, 32, 32), (3, 8, 128, 128))
    scores = {
        name: load_protocol(name).answer(question(task, samples, PIXELS)).outcome.scores()
        for name in ("bicubic", "brovey", "gram_schmidt")
    }
    assert scores["gram_schmidt"]["Q2n"] > scores["bicubic"]["Q2n"]
    assert scores["gram_schmidt"]["ERGAS"] < scores["bicubic"]["ERGAS"]
    assert all(0 <= scores[name]["QNR"] <= 1 for name in scores)
    assert list(scores["bicubic"]) == ["Q2n", "SAM", "ERGAS", "SCC", "PSNR", "SSIM", "QNR", "D_lambda", "D_s"]
    who = contender([MS, PAN], [400, 400], [100, 100], 8, "maps")
    learnt = load_protocol("restore").answer(question(task, samples, who, decoder_steps=40))
    assert learnt.outcome.scores()["ERGAS"] < scores["bicubic"]["ERGAS"]
    assert learnt.pictures["predicted"].shape == (3, 32, 32, 3)


def test_bootstrap_takes_whole_images(cloud_archive: Archive) -> None:
    task = CloudRemoval(cloud_archive)
    samples = task.samples(frozenset([OPTICAL.name]))[0]
    outcome = task.outcome(samples, samples.part("test"), task.reader(samples).example(samples.part("test")).guess)
    twice = outcome.take(np.array([2, 2])).scores()
    assert twice == pytest.approx(outcome.take(np.array([2])).scores())


def test_the_leaderboard_shows_sharpened_images_and_all_their_metrics(pan_archive: Archive, tmp_path: Path) -> None:
    task = PanSharpening(pan_archive)
    (samples,) = task.samples(frozenset(pan_archive.sensors))
    for name in ("bicubic", "brovey"):
        about = cells.Cell(task.name, pan_archive.url, samples.name, STATISTICS, name, 1.0, 0)
        row = answered(Work(about, task, samples, PIXELS, "", "", TrainingConfig()), str(tmp_path))
        assert not row.error
        assert row.low < row.score < row.high
    table = table_of(cells.frame(cells.read(str(tmp_path))))
    (section,) = leaderboard(str(tmp_path), {"table": table, "notes": ["said <once>"]})
    assert "Evaluation: pan_sharpening" in section
    assert "said &lt;once&gt;" in section
    for metric in ("Q2n", "ERGAS ↓", "SAM ↓", "SCC", "QNR", "D_lambda ↓"):
        assert f"<th>{metric}</th>" in section
    assert "brovey, worldview_ms + worldview_pan: input, true, predicted, error" in section
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", section)
    assert len(pictures) == 1, "of the best protocol of each model"
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size[0] > 400
