"""Embeddings of an archive and of its planet's scenes through the command itself: killed, gone on with, searched."""

import json
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from PIL import Image

from cluster.batches import sensor_specs
from cluster.embedding import ModelFeatures, features_of_shard
from models.encoder import Encoder, EncoderConfig
from models.swin import SwinConfig
from pipeline.archive import open_archive
from tests.jobs.test_chain import finish, start, terraloom

SENSORS = ("sentinel1_grd", "sentinel2_l2a")
WINDOWS = ["--sensors", *SENSORS, "--memory-mib", "4"]


@pytest.fixture(scope="module")
def trained(archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with an encoder of the planet's sensors; what it has learned does not matter here."""
    run = tmp_path_factory.mktemp("trained")
    backbone = SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 1), window=4)
    specs = sensor_specs(open_archive(archive))
    Encoder(EncoderConfig(backbone, 40.0, specs), torch.Generator().manual_seed(0)).save(run / "model")
    config = {"job": "pretrain", "inputs": {"recipe": "none", "archive": archive}}
    (run / "config.json").write_text(json.dumps(config))
    return run


def summary(*arguments: str) -> dict:
    done = terraloom(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def of_archive(trained: Path, archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "archive"
    summary("embed", str(trained), archive, str(out), "--sensors", *SENSORS)
    return out


@pytest.fixture(scope="module")
def of_raster(trained: Path, planet: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Zarr, and the same as GeoParquet and COG."""
    folder, made = tmp_path_factory.mktemp("rasters"), {}
    for form in ("zarr", "geoparquet", "cog"):
        made[form] = folder / form
        found = summary("embed", str(trained), str(planet / "scenes"), str(made[form]), "--format", form, *WINDOWS)
        assert found["window_m"] == 640
        assert not (made[form] / "blocks").exists()
    return made


def test_every_tile_of_an_archive_has_a_row(of_archive: Path, trained: Path, archive: str) -> None:
    rows = gpd.read_parquet(of_archive / "parts")
    opened = open_archive(archive)
    tiles = opened.catalog()
    tiles = tiles[tiles["sensor"].isin(SENSORS)]
    assert len(rows) == len(tiles)
    assert rows["id"].is_unique
    assert set(rows["site"]) == set(tiles["site"])
    shard = rows["shard"].iloc[0]
    some = rows[(rows["shard"] == shard) & (rows["sensor"] == SENSORS[0])].sort_values("row")
    expected = features_of_shard(opened, ModelFeatures(str(trained / "model")), shard, SENSORS[0], some["row"].to_numpy())
    np.testing.assert_allclose(np.stack(some["embedding"]), expected, rtol=1e-4, atol=1e-5)
    where = tiles.set_index(["shard", "sensor", "row"]).loc[(shard, SENSORS[0], int(some["row"].iloc[0]))].geometry
    assert some.geometry.iloc[0].equals(where)


def test_what_was_embedded_is_not_embedded_again(of_archive: Path, trained: Path, archive: str) -> None:
    parts = sorted((of_archive / "parts").iterdir())
    (of_archive / "summary.json").unlink()
    content = parts[0].read_bytes()
    parts[0].unlink()
    before = {path: path.stat().st_mtime_ns for path in parts[1:]}
    summary("embed", str(trained), archive, str(of_archive), "--sensors", *SENSORS)
    assert parts[0].read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in parts[1:]} == before


def test_an_image_is_the_same_in_every_format(of_raster: dict[str, Path]) -> None:
    rows = gpd.read_parquet(of_raster["geoparquet"] / "parts")
    about = json.loads((of_raster["zarr"] / "summary.json").read_text())
    assert about["cell_m"] == 80
    for name in SENSORS:
        cube = xr.open_zarr(of_raster["zarr"] / "embeddings.zarr", group=name, consolidated=False)
        values = cube["embedding"].to_numpy()
        assert values.shape == (16, *about["shape"])
        assert np.isfinite(values).any(0).sum() > 0.9 * 48**2  # the planet's 3840 m
        with rasterio.open(of_raster["cog"] / "cog" / f"{name}.tif") as source:
            assert str(source.crs) == about["crs"]
            np.testing.assert_allclose(source.read(), values, rtol=1e-4, atol=1e-5)
            x, y = source.xy(3, 7)
        assert (float(cube["x"][7]), float(cube["y"][3])) == (x, y)
        own = rows[rows["sensor"] == name].set_index("id")
        assert len(own) == np.isfinite(values[0]).sum()
        row, column = np.argwhere(np.isfinite(values[0]))[5]
        cell = own.loc[f"{name}/{row}/{column}"]
        np.testing.assert_allclose(cell["embedding"], values[:, row, column], rtol=1e-4, atol=1e-5)
        centre = own.to_crs(about["crs"]).loc[f"{name}/{row}/{column}"].geometry.centroid
        assert (centre.x, centre.y) == pytest.approx((float(cube["x"][column]), float(cube["y"][row])), abs=0.01)


def test_a_killed_image_goes_on_and_is_the_same(
    of_raster: dict[str, Path], trained: Path, planet: Path, cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    arguments = ["embed", str(trained), str(planet / "scenes"), str(out), *WINDOWS]
    process, limit = start(cluster, *arguments), time.monotonic() + 200
    while not (blocks := sorted(out.glob("blocks/*/*.npz"))):
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (out / "summary.json").exists()
    before = {path: path.stat().st_mtime_ns for path in blocks}
    process = start(cluster, *arguments)
    seen: dict[Path, int] = {}
    while process.poll() is None:
        seen |= {path: path.stat().st_mtime_ns for path in before if path.exists()}
        time.sleep(0.05)
    finish(process)
    assert seen == before
    for name in SENSORS:
        made, expected = (
            xr.open_zarr(folder / "embeddings.zarr", group=name, consolidated=False)["embedding"].to_numpy()
            for folder in (out, of_raster["zarr"])
        )
        assert np.array_equal(made, expected, equal_nan=True)


def test_likes_are_found(of_archive: Path, of_raster: dict[str, Path], planet: Path, tmp_path: Path) -> None:
    rows = gpd.read_parquet(of_archive / "parts")
    own = rows[rows["sensor"] == SENSORS[1]].reset_index(drop=True)
    found = summary("embed", "search", str(of_archive), "--like", own["id"][3], "--count", "5", "--out", str(tmp_path / "ids"))
    values = np.stack(own["embedding"]) - np.stack(own["embedding"]).mean(0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosines = values @ values[3]
    expected = [i for i in np.argsort(-cosines) if i != 3][:5]
    assert [n["id"] for n in found["neighbours"]] == [own["id"][i] for i in expected]
    assert [n["cosine"] for n in found["neighbours"]] == pytest.approx(cosines[expected].tolist(), abs=1e-3)
    assert json.loads((tmp_path / "ids" / "neighbours.json").read_text())["neighbours"] == found["neighbours"]
    with Image.open(tmp_path / "ids" / "neighbours.png") as picture:
        assert picture.width > 4 * picture.height
    centre = own.geometry[3].centroid
    place = summary("embed", "search", str(of_archive), "--like", f"{centre.x},{centre.y}", "--sensor", SENSORS[1])
    assert len(place["neighbours"]) == 8
    cells = of_raster["geoparquet"]
    scene = str(min((planet / "scenes").glob("sentinel1_grd_*.tif")))
    by_image = summary("embed", "search", str(cells), "--like", scene, "--sensor", SENSORS[0], "--out", str(tmp_path / "image"))
    assert by_image["rows"] == (gpd.read_parquet(cells / "parts")["sensor"] == SENSORS[0]).sum()
    assert by_image["neighbours"][0]["cosine"] > by_image["neighbours"][-1]["cosine"] - 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "/no/run", "SCENES", "OUT"], "holds no model"),
        (["embed", "RUN", "/no/raster.tif", "OUT"], "'/no/raster.tif' does not exist"),
        (["embed", "RUN", "SCENES", "OUT", "--sensors", "sentinel3"], "sensor 'sentinel3' cannot be embedded"),
        (["embed", "RUN", "SCENES", "OUT", "--overlap", "1.5"], "overlap is 1.5, expected [0, 1)"),
        (["embed", "RUN", "SCENES", "OUT", "--memory-mib", "0"], "memory_mib is 0, expected at least 1"),
        (["embed", "search", "/no/index", "--like", "x"], "holds no finished embeddings"),
        (["embed", "search", "INDEX", "--like", "x"], "'x' is no id or site"),
        (["embed", "search", "ZARR", "--like", "x"], "--format geoparquet"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, trained: Path, planet: Path, of_archive: Path, of_raster: dict[str, Path], tmp_path: Path
) -> None:
    names = {"RUN": trained, "SCENES": planet / "scenes", "OUT": tmp_path / "out", "INDEX": of_archive, "ZARR": of_raster["zarr"]}
    done = terraloom(*[str(names.get(a, a)) for a in arguments])
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
