"""Scenes: raw acquisitions of one sensor, read as physical values with validity on any pixel grid.

Only here do the numbers of files become physical ones. Leaves to `scan` and `stac` what files and items say of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pydantic import BaseModel, ConfigDict

from pipeline.alignment import UNMOVED, Alignment
from pipeline.errors import InputError
from pipeline.masks import Mask, covered
from pipeline.raster import read_on_grid
from pipeline.sensors import Sensor, sensor_from_dict
from pipeline.units import DECIBELS


class Asset(BaseModel):
    """One image, or several of equal make: form(stored * scale + offset) is in the sensor's unit.

    `indexes` count the bands of the file, or the layers of `variable` in a cube, from 1; `bands` names them.
    """

    model_config = ConfigDict(frozen=True)

    href: str
    bands: tuple[str, ...]
    indexes: tuple[int, ...]
    scale: float
    offset: float
    nodata: float | None
    form: str
    variable: str | None = None


class MaskAsset(BaseModel):
    """One quality layer's file."""

    model_config = ConfigDict(frozen=True)

    href: str
    mask: Mask


@dataclass(frozen=True)
class Scene:
    """One acquisition of one sensor. `footprint` is the outline of the finest file in lon/lat."""

    id: str
    sensor: Sensor
    time: datetime
    assets: tuple[Asset, ...]
    masks: tuple[MaskAsset, ...]
    footprint: Geometry

    def to_dict(self) -> dict[str, Any]:
        """Return what `scene_from_dict` makes the same scene of."""
        return {
            "id": self.id,
            "sensor": self.sensor.model_dump(mode="json", exclude_defaults=True),
            "time": self.time.isoformat(),
            "assets": [asset.model_dump(mode="json") for asset in self.assets],
            "masks": [mask.model_dump(mode="json") for mask in self.masks],
            "footprint": self.footprint.json,
        }

    @property
    def hrefs(self) -> list[str]:
        """Where its files are."""
        return sorted({asset.href for asset in self.assets} | {mask.href for mask in self.masks})

    @property
    def bands(self) -> tuple[str, ...]:
        present = {band for asset in self.assets for band in asset.bands}
        return tuple(name for name in self.sensor.band_names if name in present)

    def read(self, geobox: GeoBox, bands: tuple[str, ...], alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
        """Return physical values (bands, y, x) float32 and (y, x) bool validity (all bands have data) on `geobox`.

        `alignment` corrects the stated coordinates; see `raster.read_on_grid`. Clouds stay valid here.
        """
        return self._read(geobox, bands, alignment, np.float32, self.sensor.to_physical)

    def read_stored(self, geobox: GeoBox, sensor: Sensor, alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
        """Return what `read` does of all bands of `sensor`, as it stores them."""
        return self._read(geobox, sensor.band_names, alignment, sensor.dtype, sensor.restored)

    def _read(
        self,
        geobox: GeoBox,
        bands: tuple[str, ...],
        alignment: Alignment,
        dtype: DTypeLike,
        convert: Callable[[np.ndarray, float, float, str], np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray]:
        converted = np.zeros((len(bands), *geobox.shape), dtype)
        is_valid = np.ones(geobox.shape, bool)
        missing = set(bands)
        for asset in self.assets:
            wanted = [name for name in asset.bands if name in missing]
            if not wanted:
                continue
            indexes = tuple(asset.indexes[asset.bands.index(name)] for name in wanted)
            numbers, has_data = read_on_grid(asset.href, indexes, geobox, asset.nodata, alignment, variable=asset.variable)
            for name, band in zip(wanted, numbers):
                converted[bands.index(name)] = convert(band, asset.scale, asset.offset, asset.form)
            if asset.form in DECIBELS:  # what is not above 0 has no logarithm
                has_data &= (numbers * asset.scale + asset.offset > 0).all(axis=0)
            is_valid &= has_data
            missing -= set(wanted)
        if missing:
            raise InputError(f"scene '{self.id}' has no band {sorted(missing)} (has {', '.join(self.bands)})")
        return converted, is_valid

    def read_masks(self, geobox: GeoBox, alignment: Alignment = UNMOVED) -> tuple[np.ndarray, np.ndarray]:
        """Return two (y, x) bool: under cloud or its shadow; without measurement. All False where no mask says otherwise."""
        is_cloud, is_gap = np.zeros(geobox.shape, bool), np.zeros(geobox.shape, bool)
        for file in self.masks:
            layers = tuple(range(1, file.mask.num_layers + 1))
            stored, has_data = read_on_grid(file.href, layers, geobox, None, alignment, categorical=True)
            is_cloud |= covered(file.mask.cloud, stored) & has_data
            is_gap |= covered(file.mask.gap, stored) & has_data
        return is_cloud, is_gap


def scene_from_dict(record: dict[str, Any]) -> Scene:
    return Scene(
        record["id"],
        sensor_from_dict(record["sensor"], f"of scene '{record['id']}'"),
        datetime.fromisoformat(record["time"]),
        tuple(Asset.model_validate(asset) for asset in record["assets"]),
        tuple(MaskAsset.model_validate(mask) for mask in record["masks"]),
        Geometry(record["footprint"], "EPSG:4326"),
    )
