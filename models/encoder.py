"""The sealed public face: batches in physical units to embeddings.

This file decides what a trained model is on disk and what it accepts. `encode` always checks bands, units, pixel size
and values and always normalises with the statistics saved beside the weights; objectives train through `features`.
Legend: B batch, T time, C channel, Y X pixels, y x tokens or cells of the last map, D width.
"""

import json
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.config import from_dict, hint, to_dict
from models.errors import InputError
from models.gather import take
from models.initialise import initialise
from models.moe import MixtureOfExperts
from models.position_embedding import PositionConfig, PositionEmbedding, TokenGrid
from models.remote import digest_of, local_folder
from models.resnet import Resnet, ResnetConfig
from models.sensor import SensorSpec
from models.stems import load as load_stems
from models.stems.sensor import SensorStemConfig
from models.stems.stem import MaskToken, StemConfig, is_mostly_invalid
from models.swin import Swin, SwinConfig
from models.values import check_values
from models.vit import Vit, VitConfig

FORMAT, VERSION = "terraloom-encoder", 3
MIN_VARIANCE = 1e-6
"""Added before a root, whose slope at 0 has no end."""


@dataclass(frozen=True)
class EncoderConfig:
    """Everything needed to build an encoder and to use it: backbone, ground size of a token, sensors with statistics.

    pool says what `Embedding.pooled` is: the mean of the last map, of every stage's map (concatenated), the class token, or
    moments: of every stage's map the mean and the standard deviation over the ground, which tell textures apart.
    hidden says what stands for ground that is hidden, invalid or absent: a learned token, or nothing at all (vit only).
    positions are a vit's alone. frames says whether tokens of several dates attend to one another (vit only) or not.
    """

    backbone: SwinConfig | VitConfig | ResnetConfig
    token_size_m: float
    sensors: tuple[SensorSpec, ...]
    pool: Literal["last", "stages", "moments", "class"] = "last"
    hidden: Literal["token", "absent"] = "token"
    stem: StemConfig = field(default_factory=SensorStemConfig)
    positions: PositionConfig = field(default_factory=PositionConfig)
    frames: Literal["apart", "together"] = "apart"

    def __post_init__(self) -> None:
        names = [sensor.name for sensor in self.sensors]
        if not names or len(set(names)) != len(names):
            raise InputError(f"encoder has sensors {names}, expected at least one and no name twice")
        for sensor in self.sensors:
            sensor.patch_px(self.token_size_m)
        is_vit = isinstance(self.backbone, VitConfig)
        has_class = isinstance(self.backbone, VitConfig) and self.backbone.has_class_token
        if (self.hidden == "absent" and not is_vit) or (self.pool == "class" and not has_class):
            raise InputError(
                f"encoder has hidden '{self.hidden}' and pool '{self.pool}' with a {self.backbone.kind}; "
                f"'absent' needs a vit, 'class' one with a class token"
            )
        groups = max(len(self.stem.groups(sensor)) for sensor in self.sensors)
        if not is_vit and (groups > 1 or self.frames == "together"):
            raise InputError(
                f"encoder has a {self.backbone.kind}, {groups} groups of bands and dates {self.frames}; "
                f"several tokens of one place need a vit"
            )

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "EncoderConfig":
        load_stems()
        return from_dict(cls, content, "encoder")

    @property
    def pooled_width(self) -> int:
        widths = [self.backbone.width(stage) for stage in range(self.backbone.num_stages)]
        return {"stages": sum(widths), "moments": 2 * sum(widths)}.get(self.pool, widths[-1])


@dataclass(frozen=True)
class Embedding:
    """What an encoder makes of one sensor's tiles.

    pooled    (B, T, D) float32, mean over the cells with any valid pixel; over all cells where a tile has none
    grid      (B, T, y, x, D) float32, last map
    is_valid  (B, T, y, x) bool, cells with any valid pixel; nowhere True for an absent tile
    """

    pooled: Tensor
    grid: Tensor
    is_valid: Tensor


