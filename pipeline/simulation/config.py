"""What a synthetic planet follows from."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

YEAR = 2023
"""In which land cover changes, on day CHANGE_DAY."""
CHANGE_DAY = 196
SITE_M = 640
"""Planets start on whole sites of this edge."""


class SimulateConfig(BaseModel):
    """A synthetic planet. Everything follows from these numbers; the same numbers give the same pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0)
    """Seed of the planet and of every scene."""
    size_m: int = Field(15360, ge=1280)
    """Edge of the square planet, metres; a multiple of 640."""
    lon: float = Field(11.0, ge=-180, lt=180)
    """Longitude of the centre, degrees east."""
    lat: float = Field(47.8, ge=25, le=65)
    """Latitude of the centre, degrees north (seasons are those of the northern temperate zone)."""
    optical: Literal["sentinel2_l2a", "sentinel2_l1c"] = "sentinel2_l2a"
    """Which Sentinel-2 product the optical satellite delivers."""
    satellite_dates: int = Field(4, ge=1, le=24)
    """Acquisitions per satellite sensor, spread from April to December."""
    aerial_dates: int = Field(1, ge=0, le=2)
    """Aerial campaigns: the first before, the second after the land-cover changes."""
    max_shift_m: float = Field(15.0, ge=0)
    """Largest geolocation error of a scene, metres; never more than 1.5 pixels of the sensor."""
    num_changes: int = Field(6, ge=0)
    """True land-cover changes, all in mid July."""
    cloud_cover: float = Field(0.12, ge=0, le=0.6)
    """Mean cloud fraction of the optical satellite scenes; the first is nearly clear."""
    year: int = Field(YEAR, ge=1990, le=2100)
    """Of the acquisitions: another one gives new scenes of the same planet; its land cover changes in July 2023."""

    @model_validator(mode="after")
    def _check(self) -> "SimulateConfig":
        if self.size_m % SITE_M:
            raise ValueError(f"size_m {self.size_m} is not a multiple of {SITE_M}; take {round(self.size_m / SITE_M) * SITE_M}")
        return self
