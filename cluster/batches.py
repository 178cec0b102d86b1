"""From the pipeline's arrays to the models' tensors: the one seam between the two rooms."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from models.batch import Batch, Tiles
from models.sensor import SensorSpec
from pipeline.archive import Archive
from pipeline.augment import SensorArrays
from pipeline.errors import InputError
from pipeline.sensors import Sensor
from pipeline.stream import MicroBatch


def to_batch(micro: MicroBatch, index: int | None = None) -> Batch:
    """Return a micro-batch as the models take it; `index` replaces the count of earlier steps of its sensor set."""
    lonlat, index = torch.from_numpy(np.array(micro.lonlat_deg, np.float64)), micro.step.index if index is None else index

    def batch(sensors: dict[str, SensorArrays], crops: tuple[Batch, ...] = ()) -> Batch:
        return Batch({name: to_tiles(arrays) for name, arrays in sensors.items()}, lonlat, index, crops)

    features = {name: tuple(map(_to_map, stages)) for name, stages in micro.features.items()}
    return replace(batch(micro.sensors, tuple(map(batch, micro.crops))), features=features)


def _to_map(stage: np.ndarray) -> torch.Tensor:
    """Return (B*T, y, x, D) float32 of (B, T, D, y, x)."""
    return torch.from_numpy(stage).flatten(0, 1).permute(0, 2, 3, 1).float()


def to_tiles(arrays: SensorArrays) -> Tiles:
    return Tiles(
        pixels=torch.from_numpy(np.ascontiguousarray(arrays.pixels)),
        is_valid=torch.from_numpy(np.ascontiguousarray(arrays.is_valid)),
        is_present=torch.from_numpy(np.array(arrays.is_present, bool)),
        time_days=torch.from_numpy(np.array(arrays.time_days, np.float64)),
        bands=arrays.sensor.band_names,
        unit=arrays.sensor.unit,
        gsd_m=arrays.sensor.gsd_m,
    )


def sensor_specs(archive: Archive) -> tuple[SensorSpec, ...]:
    """Return what an encoder must know of each sensor of the archive that has training tiles."""
    statistics = archive.read_statistics()["sensors"]
    missing = sorted(set(statistics) - set(archive.sensors))
    if missing:
        raise InputError(f"statistics.json of '{archive.url}' names sensors {missing} that archive.json lacks; run the job again")
    return tuple(_spec(archive.sensors[name], values) for name, values in sorted(statistics.items()))


def _spec(sensor: Sensor, statistics: dict) -> SensorSpec:
    # Heights are normalised about each tile's own level, so their spread is the one inside tiles.
    std = statistics["std_within_tile" if sensor.quantity == "height" else "std"]
    return spec_of(sensor, statistics["mean"], [max(value, 1e-6) for value in std])


def spec_of(sensor: Sensor, mean: Iterable[float], std: Iterable[float]) -> SensorSpec:
    """Return a sensor as models know it, with the statistics of its bands."""
    return SensorSpec(
        name=sensor.name,
        sensing=sensor.sensing,
        quantity=sensor.quantity,
        unit=sensor.unit,
        gsd_m=sensor.gsd_m,
        bands=sensor.band_names,
        wavelength_nm=tuple(band.wavelength_nm for band in sensor.bands),
        mean=tuple(mean),
        std=tuple(std),
        bandwidth_nm=tuple(band.bandwidth_nm for band in sensor.bands),
        frequency_ghz=tuple(band.frequency_ghz for band in sensor.bands),
        polarisation=tuple(band.polarisation for band in sensor.bands),
    )
