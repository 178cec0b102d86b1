import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from scipy import ndimage

from pipeline.alignment import UNMOVED, Alignment
from pipeline.coregister import Comparison, register_scene
from pipeline.displacement import constant
from pipeline.errors import InputError
from pipeline.raster import read_on_grid
from pipeline.scene import Scene
from pipeline.sensors import load_sensor
from pipeline.simulation.acquisitions import Sun, acquisitions
from pipeline.simulation.config import CHANGE_DAY, SimulateConfig
from pipeline.simulation.frame import Frame
from pipeline.simulation.imaging import LOOKS
from pipeline.simulation.planet import BARE, BROADLEAF, CONIFER, WATER
from pipeline.simulation.simulate import simulate
from pipeline.stac import read_scenes

SMALL = SimulateConfig(size_m=1280, satellite_dates=1, aerial_dates=0, num_changes=0)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted((folder / "scenes").glob("*.tif")):
        with rasterio.open(path) as source:
            found[path.stem] = source.read()
    return found


def test_same_seed_same_pixels_and_nothing_twice(tmp_path: Path) -> None:
    simulate(tmp_path / "a", SMALL)
    simulate(tmp_path / "b", SMALL)
    simulate(tmp_path / "c", SMALL.model_copy(update={"seed": 1}))
    first, second, other = (pixels(tmp_path / name) for name in "abc")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first if name in other)
    stamp = (tmp_path / "a" / "simulate.json").stat().st_mtime_ns
    simulate(tmp_path / "a", SMALL)
    assert (tmp_path / "a" / "simulate.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another planet"):
        simulate(tmp_path / "a", SMALL.model_copy(update={"seed": 1}))


