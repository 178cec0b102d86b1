"""One stem for all sensors, which sees a few bands of whichever it is given (RS-BYOL, Jain et al. 2022, arXiv 2205.02049).

What a band measures is not told, so the network learns what optical and radar share. Legend as in `stem.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.errors import InputError
from models.sensor import SensorSpec
from models.stems.sensor import SensorStemConfig
from models.stems.stem import Head, Stem, StemConfig

RED_GREEN_BLUE_NM = (665.0, 560.0, 490.0)


@dataclass(frozen=True)
class SharedStemConfig(StemConfig):
    """A stem of another kind for `num_channels` bands, built once for each pixel size and not for each sensor.

    Of a sensor with more bands it sees those nearest to red, green and blue, or the first where wavelengths are missing; of
    one with fewer, its bands over and over. Tiles that hold `num_channels` bands are seen as they are.
    """

    kind: str = "shared"
    num_channels: int = 1
    each: StemConfig = field(default_factory=SensorStemConfig)

    def __post_init__(self) -> None:
        if self.num_channels < 1 or isinstance(self.each, SharedStemConfig):
            raise InputError(
                f"a shared stem has {self.num_channels} channels of a '{self.each.kind}' stem, expected 1 or more of another"
            )

    def groups(self, spec: SensorSpec) -> tuple[tuple[int, ...], ...]:
        count = self.num_channels
        if spec.num_bands <= count:
            return (tuple(i % spec.num_bands for i in range(count)),)
        known = [(nm, i) for i, nm in enumerate(spec.wavelength_nm) if nm is not None]
        if count > len(RED_GREEN_BLUE_NM) or len(known) < len(RED_GREEN_BLUE_NM):
            return (tuple(range(count)),)
        return (tuple(min((abs(nm - wanted), i) for nm, i in known)[1] for wanted in RED_GREEN_BLUE_NM[:count]),)

    def build(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> "SharedStem":
        return SharedStem(self, sensors, token_size_m, width)

    def build_head(self, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> Head:
        raise InputError("a shared stem does not know which bands it saw and has no way back to pixels; use another stem")


class SharedStem(Stem):
    """Serves every sensor, seen in training or not, whose pixels are of a size that it was built for."""

    def __init__(self, config: SharedStemConfig, sensors: Sequence[SensorSpec], token_size_m: float, width: int) -> None:
        super().__init__()
        self.config = config
        self._likes = {spec.gsd_m: self._like(spec) for spec in sensors}
        self.each: nn.Module = config.each.build(tuple(self._likes.values()), token_size_m, width)

    def forward(self, pixels_BCYX: Tensor, spec: SensorSpec) -> Tensor:
        (bands,) = self.config.groups(spec)
        return self.each(pixels_BCYX[:, list(bands)], self._likes[spec.gsd_m])

    def check_unseen(self, spec: SensorSpec) -> None:
        if spec.gsd_m not in self._likes:
            sizes = ", ".join(f"{gsd:g}" for gsd in self._likes)
            raise InputError(f"sensor '{spec.name}' has pixels of {spec.gsd_m:g} m, this shared stem takes {sizes} m; resample it")

    def _like(self, spec: SensorSpec) -> SensorSpec:
        """Return the nameless sensor that stands for all of one pixel size."""
        count = self.config.num_channels
        bands, nothing = tuple(f"band_{i}" for i in range(count)), (None,) * count
        name = f"pixels_of_{spec.gsd_m:g}_m".replace(".", "_")
        return SensorSpec(name, "passive", "any", "1", spec.gsd_m, bands, nothing, (0.0,) * count, (1.0,) * count)