@dataclass(frozen=True)
class Features:
    """What a backbone makes of one sensor's tokens, in the parameters' dtype, with gradients.

    maps     (B, y, x, D) for each stage
    prefix   (B, P, D), class token and registers; None for a backbone without
    balance  the experts' balance loss, a float32 scalar, 0 without experts
    """

    maps: list[Tensor]
    prefix: Tensor | None
    balance: Tensor


class Encoder(nn.Module):
    """One stem per sensor, one shared backbone, and a mask token if hidden ground is to have one."""

    def __init__(self, config: EncoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.embed_dim
        self.stem = config.stem.build(config.sensors, config.token_size_m, width)
        self.mask_token = MaskToken(width) if config.hidden == "token" else None
        is_vit = isinstance(config.backbone, VitConfig)
        self.positions = PositionEmbedding(config.positions, width) if is_vit else None
        self.backbone = _backbone(config.backbone)
        initialise(self, generator)

    def spec(self, sensor: str) -> SensorSpec:
        """Return what this encoder knows about `sensor`, or raise InputError naming the sensors it knows."""
        for spec in self.config.sensors:
            if spec.name == sensor:
                return spec
        known = [spec.name for spec in self.config.sensors]
        raise InputError(f"sensor '{sensor}' is unknown to this encoder (has {', '.join(known)}){hint(sensor, known)}")

    def extended(self, spec: SensorSpec) -> "Encoder":
        """Return this encoder, sharing its weights, for one more sensor that it was not trained on, or for other bands of one.

        Raise InputError, saying why, if the stem cannot make weights from a description.
        """
        others = tuple(known for known in self.config.sensors if known.name != spec.name)
        other = Encoder.__new__(Encoder)
        nn.Module.__init__(other)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if not k.startswith("_")})
        other._modules.update(self._modules)
        other.config = replace(self.config, sensors=(*others, spec))
        self.stem.check_unseen(spec)
        return other

    @torch.no_grad()
    def encode(self, batch: Batch) -> dict[str, Embedding]:
        """Return an embedding per sensor of `batch`, computed in evaluation mode on this encoder's device.

        Raise InputError if a sensor is unknown or its bands, unit, pixel size, shape or values are not as in training.
        """
        was_training = self.training
        self.eval()
        try:
            batch = batch.to(self._device)
            return {name: self._embed(tiles, self.spec(name), batch.lonlat) for name, tiles in batch.tiles.items()}
        finally:
            self.train(was_training)

    def examined(
        self, tiles: Tiles, sensor: str, lonlat_deg: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Features, Tensor]:
        """Return what the backbone makes of tiles that were checked and normalised as in `encode`, with gradients.

        And (B*T, y, x) bool, cells of the last map with any valid pixel. Raise InputError as `encode` does.
        """
        spec = self.spec(sensor)
        spec.check(tiles, self.config.token_size_m)
        normalised, _ = self.normalise(tiles, spec)
        is_valid = tiles.is_observed.flatten(0, 1)
        check_values(normalised, is_valid, spec)
        features = self.features(
            normalised, is_valid, sensor, generator=generator, time_days=tiles.time_days, lonlat_deg=lonlat_deg
        )
        return features, self.cells(is_valid, sensor)

    def _embed(self, tiles: Tiles, spec: SensorSpec, lonlat_deg: Tensor) -> Embedding:
        features, is_valid_cell = self.examined(tiles, spec.name, lonlat_deg)
        shape = tiles.is_present.shape
        return Embedding(
            self.pool(features, is_valid_cell).unflatten(0, shape),
            features.maps[-1].float().unflatten(0, shape),
            is_valid_cell.unflatten(0, shape),
        )

    def normalise(self, tiles: Tiles, spec: SensorSpec, is_hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return pixels in network units (B*T, C, Y, X) float32 and the level (B*T, C, 1, 1) that was subtracted.

        is_hidden (B*T, Y, X) bool keeps hidden pixels out of the level.
        """
        pixels, is_valid = tiles.pixels.flatten(0, 1), tiles.is_observed.flatten(0, 1)
        level = spec.level(pixels, is_valid, is_hidden)
        return spec.normalise(pixels, is_valid, level), level

    def features(
        self,
        normalised: Tensor,
        is_valid: Tensor,
        sensor: str,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        time_days: Tensor | None = None,
        lonlat_deg: Tensor | None = None,
    ) -> Features:
        """Return what the backbone makes of pixels in network units.

        normalised (B*T, C, Y, X), is_valid (B*T, Y, X), mask (B*T, y, x) over tokens, True = hidden, as are mostly invalid
        patches. time_days (B, T) and lonlat_deg (B, 2): by default one date a sample, both unknown. The generator is needed
        only for drop_path and withheld metadata in training.
        """
        spec = self.spec(sensor)
        is_hidden = is_mostly_invalid(is_valid, spec.patch_px(self.config.token_size_m))
        is_hidden = is_hidden if mask is None else is_hidden | mask
        if not isinstance(self.backbone, Vit):
            tokens = self.stem(normalised, spec)[:, 0]
            if self.mask_token is not None:
                tokens = self.mask_token(tokens, is_hidden)
            maps, balance = self.backbone(tokens, generator)
            return Features(maps, None, balance)
        tokens_BND, grid = self.tokens(normalised, spec, is_hidden, time_days, lonlat_deg, generator)
        is_key = None
        if self.mask_token is None:
            is_key = ~is_hidden.view(tokens_BND.shape[0], grid.times, 1, -1).expand(-1, -1, grid.groups, -1).flatten(1)
        outputs, prefix, balance = self.backbone(tokens_BND, is_key, generator)
        maps = [output.unflatten(1, grid.shape).mean(2).flatten(0, 1) for output in outputs]
        return Features(maps, prefix.repeat_interleave(grid.times, 0), balance)

    def tokens(
        self,
        normalised: Tensor,
        spec: SensorSpec,
        is_hidden: Tensor | None = None,
        time_days: Tensor | None = None,
        lonlat_deg: Tensor | None = None,
        generator: torch.Generator | None = None,
        scale: Tensor | None = None,
    ) -> tuple[Tensor, TokenGrid]:
        """Return a vit's tokens (B, N, D) with their positions, all dates of a sample together where `frames` says so.

        Arguments as of `features`; scale as of `TokenGrid`.
        """
        assert self.positions is not None
        tokens = self.stem(normalised, spec)
        if self.mask_token is not None and is_hidden is not None:
            tokens = self.mask_token(tokens, is_hidden[:, None].expand(tokens.shape[:-1]))
        # Not len(): a traced graph would be of that many tiles only.
        unknown = tokens.new_full((tokens.shape[0], 2), torch.nan, dtype=torch.float64)
        time_days = unknown[:, :1] if time_days is None else time_days
        lonlat_deg = unknown[: time_days.shape[0]] if lonlat_deg is None else lonlat_deg
        if self.config.frames == "apart":
            lonlat_deg, time_days = lonlat_deg.repeat_interleave(time_days.shape[1], 0), time_days.reshape(-1, 1)
        groups, rows, columns = tokens.shape[1:4]
        grid = TokenGrid(time_days.shape[1], groups, rows, columns, time_days, lonlat_deg, scale)
        flat = tokens.unflatten(0, time_days.shape).flatten(1, 4)
        return flat + self.positions(grid, generator).to(flat), grid

    def some_tokens(
        self, normalised: Tensor, spec: SensorSpec, grid: TokenGrid, index_BK: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return of the tokens that `tokens` makes on `grid` those at `index_BK`, (B, K, D): others are not made where it can."""
        assert self.positions is not None
        if grid.times == 1:
            tokens = self.stem.some(normalised, spec, index_BK)
        else:
            tokens = take(self.stem(normalised, spec).unflatten(0, grid.time_days.shape).flatten(1, 4), index_BK)
        return tokens + take(self.positions(grid, generator).expand(len(tokens), -1, -1), index_BK).to(tokens)

    def pooled(self, tiles: Tiles, sensor: str, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return (B*T, D) float32 and the experts' balance loss, with gradients: what objectives compare."""
        spec = self.spec(sensor)
        spec.check(tiles, self.config.token_size_m)
        is_valid = tiles.is_observed.flatten(0, 1)
        normalised, _ = self.normalise(tiles, spec)
        features = self.features(normalised, is_valid, sensor, generator=generator, time_days=tiles.time_days)
        return self.pool(features, self.cells(is_valid, sensor)), features.balance

    def cells(self, is_valid: Tensor, sensor: str) -> Tensor:
        """Return (B, y, x) bool over the last map, True where a cell has any valid pixel of (B, Y, X)."""
        patch = self.spec(sensor).patch_px(self.config.token_size_m)
        share = F.max_pool2d(is_valid.float()[:, None], patch)
        return F.max_pool2d(share, self.config.backbone.stride, ceil_mode=True)[:, 0] > 0

    def pool(self, features: Features, is_valid_cell: Tensor) -> Tensor:
        """Return (B, D) float32: the class token, or moments over valid cells, over all cells where none is valid."""
        if self.config.pool == "class":
            assert features.prefix is not None
            return features.prefix[:, 0].float()
        chosen = [features.maps[-1].float()]
        if self.config.pool in ("stages", "moments"):
            chosen = [F.layer_norm(m.float(), m.shape[-1:]) for m in features.maps[:-1]] + chosen
        is_any = is_valid_cell.any(-1, keepdim=True).any(-2, keepdim=True)
        weight = (is_valid_cell | ~is_any).float()
        means = [_weighted_mean(m, weight) for m in chosen]
        if self.config.pool != "moments":
            return torch.cat(means, -1)
        variances = [_weighted_mean((m - mean[:, None, None]).square(), weight) for m, mean in zip(chosen, means)]
        return torch.cat([*means, *((variance + MIN_VARIANCE).sqrt() for variance in variances)], -1)

    def save(self, folder: str | Path, extra: dict[str, Any] | None = None) -> None:
        """Write model.safetensors (float32) and config.json (configuration; `extra`, e.g. the recipe) to `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().float().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        digest = digest_of(folder / "model.safetensors")
        content = {"format": FORMAT, "version": VERSION, "sha256": digest, "encoder": self.config.to_dict(), "extra": extra or {}}
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "Encoder":
        """Return the encoder saved in `folder`, float32, in evaluation mode, on the CPU.

        `folder` may be an https:// URL, or s3:// where s3fs is installed: copied once, see `remote.py`.
        """
        folder = local_folder(str(folder)) if "://" in str(folder) else Path(folder)
        content = _read_config(folder)
        encoder = cls(EncoderConfig.from_dict(content["encoder"]))
        path = folder / "model.safetensors"
        try:
            encoder.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise InputError(f"{path} is missing, expected beside config.json; copy the whole model folder") from None
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{path} is not the model of its config.json ({reason}); copy the folder again") from None
        return encoder.eval()

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_active_parameters(self) -> int:
        """Parameters one token meets: all but the experts it is not sent to."""
        return self.num_parameters - sum(m.num_idle_parameters for m in self.modules() if isinstance(m, MixtureOfExperts))

    @property
    def _device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device


def _backbone(config: SwinConfig | VitConfig | ResnetConfig) -> Swin | Vit | Resnet:
    if isinstance(config, ResnetConfig):
        return Resnet(config)
    return Swin(config) if isinstance(config, SwinConfig) else Vit(config)


def _weighted_mean(map_ByxD: Tensor, weight_BYX: Tensor) -> Tensor:
    """Return (B, D): mean of a map under weights given on the last, coarser map."""
    factor = -(-map_ByxD.shape[1] // weight_BYX.shape[1])
    weight = weight_BYX.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    weight = weight[:, : map_ByxD.shape[1], : map_ByxD.shape[2]]
    return torch.einsum("byxd,byx->bd", map_ByxD, weight) / weight.sum((1, 2))[:, None]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise InputError(f"{path} is missing, expected a model folder with config.json and model.safetensors") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}), expected a file written by Encoder.save") from None
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise InputError(
            f"{path} is of format {found[0]!r} version {found[1]!r}, expected '{FORMAT}' version {VERSION}; "
            f"use a folder written by Encoder.save of this release"
        )
    return content
