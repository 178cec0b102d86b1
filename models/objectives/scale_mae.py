"""Scale-MAE: an image at half its resolution predicts itself in two bands (Reed et al., ICCV 2023, arXiv 2212.14532).

A window of the tile, drawn anew for each sample, is enlarged to the tile's size: the target. The encoder is given it at half
the size; positions are ground distances, a token's size relative to the encoder's being twice the window's share of the
tile's side. A short transformer and a Laplacian pyramid predict a low-frequency image at the input's size (squared error) and
a high-frequency residual at the target's (absolute error), scored on hidden ground only:
    low = up(D(image, low_tokens)),    high = image - up(D(image, high_tokens)),
where D averages over squares of so many tokens of ground and `up` interpolates linearly; for equal widths low + high = image.
Errors are means over bands and scored pixels of a sample, then over samples (published: summed over the three bands and
divided by the batch's pixels; there the low band is cut at the input's resolution alone, against its own description).
Sampling is linear in network units, in dB for radar.
Legend: B samples (dates counted as samples), C channel, Y X pixels, y x tokens, D width.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.decoders import LaplacianPyramid
from models.encoder import EncoderConfig
from models.errors import InputError
from models.masking import upsample
from models.objectives.autoencoder import AutoencoderConfig, Encoded, Given, Predicted, mean_by_sample
from models.objectives.mae import Mae
from models.objectives.panel import Panel
from models.position_embedding import TokenGrid
from models.stems.stem import is_mostly_invalid


@dataclass(frozen=True)
class ScaleMaeConfig(AutoencoderConfig):
    """window_area: least and largest share of the tile's ground that a sample shows in training.

    low_tokens and high_tokens: sides of the squares that are averaged for the two bands, in tokens of the input (published: 8
    and 64 px of 448). head_width and head_depth: of the Laplacian blocks. high_weight: of the absolute error.
    """

    normalise_patches: bool = False
    window_area: tuple[float, ...] = (0.2, 1.0)
    low_tokens: float = 0.25
    high_tokens: float = 2.0
    head_width: int = 512
    head_depth: int = 2
    high_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise_patches:
            raise InputError("scale_mae has normalise_patches, but its bands are of whole images; set it to False")
        if len(self.window_area) != 2 or not 0 < self.window_area[0] <= self.window_area[1] <= 1:
            raise InputError(f"scale_mae has window_area {self.window_area}, expected 0 < least <= largest <= 1")
        if min(self.low_tokens, self.high_tokens) <= 0:
            raise InputError(f"scale_mae has bands of {self.low_tokens} and {self.high_tokens} tokens, expected more than 0")


@dataclass(frozen=True)
class Halved(Given):
    """pixels are at half the size; target (B, C, 2Y, 2X) and is_valid (B, 2Y, 2X) at the tile's, is_valid_half (B, Y, X)."""

    target: Tensor
    is_valid: Tensor
    is_valid_half: Tensor


