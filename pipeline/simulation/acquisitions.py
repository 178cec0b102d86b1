"""Which sensor looks when, from which side, and how much of the planet it sees."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from pyproj import CRS

from pipeline.sensors import Sensor, load_sensor
from pipeline.simulation.config import SimulateConfig
from pipeline.simulation.frame import Frame

HOURS_AT_LON = 11.0
"""Longitude at which the hours of passes below are UTC."""
WHOLE = ((0, 0, 1, 1),)


@dataclass(frozen=True)
class Acquisition:
    """One pass of one sensor: one sky and one ground, cut into one scene per extent."""

    sensor: Sensor
    time: datetime
    crs: CRS
    extents: tuple[tuple[float, float, float, float], ...] = WHOLE
    swath: float | None = None
    """Where a slanted swath edge cuts the planet, as a share of its width; pixels beyond have no data."""
    swath_side: Literal["east", "west"] = "east"
    number: int = 0

    @property
    def day(self) -> int:
        return self.time.timetuple().tm_yday

    def scene_ids(self) -> list[str]:
        stem = f"{self.sensor.name}_{self.time:%Y%m%dT%H%M%S}"
        return [stem] if len(self.extents) == 1 else [f"{stem}_{chr(ord('a') + k)}" for k in range(len(self.extents))]

    def sees(self, planet_m: np.ndarray, size_m: float) -> np.ndarray:
        """True where a pixel lies on the planet and inside the swath, whose edge slants like a polar orbit (about 12 degrees)."""
        south, east = planet_m
        is_seen = (south >= 0) & (south < size_m) & (east >= 0) & (east < size_m)
        if self.swath is not None:
            beyond_m = east - self.swath * size_m + (south - size_m / 2) * np.tan(np.radians(12))
            is_seen &= beyond_m < 0 if self.swath_side == "east" else beyond_m > 0
        return is_seen


def acquisitions(config: SimulateConfig, frame: Frame) -> list[Acquisition]:
    """Say which sensor looks when, in which map projection and how much of the planet it sees."""
    optical, radar, aerial, dsm = (load_sensor(n) for n in (config.optical, "sentinel1_grd", "rgb_aerial", "dsm"))
    zone = frame.crs.utm_zone
    earlier = (config.lon - HOURS_AT_LON) / 15  # every place is passed at the same time of its own day
    neighbour = CRS.from_epsg(32600 + (int(zone[:-1]) % 60 + 1)) if zone else frame.crs
    passes = []

    def look(sensor: Sensor, day: float, hour: float, crs: CRS, **given: Any) -> None:
        passes.append(Acquisition(sensor, moment(config.year, day, hour - earlier), crs, **given))

    for number in range(config.satellite_dates):
        day, kind = 95 + 274 * number / config.satellite_dates, number % 4
        halves = ((0, 0, 0.6, 1), (0.4, 0, 1, 1)) if kind == 1 else WHOLE
        look(optical, day, 10.5, frame.crs, extents=halves, swath=0.85 if kind == 2 else None, number=number)
        hour = 17.1 if number % 2 else 5.4
        look(radar, day + 2, hour, neighbour, swath=0.12 if kind == 1 else None, swath_side="west", number=number)
    for number in range(config.aerial_dates):
        look(aerial, 172 + 60 * number, 9.5, CRS.from_epsg(3857), extents=((0, 0.45, 1, 1), (0, 0, 1, 0.55)), number=number)
    look(dsm, 110, 9.0, CRS.from_epsg(4326))
    return passes


@dataclass(frozen=True)
class Sun:
    """Where the sun stands: azimuth clockwise from north and elevation, radians."""

    azimuth: float
    elevation: float

    @classmethod
    def at(cls, when: datetime, lat: float, lon: float) -> "Sun":
        """To about a degree (no equation of time), and at least 8 degrees above the horizon."""
        declination = np.radians(-23.44) * np.cos(2 * np.pi * (when.timetuple().tm_yday + 10) / 365)
        hour_angle = np.radians((when.hour + when.minute / 60 + lon / 15 - 12) * 15)
        phi = np.radians(lat)
        elevation = np.arcsin(np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(hour_angle))
        azimuth = np.pi + np.arctan2(np.sin(hour_angle), np.cos(hour_angle) * np.sin(phi) - np.tan(declination) * np.cos(phi))
        return cls(float(azimuth), float(max(elevation, np.radians(8))))


def moment(year: int, day: float, hour: float) -> datetime:
    """To the minute; `hour` is UTC and may lie on the day before or after."""
    return datetime(year, 1, 1, tzinfo=UTC) + timedelta(days=int(day) - 1, minutes=round(60 * hour))
