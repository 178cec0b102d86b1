"""Several tokens for each place, one for each group of similar bands (SatMAE, Cong et al. 2022, arXiv 2207.08051)."""

from dataclasses import dataclass

from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig

SENTINEL2_GROUPS = (("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A"), ("B11", "B12"))
"""As published: 10 m, red edge, short-wave infrared; B01, B09 and B10 are in none and left out."""


@dataclass(frozen=True)
class BandGroupStemConfig(SensorStemConfig):
    """Groups of bands by name, as published without a norm; a sensor with none of the bands is one group of all its bands."""

    kind: str = "band_groups"
    has_norm: bool = False
    band_groups: tuple[tuple[str, ...], ...] = SENTINEL2_GROUPS

    def groups(self, spec: SensorSpec) -> tuple[tuple[int, ...], ...]:
        found = [tuple(spec.bands.index(band) for band in group if band in spec.bands) for group in self.band_groups]
        return tuple(group for group in found if group) or super().groups(spec)
