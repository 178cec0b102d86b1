import numpy as np
import pytest

from pipeline.augment import AugmentConfig, SensorArrays, augment, crop, dihedral, light, speckle, turn
from pipeline.crops import MultiCrop, cut
from pipeline.errors import InputError
from pipeline.sensors import load_sensor

ALL = AugmentConfig(brightness=0.3, contrast=0.3, speckle_looks=3, crop_area=(0.3, 0.8))


def make(name: str, num_samples: int = 6, num_dates: int = 2, seed: int = 0, side_m: float = 640) -> SensorArrays:
    sensor, rng = load_sensor(name), np.random.default_rng(seed)
    size = round(side_m / sensor.gsd_m)
    low, high = (-25, 0) if sensor.unit == "dB" else (0, 500) if sensor.unit == "m" else (0.0, 0.6)
    pixels = rng.uniform(low, high, (num_samples, num_dates, len(sensor.bands), size, size)).astype(np.float32)
    is_valid = np.repeat(np.repeat(rng.random((num_samples, num_dates, size // 8, size // 8)) > 0.2, 8, -1), 8, -2)
    is_present = np.ones((num_samples, num_dates), bool)
    is_present[1, -1] = False
    is_valid[1, -1] = False
    pixels[~np.broadcast_to(is_valid[:, :, None], pixels.shape)] = np.nan
    return SensorArrays(sensor, pixels, is_valid, is_present, np.zeros((num_samples, num_dates)))


def three() -> dict[str, SensorArrays]:
    return {name: make(name) for name in ("sentinel2_l2a", "sentinel1_grd", "dsm")}


def valid_pixels(arrays: SensorArrays) -> np.ndarray:
    return arrays.pixels[np.broadcast_to(arrays.is_valid[:, :, None], arrays.pixels.shape)]


def test_dihedral_has_eight_symmetries() -> None:
    image = np.arange(9).reshape(3, 3)
    assert len({dihedral(image, s).tobytes() for s in range(8)}) == 8
    assert np.array_equal(dihedral(image, 0), image)


def test_the_generator_decides_everything() -> None:
    one, same, other = (augment(three(), ALL, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for name in one:
        assert np.array_equal(one[name].pixels, same[name].pixels, equal_nan=True)
        assert np.array_equal(one[name].is_valid, same[name].is_valid)
        assert not np.array_equal(one[name].is_valid, other[name].is_valid)


def test_every_sensor_keeps_what_is_not_its_own() -> None:
    """Light moves reflectance only, speckle radar only; heights are only turned and cropped."""
    config = AugmentConfig(symmetries=False, brightness=0.3, contrast=0.3, speckle_looks=3)
    before = three()
    for settings, touched in (
        (config, {"sentinel2_l2a", "sentinel1_grd"}),
        (AugmentConfig(symmetries=False, brightness=0.3), {"sentinel2_l2a"}),
        (AugmentConfig(symmetries=False, speckle_looks=3), {"sentinel1_grd"}),
        (AugmentConfig(symmetries=False), set()),
    ):
        after = augment(before, settings, np.random.default_rng(1))
        changed = {n for n in before if not np.array_equal(before[n].pixels, after[n].pixels, equal_nan=True)}
        assert changed == touched
        assert all(np.array_equal(before[n].is_valid, after[n].is_valid) for n in before)


def test_geometry_is_one_for_all_tiles_of_a_sample() -> None:
    """The same picture on every sensor and date stays the same picture."""
    rng = np.random.default_rng(0)
    picture = rng.uniform(0.1, 0.5, (6, 1, 1, 64, 64)).astype(np.float32)
    is_valid = np.ones((6, 2, 64, 64), bool)
    sensors = {}
    for name in ("sentinel2_l2a", "sentinel2_l1c"):
        base = make(name)
        sensors[name] = SensorArrays(
            base.sensor, np.broadcast_to(picture, base.pixels.shape).copy(), is_valid, base.is_present, base.time_days
        )
    after = augment(sensors, AugmentConfig(crop_area=(0.3, 0.8)), np.random.default_rng(2))
    first = after["sentinel2_l2a"].pixels[:, :1, :1]
    for arrays in after.values():
        np.testing.assert_allclose(arrays.pixels, np.broadcast_to(first, arrays.pixels.shape), rtol=1e-6)
    assert not np.allclose(first[0], first[1])
    turned = augment(sensors, AugmentConfig(), np.random.default_rng(2))["sentinel2_l2a"].pixels[:, 0, 0]
    found = [{s for s in range(8) if np.array_equal(dihedral(picture[n, 0, 0], s), turned[n])} for n in range(6)]
    assert all(len(s) == 1 for s in found)
    assert len(set.union(*found)) > 1


def test_speckle_is_gamma_in_power() -> None:
    """Mean power stays; its variance is 1 / looks of the square of the mean."""
    sensor = load_sensor("sentinel1_grd")
    flat = SensorArrays(
        sensor,
        np.full((4, 1, 2, 256, 256), -12, np.float32),
        np.ones((4, 1, 256, 256), bool),
        np.ones((4, 1), bool),
        np.zeros((4, 1)),
    )
    for looks in (1.0, 4.4, 30.0):
        after = speckle(flat, looks, np.random.default_rng(0))
        assert after.pixels.dtype == np.float32
        power = 10 ** (after.pixels.astype(float) / 10) / 10**-1.2
        assert power.mean() == pytest.approx(1, abs=0.01)
        assert power.var() == pytest.approx(1 / looks, rel=0.03)
        assert np.isfinite(after.pixels).all()
        neighbours = np.corrcoef(power[..., 1:].ravel(), power[..., :-1].ravel())[0, 1]
        assert abs(neighbours) < 0.01


def test_light_scales_about_the_mean_of_valid_pixels() -> None:
    before = make("sentinel2_l2a")
    after = light(before, 0.3, 0.4, np.random.default_rng(0))
    factors = set()
    for n in range(6):
        for t in range(2):
            if not before.is_valid[n, t].any():
                continue
            x, y = before.pixels[n, t][:, before.is_valid[n, t]], after.pixels[n, t][:, before.is_valid[n, t]]
            brightness = y.mean(1) / x.mean(1)
            contrast = (y - y.mean(1, keepdims=True)).std(1) / x.std(1) / brightness
            assert np.allclose(brightness, brightness[0], rtol=1e-4)  # all bands alike: colours keep their ratios
            assert 0.7 < brightness[0] < 1.3
            assert np.allclose(contrast, contrast[0], rtol=1e-3)
            assert 0.6 < contrast[0] < 1.4
            factors.add(round(float(brightness[0]), 4))
    assert len(factors) == 11  # each date its own


def test_a_crop_is_what_interpolation_by_hand_gives() -> None:
    arrays = make("dsm", num_samples=3, num_dates=1, side_m=80)
    pixels = np.nan_to_num(arrays.pixels, nan=-9999.0)
    corner, side = np.array([[0.1, 0.2], [0.3, 0.0], [0.5, 0.2]]), np.array([0.5, 0.7, 0.4])
    after = crop(arrays, corner, side)
    size, used = pixels.shape[-1], 0
    for n in range(3):
        for y in range(size):
            for x in range(size):
                at = [(corner[n, a] + side[n] * (k + 0.5) / size) * size - 0.5 for a, k in ((0, y), (1, x))]
                at = [min(max(v, 0), size - 1) for v in at]
                value, spoilt = 0.0, False
                for i in range(size):
                    for j in range(size):
                        weight = max(0, 1 - abs(at[0] - i)) * max(0, 1 - abs(at[1] - j))
                        if weight > 1e-6:
                            spoilt |= not arrays.is_valid[n, 0, i, j]
                            value += weight * pixels[n, 0, 0, i, j]
                if spoilt:
                    assert not after.is_valid[n, 0, y, x]
                elif after.is_valid[n, 0, y, x]:
                    used += 1
                    assert after.pixels[n, 0, 0, y, x] == pytest.approx(value, rel=1e-4)
    assert used > size
    assert np.isfinite(after.pixels).all()


def test_a_crop_of_everything_changes_nothing_and_radar_is_averaged_as_power() -> None:
    arrays = make("sentinel1_grd")
    whole = crop(arrays, np.zeros((6, 2)), np.ones(6))
    assert np.array_equal(whole.is_valid, arrays.is_valid)
    np.testing.assert_allclose(valid_pixels(whole), valid_pixels(arrays), atol=1e-4)
    stripes = np.where(np.arange(64) % 2, -10.0, -30.0).astype(np.float32)
    pixels = np.broadcast_to(stripes, (1, 1, 2, 64, 64)).copy()
    flat = SensorArrays(arrays.sensor, pixels, np.ones((1, 1, 64, 64), bool), np.ones((1, 1), bool), np.zeros((1, 1)))
    # Every second new pixel lies half-way between two old ones.
    between = crop(flat, np.array([[0.25, 0.25 + 0.25 / 64]]), np.array([0.5])).pixels[0, 0, 0, 0, 1::2]
    half = 10 * np.log10((0.1 + 0.001) / 2)
    assert np.allclose(between, half, atol=0.01)


def test_absent_tiles_stay_nowhere_valid() -> None:
    after = augment(three(), ALL, np.random.default_rng(0))
    for arrays in after.values():
        assert not arrays.is_valid[1, 1].any()
        assert not arrays.is_present[1, 1]
        assert np.isfinite(valid_pixels(arrays)).all()


def test_windows_are_the_same_ground_for_all_sensors() -> None:
    """A tile whose values say where they lie: cut windows of 10 m and 2.5 m sensors say the same place."""
    crops, rng = MultiCrop(2, 480, 3, 160, 40), np.random.default_rng(0)
    sensors = {name: make(name, 4, 1) for name in ("sentinel2_l2a", "rgb_aerial")}
    for name, arrays in sensors.items():
        size, gsd = arrays.pixels.shape[-1], arrays.sensor.gsd_m
        metres = (np.arange(size) + 0.5) * gsd
        ground = metres[:, None] * 1000 + metres[None]
        sensors[name] = SensorArrays(
            arrays.sensor,
            np.broadcast_to(ground, arrays.pixels.shape).astype(np.float32),
            np.ones_like(arrays.is_valid),
            arrays.is_present,
            arrays.time_days,
        )
    crops.check(640, [a.sensor for a in sensors.values()])
    corners = crops.corners(4, 640, rng)
    assert [len(c) for c in corners] == [4] * 5
    assert len({tuple(c) for c in np.concatenate(corners[2:]).tolist()}) > 6
    for corner, size_m in zip(corners, crops.sizes_m):
        assert (corner % 40 == 0).all()
        assert (corner >= 0).all()
        assert (corner + size_m <= 640).all()
        for arrays in sensors.values():
            window, gsd = cut(arrays, corner, size_m), arrays.sensor.gsd_m
            assert window.pixels.shape[-2:] == window.is_valid.shape[-2:] == (round(size_m / gsd),) * 2
            expected = (corner[:, 0] + gsd / 2) * 1000 + corner[:, 1] + gsd / 2
            assert window.pixels[:, 0, 0, 0, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_wrong_settings_are_one_line() -> None:
    sensors = [load_sensor("sentinel2_l2a")]
    with pytest.raises(InputError, match="a crop of 480 m does not fit a site of 320 m; use a smaller one"):
        MultiCrop().check(320, sensors)
    with pytest.raises(InputError, match=r"155 m of a crop are 15\.5 pixels of sensor 'sentinel2_l2a'; use a multiple of 10 m"):
        MultiCrop(local_m=155).check(640, sensors)
    with pytest.raises(InputError, match=r"crop_area is \(0, 1\), expected 0 < least <= largest <= 1"):
        AugmentConfig(crop_area=(0, 1))
    with pytest.raises(InputError, match="brightness 1"):
        AugmentConfig(brightness=1)


def test_turning_moves_validity_with_pixels() -> None:
    arrays = make("sentinel2_l2a")
    after = turn(arrays, np.arange(6))
    assert np.array_equal(np.isnan(after.pixels).any(2), ~after.is_valid)
    assert np.array_equal(dihedral(arrays.is_valid[5], 5), after.is_valid[5])