class ScaleMae(Mae):
    """One sensor a batch, taking turns. `encoder` is what is kept: of whole tiles, whose tokens have scale 1."""

    def __init__(self, encoder: EncoderConfig, config: ScaleMaeConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(encoder, config, generator)
        if encoder.frames == "together" or max(len(encoder.stem.groups(spec)) for spec in encoder.sensors) > 1:
            raise InputError("scale_mae has dates together or groups of bands, expected one token of each place of one image")

    def build_head(self, encoder: EncoderConfig) -> nn.Module:
        config, width = self.config, self.config.decoder.embed_dim
        return LaplacianPyramid(width, config.head_width, config.head_depth, encoder.sensors, encoder.token_size_m)

    def give(self, batch: Batch, generator: torch.Generator) -> list[Given]:
        """Return the sensor's windows (whole tiles in evaluation) at half their size, and with them what is wanted."""
        (spec,), token_m = self.sensors(batch), self.encoder.config.token_size_m
        tiles, patch = batch.tiles[spec.name], spec.patch_px(token_m)
        spec.check(tiles, token_m)
        rows, columns = (size // (2 * patch) for size in tiles.pixels.shape[-2:])
        if (rows * 2 * patch, columns * 2 * patch) != tiles.pixels.shape[-2:]:
            raise InputError(
                f"tiles of sensor '{spec.name}' have {tuple(tiles.pixels.shape[-2:])} pixels, expected multiples of {2 * patch}: "
                f"two tokens, one at half the resolution; change site_size_m or token_size_m"
            )
        tiles, share_B = self._windows(tiles, generator)
        is_valid = tiles.is_observed.flatten(0, 1)
        is_seen = ~is_mostly_invalid(is_valid, 2 * patch)[:, None, None]
        (is_hidden,) = self.hide([is_seen.to(generator.device)], generator)
        is_hidden = is_hidden.to(is_seen.device) | ~is_seen
        target, level = self.encoder.normalise(tiles, spec, upsample(is_hidden[:, 0, 0], 2 * patch))
        half, share = average(target, is_valid, (rows * patch, columns * patch))
        where = batch.lonlat.repeat_interleave(tiles.time_days.shape[1], 0)
        grid = TokenGrid(1, 1, rows, columns, tiles.time_days.reshape(-1, 1), where, 2 * share_B)
        is_dropped = self.drop(is_hidden, generator)
        return [Halved(spec, tiles, half, level, grid, is_seen, is_hidden, is_dropped, target, is_valid, share >= 0.5)]

    def _windows(self, tiles: Tiles, generator: torch.Generator) -> tuple[Tiles, Tensor]:
        """Return a square window of each tile enlarged to its size, and its share (B,) of the tile's side; all in evaluation."""
        count = tiles.is_present.numel()
        if not self.training:
            return tiles, torch.ones(count)
        least, largest = self.config.window_area
        area_B, *corner = torch.rand(3, count, generator=generator, device=generator.device)
        share_B = (least + (largest - least) * area_B).sqrt()
        start_B2 = torch.stack(corner, 1) * (1 - share_B)[:, None]
        pixels, is_valid = enlarge(tiles.pixels.flatten(0, 1), tiles.is_valid.flatten(0, 1), start_B2, share_B)
        shape = tiles.is_present.shape
        return replace(tiles, pixels=pixels.unflatten(0, shape), is_valid=is_valid.unflatten(0, shape)), share_B

    def encode(self, given: list[Given], generator: torch.Generator) -> Encoded:
        """Encode the visible tokens; the decoder is not given the class token, as published."""
        encoded = super().encode(given, generator)
        return replace(encoded, prefix=encoded.prefix[:, :0])

    def compare(self, part: Given, output_BND: Tensor) -> Predicted:
        """Return the predicted low and high images beside the wanted ones, in place of patches."""
        assert isinstance(part, Halved)
        low, high = self.head(output_BND.unflatten(1, (part.grid.rows, part.grid.columns)), part.spec.name)
        size = (part.pixels.shape[-2], part.pixels.shape[-1])
        wanted = [
            low_pass(part.target, part.is_valid, self._cells(part.grid, self.config.low_tokens), size),
            part.target - self._smooth(part.target, part.is_valid, part),
        ]
        return Predicted(part, [low.float(), high.float()], wanted, part.is_hidden & part.is_seen & ~part.is_dropped)

    def score(self, made: list[Predicted], encoded: Encoded) -> dict[str, Tensor]:
        (made_one,) = made
        given, (low, high), (wanted_low, wanted_high) = made_one.given, made_one.patches, made_one.targets
        assert isinstance(given, Halved)
        is_scored, patch = made_one.is_scored[:, 0, 0], given.pixels.shape[-2] // given.grid.rows
        is_low, is_high = upsample(is_scored, patch) & given.is_valid_half, upsample(is_scored, 2 * patch) & given.is_valid
        squared = mean_by_sample((low - wanted_low).pow(2).mean(1), is_low)
        absolute = mean_by_sample((high - wanted_high).abs().mean(1), is_high)
        total = squared + self.config.high_weight * absolute
        return {"reconstruction": total, f"low/{given.spec.name}": squared, f"high/{given.spec.name}": absolute}

    def _cells(self, grid: TokenGrid, tokens: float) -> tuple[int, int]:
        """Return how many squares of `tokens` tokens an image of `grid` has, at least one each way."""
        return max(1, round(grid.rows / tokens)), max(1, round(grid.columns / tokens))

    def _smooth(self, image: Tensor, is_valid: Tensor, part: Halved) -> Tensor:
        """Return what the high band leaves of `image`, at the target's size."""
        size = (part.target.shape[-2], part.target.shape[-1])
        return low_pass(image, is_valid, self._cells(part.grid, self.config.high_tokens), size)

    def _panel(self, made: Predicted, batch: Batch, is_source: bool) -> Panel:
        """Return the target and both bands put together: what the high one leaves of the low one, and the high one."""
        given = made.given
        assert isinstance(given, Halved)
        everywhere = torch.ones_like(given.is_valid_half)
        image = self._smooth(made.patches[0], everywhere, given) + made.patches[1]
        target, prediction = (given.spec.denormalise(x, given.level) for x in (given.target, image))
        factor = given.is_valid.shape[-2] // given.grid.rows
        return Panel(is_source, target, prediction, upsample(given.is_hidden[:, 0, 0], factor), given.is_valid)


def average(image_BCYX: Tensor, is_valid_BYX: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the mean over valid pixels of each of `size` equal rectangles, 0 where none is, and the valid share (B, *size)."""
    share = F.adaptive_avg_pool2d(is_valid_BYX.float()[:, None], size)
    total = F.adaptive_avg_pool2d(image_BCYX.masked_fill(~is_valid_BYX[:, None], 0), size)
    return total / share.clamp_min(torch.finfo(share.dtype).eps), share[:, 0]


def low_pass(image_BCYX: Tensor, is_valid_BYX: Tensor, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return averages over `cells` rectangles, interpolated linearly to `size`.

    Rectangles without a valid pixel take no part; it is 0 where no other is near.
    """
    mean, share = average(image_BCYX, is_valid_BYX, cells)
    is_known = (share > 0).float()[:, None]
    up = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (mean * is_known, is_known)]
    return up[0] / up[1].clamp_min(torch.finfo(torch.float32).eps)


def enlarge(pixels_BCYX: Tensor, is_valid_BYX: Tensor, start_B2: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square at `start` (y, x) with side `share`, in shares of the image, at the image's size, and its validity.

    Linear; a pixel is valid if all that it is made of is.
    """
    y, x = (_weights(start_B2[:, i], share_B, pixels_BCYX.shape[i - 2]).to(pixels_BCYX.device) for i in (0, 1))
    pixels = y[:, None] @ pixels_BCYX.masked_fill(~is_valid_BYX[:, None], 0) @ x[:, None].transpose(-1, -2)
    is_spoilt = (y > 0).float() @ (~is_valid_BYX).float() @ (x > 0).float().transpose(-1, -2)
    return pixels, is_spoilt < 0.5


def _weights(start_B: Tensor, share_B: Tensor, size: int) -> Tensor:
    """Return (B, size, size): of which pixels, in which shares, each of `size` pixels of [start, start + share) is made."""
    centre = (start_B[:, None] + share_B[:, None] * (torch.arange(size) + 0.5) / size) * size - 0.5
    return (1 - (centre.clamp(0, size - 1)[:, :, None] - torch.arange(size)).abs()).clamp_min(0)
