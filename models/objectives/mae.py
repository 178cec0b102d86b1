"""MAE: encode a quarter of the patches, predict the pixels of the rest (He et al. 2022, arXiv 2111.06377)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.masking import random_tokens, upsample
from models.objectives.panel import Panel
from models.positions import sincos_2d
from models.sensor import SensorSpec
from models.stems import MaskToken, is_mostly_invalid
from models.vit import Vit, VitConfig

PATCH_EPS = 1e-6


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Return (B, N, patch_size^2 * C) of images (B, C, Y, X): patches row by row; in each, pixels row by row, bands last."""
    batch, bands, rows, columns = image.shape
    if rows % patch_size or columns % patch_size:
        raise InputError(f"an image of {rows} x {columns} pixels is not a whole number of patches of {patch_size}; crop or pad it")
    parts = image.view(batch, bands, rows // patch_size, patch_size, columns // patch_size, patch_size)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch_size**2 * bands)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """Return the images (B, C, Y, X) of which `patchify` makes `patches`."""
    parts = patches.view(len(patches), *grid, patch_size, patch_size, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, grid[0] * patch_size, grid[1] * patch_size)


def masked_mse(prediction: Tensor, target: Tensor, is_masked: Tensor, normalise_patches: bool) -> Tensor:
    """Return the squared error, mean over a patch's numbers, then over all masked patches of the batch, a scalar.

    prediction, target (B, N, D); is_masked (B, N). With normalise_patches each target patch is scaled to zero mean and unit
    variance (over D - 1, plus 1e-6) first. Nothing masked gives 0.
    """
    if normalise_patches:
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (variance + PATCH_EPS).sqrt()
    error_BN = (prediction - target).pow(2).mean(-1)
    return (error_BN * is_masked).sum() / is_masked.sum().clamp_min(1)


@dataclass(frozen=True)
class MaeConfig:
    """mask_ratio of the valid tokens is hidden; the decoder has its own width and depth."""

    decoder: VitConfig
    mask_ratio: float = 0.75
    normalise_patches: bool = True
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.decoder.has_class_token or self.decoder.num_registers:
            raise InputError("mae's decoder takes the encoder's class token and registers; it can have none of its own")
        if not 0 < self.mask_ratio < 1:
            raise InputError(f"mae has mask_ratio {self.mask_ratio}, expected between 0 and 1")


class Mae(nn.Module):
    """Encoder of what is visible, a small transformer over all places, one linear map to pixels per sensor.

    One sensor a batch, taking turns, so that every rank runs the same modules. `encoder` is what is kept.
    """

    def __init__(self, encoder: EncoderConfig, config: MaeConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not isinstance(encoder.backbone, VitConfig) or encoder.hidden != "absent":
            raise InputError("mae needs a vit whose hidden tokens are absent; set encoder.hidden to 'absent'")
        self.config = config
        self.encoder = Encoder(encoder, generator)
        width = config.decoder.embed_dim
        self.enter = nn.Linear(encoder.backbone.embed_dim, width)
        self.mask_token = MaskToken(width)
        self.decoder = Vit(config.decoder)
        token_m = encoder.token_size_m
        sizes = {spec.name: spec.patch_px(token_m) ** 2 * spec.num_bands for spec in encoder.sensors}
        self.leave = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})
        for part in (self.enter, self.mask_token, self.decoder, self.leave):
            initialise(part, generator)

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached reconstruction, balance, 'mse/<sensor>'. The generator is a CPU generator."""
        made = self._predict(batch, generator)
        error = masked_mse(made.predicted.float(), made.target, made.is_scored, self.config.normalise_patches)
        loss = error + self.config.balance_weight * made.balance
        terms = {"reconstruction": error, "balance": made.balance, f"mse/{made.spec.name}": error}
        return {"loss": loss} | {name: value.detach() for name, value in terms.items()}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, generator: torch.Generator) -> dict[str, Panel]:
        """Return what the model makes of hidden ground, for people to look at: patches in the target's own mean and spread."""
        was_training = self.training
        self.eval()
        made = self._predict(batch, generator)
        self.train(was_training)
        predicted = made.predicted.float()
        if self.config.normalise_patches:
            mean, variance = made.target.mean(-1, keepdim=True), made.target.var(-1, keepdim=True)
            predicted = predicted * (variance + PATCH_EPS).sqrt() + mean
        patch, spec = made.spec.patch_px(self.encoder.config.token_size_m), made.spec
        target, prediction = (spec.denormalise(unpatchify(x, patch, made.grid), made.level) for x in (made.target, predicted))
        is_hidden = upsample(made.is_hidden.unflatten(1, made.grid), patch)
        return {spec.name: Panel(True, target, prediction, is_hidden, batch.tiles[spec.name].is_observed.flatten(0, 1))}

    def _predict(self, batch: Batch, generator: torch.Generator) -> "_Prediction":
        config = self.config
        sensors = [spec for spec in self.encoder.config.sensors if spec.name in batch.tiles]
        spec = sensors[batch.index % len(sensors)]
        tiles, patch = batch.tiles[spec.name], spec.patch_px(self.encoder.config.token_size_m)
        spec.check(tiles, self.encoder.config.token_size_m)
        is_valid = tiles.is_observed.flatten(0, 1)
        is_seen = ~is_mostly_invalid(is_valid, patch)
        grid = (is_seen.shape[1], is_seen.shape[2])
        num_tokens, seen_BN = grid[0] * grid[1], is_seen.flatten(1)
        is_hidden = random_tokens(len(is_seen), num_tokens, config.mask_ratio, generator, seen_BN.cpu()).to(is_seen.device)
        pixels, level = self.encoder.normalise(tiles, spec, upsample(is_hidden.unflatten(1, grid), patch))
        # Shapes stay the same whatever is invalid: a sample with fewer visible tokens is filled up with ones nobody looks at.
        num_kept = num_tokens - round(num_tokens * config.mask_ratio)
        order = is_hidden.long().argsort(dim=1, stable=True)
        kept = order[:, :num_kept]
        tokens = self.encoder.stems[spec.name](pixels)
        tokens = (tokens + self.encoder.positions(grid).to(tokens)).flatten(1, 2)
        is_key = ~is_hidden.gather(1, kept)
        vit = self.encoder.backbone
        maps, prefix, balance = vit(tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[-1])), is_key, generator)
        seen = self.mask_token(self.enter(maps[-1]), ~is_key)
        places = torch.cat([seen, self.mask_token.token.to(seen).expand(len(seen), num_tokens - num_kept, -1)], 1)
        # Back to where they came from: place order[i] holds what stands at i.
        places = places.gather(1, order.argsort(1)[..., None].expand(-1, -1, places.shape[-1]))
        places = places + sincos_2d(config.decoder.embed_dim, *grid).to(places)
        given = torch.cat([self.enter(prefix), places], 1)
        outputs, _, decoder_balance = self.decoder(given, None, generator)
        predicted = self.leave[spec.name](outputs[-1][:, prefix.shape[1] :])
        is_scored = is_hidden & seen_BN
        return _Prediction(spec, grid, predicted, patchify(pixels, patch), is_hidden, is_scored, level, balance + decoder_balance)


@dataclass(frozen=True)
class _Prediction:
    """One forward pass: patches (B, N, D) predicted and wanted in network units, which were hidden and which are scored."""

    spec: SensorSpec
    grid: tuple[int, int]
    predicted: Tensor
    target: Tensor
    is_hidden: Tensor
    is_scored: Tensor
    level: Tensor
    balance: Tensor