def scene(planet: Path, pattern: str, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return physical values (band, y, x) and validity of one scene."""
    path = [p for p in sorted((planet / "scenes").glob(pattern)) if not p.stem.endswith("_cloud")][index]
    with rasterio.open(path) as source:
        stored = source.read()
        return stored * source.scales[0] + source.offsets[0], (stored != source.nodata).all(axis=0)


def test_reflectance_is_in_range_whatever_the_files_offset(planet: Path) -> None:
    offsets = set()
    for path in sorted((planet / "scenes").glob("sentinel2_l2a*.tif")):
        if path.stem.endswith("_cloud"):
            continue
        with rasterio.open(path) as source:
            offsets.add(source.offsets[0])
            assert source.descriptions == load_sensor("sentinel2_l2a").band_names
    assert len(offsets) == 2
    medians = []
    for index in range(2):
        values, is_valid = scene(planet, "sentinel2_l2a*.tif", index)
        assert values[:, is_valid].min() > -0.1
        medians.append(np.median(values[:, is_valid], axis=1))
    assert np.abs(medians[0] - medians[1]).max() < 0.1


def truth_of(planet: Path) -> dict[str, dict]:
    return json.loads((planet / "truth" / "scenes.json").read_text())


def classes_under(planet: Path, found: Scene) -> tuple[np.ndarray, GeoBox]:
    """Return the true class of every pixel of `found` (255 outside the planet), and its own pixel grid."""
    with rasterio.open(found.assets[0].href) as source:
        geobox = GeoBox(source.shape, source.transform, str(source.crs))
    before, after = sorted((planet / "truth").glob("landcover_*.tif"))
    moved = truth_of(planet)[found.id]
    with rasterio.open(before) as source:
        truth_grid = GeoBox(source.shape, source.transform, str(source.crs))
    back_px = np.array([-moved["shift_y_m"], moved["shift_x_m"]]) / truth_grid.resolution.x
    classes, is_inside = read_on_grid(
        str(before if found.time.timetuple().tm_yday < CHANGE_DAY else after),
        (1,),
        geobox,
        255,
        Alignment(1.0, "truth", constant(back_px), truth_grid),
        categorical=True,
    )
    return np.where(is_inside, classes[0], 255), geobox


def scenes_of(planet: Path, sensor: str) -> list[Scene]:
    found, refused = read_scenes(str(planet / "scenes"))
    assert refused == {}
    return sorted((s for s in found if s.sensor.name == sensor), key=lambda s: (s.time, s.id))


@pytest.mark.parametrize("index", [1, 2])
def test_injected_shift_is_really_there(index: int, planet: Path) -> None:
    """The second Sentinel-2 date, cut in two scenes, lies off the first by what truth says, to 2 m."""
    first, *others = scenes_of(planet, "sentinel2_l2a")
    truth, moved = truth_of(planet), others[index - 1]
    expected = [truth[moved.id][f"shift_{axis}_m"] - truth[first.id][f"shift_{axis}_m"] for axis in "xy"]
    comparison = Comparison(moved, first, UNMOVED, 60.0)
    found = register_scene(comparison, lambda measure, blocks, coarse: [measure(block, coarse) for block in blocks])
    assert np.hypot(*expected) > 3
    centre = comparison.grid.extent.centroid.coords[0]
    assert found.at(*centre, comparison.grid.crs).shift_m == pytest.approx(expected, abs=1), found
    assert found.confidence > 0.9


@pytest.mark.parametrize("index", [0, 1])
def test_speckle_has_the_stated_looks(index: int, planet: Path) -> None:
    """Over still water backscatter is one constant times gamma noise: mean^2 / variance is the number of looks."""
    found = scenes_of(planet, "sentinel1_grd")[index]
    classes, geobox = classes_under(planet, found)
    values, is_valid = found.read(geobox, ("VV", "VH"))
    is_open_water = ndimage.binary_erosion((classes == WATER) & is_valid, iterations=4)
    looks = []
    for y in range(0, geobox.shape.y - 12, 12):
        for x in range(0, geobox.shape.x - 12, 12):
            window = (slice(y, y + 12), slice(x, x + 12))
            if is_open_water[window].all():
                power = 10 ** (values[:, *window] / 10)
                looks.append(power.mean(axis=(1, 2)) ** 2 / power.var(axis=(1, 2), ddof=1))
    assert len(looks) > 50
    np.testing.assert_allclose(np.median(looks, axis=0), LOOKS, rtol=0.1)


def test_land_cover_looks_like_itself(planet: Path) -> None:
    """In August leaves are green: NDVI of forest far above bare ground, and water below zero; clouds are white."""
    for found in scenes_of(planet, "sentinel2_l2a")[1:]:
        classes, geobox = classes_under(planet, found)
        values, is_valid = found.read(geobox, ("B02", "B04", "B08"))
        (mask,) = found.masks
        with rasterio.open(mask.href) as source:
            sky = source.read(1)
        ndvi = (values[2] - values[1]) / (values[2] + values[1] + 1e-6)
        medians = {k: np.median(ndvi[(classes == k) & is_valid & (sky == 0)]) for k in (WATER, BROADLEAF, CONIFER, BARE)}
        assert min(medians[BROADLEAF], medians[CONIFER]) > medians[BARE] + 0.3
        assert medians[WATER] < 0 < medians[BARE]
        clear, cloudy = (np.median(values[0][(sky == k) & is_valid]) for k in (0, 1))
        assert cloudy > 3 * clear
        assert (sky[is_valid] == 1).mean() == pytest.approx(truth_of(planet)[found.id]["cloud_fraction"], abs=2e-3)


def test_truth_names_every_scene_and_the_reference_is_right(planet: Path) -> None:
    truth = json.loads((planet / "truth" / "scenes.json").read_text())
    assert set(truth) == {p.stem for p in (planet / "scenes").glob("*.tif") if not p.stem.endswith("_cloud")}
    first = min((n for n in truth if n.startswith("sentinel2")), key=lambda n: truth[n]["time"])
    assert (truth[first]["shift_x_m"], truth[first]["shift_y_m"]) == (0, 0)
    assert max(np.hypot(t["shift_x_m"], t["shift_y_m"]) for t in truth.values()) > 3


def test_change_polygons_are_where_the_epochs_differ(planet: Path) -> None:
    before, after = sorted((planet / "truth").glob("landcover_*.tif"))
    changes = json.loads((planet / "truth" / "changes.geojson").read_text())["features"]
    with rasterio.open(before) as first, rasterio.open(after) as second:
        early, late, transform = first.read(1), second.read(1), first.transform
        names = json.loads(first.tags()["CLASSES"])
    outlines = [(feature["geometry"], number + 1) for number, feature in enumerate(changes)]
    number = rasterize(outlines, early.shape, transform=transform)
    assert np.array_equal(number > 0, early != late)
    assert 0 < (number > 0).mean() < 0.2
    for index, feature in enumerate(changes):
        assert set(late[number == index + 1]) == {names.index(feature["properties"]["after"])}


def test_another_year_is_another_visit_to_the_same_planet(tmp_path: Path) -> None:
    config = SimulateConfig(size_m=1280, satellite_dates=1, aerial_dates=0, num_changes=1)
    found = [simulate(tmp_path / str(year), config.model_copy(update={"year": year})) for year in (2023, 2024)]
    assert [sorted({name.split("_")[-1][:4] for name in summary["scenes"]}) for summary in found] == [["2023"], ["2024"]]
    for name in ("landcover_20230101.tif", "landcover_20230715.tif", "elevation.tif"):
        pixels = [rasterio.open(tmp_path / str(year) / "truth" / name).read() for year in (2023, 2024)]
        assert np.array_equal(*pixels)


def test_every_place_is_passed_at_the_same_time_of_its_own_day() -> None:
    elevations = []
    for lon in (11.0, -120.0, 170.0):
        config = SMALL.model_copy(update={"lon": lon})
        times = [a.time for a in acquisitions(config, Frame.at(config)) if a.sensor.quantity.endswith("reflectance")]
        elevations.append([Sun.at(time, config.lat, lon).elevation for time in times])
    np.testing.assert_allclose(elevations, elevations[:1] * 3, atol=np.radians(1))
    assert np.degrees(elevations[0][0]) > 30
