"""MAE as its public code is built, in float32: what `bench_mae_step.py` measures a step of ours against.

Written anew from the paper (He et al. 2022, arXiv 2111.06377) in the plain formulation: every patch is embedded before any is
taken out, noise is sorted to choose, attention writes out its softmax, the decoder and the last layer run over all places.
Legend: B images, N places, K visible ones, D width, h heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.positions import sincos_2d

NORM_EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        batch, num_tokens, width = x_BND.shape
        qkv = self.qkv(x_BND).reshape(batch, num_tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BhNd, k_BhNd, v_BhNd = qkv.unbind(0)
        weight_BhNN = ((q_BhNd @ k_BhNd.transpose(-2, -1)) * self.scale).softmax(-1)
        return self.proj((weight_BhNN @ v_BhNd).transpose(1, 2).reshape(batch, num_tokens, width))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.fc1, self.act, self.fc2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.fc2(self.act(self.fc1(self.norm2(x_BND))))


class PublicMae(nn.Module):
    """encoder, decoder: width, depth and heads of each."""

    def __init__(
        self, num_bands: int, patch_px: int, side: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.patch_px, width, narrow = patch_px, encoder[0], decoder[0]
        self.patch_embed = nn.Conv2d(num_bands, width, patch_px, patch_px)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, encoder[2]) for _ in range(encoder[1]))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.decoder_embed = nn.Linear(width, narrow)
        self.mask_token = nn.Parameter(torch.zeros(narrow))
        self.decoder_blocks = nn.ModuleList(Block(narrow, decoder[2]) for _ in range(decoder[1]))
        self.decoder_norm = nn.LayerNorm(narrow, NORM_EPS)
        self.decoder_pred = nn.Linear(narrow, patch_px**2 * num_bands)
        self.register_buffer("pos_embed", sincos_2d(width, side, side)[None])
        self.register_buffer("decoder_pos_embed", F.pad(sincos_2d(narrow, side, side), (0, 0, 1, 0))[None])

    def forward(self, images: Tensor, noise_BN: Tensor, mask_ratio: float) -> Tensor:
        """Return the mean squared error of hidden patches, each scaled to unit variance; the smallest noise stays visible."""
        tokens = self.patch_embed(images).flatten(2).transpose(1, 2) + self.pos_embed
        visible, mask_BN, restore_BN = self.random_masking(tokens, noise_BN, mask_ratio)
        x = torch.cat((self.cls_token.expand(len(visible), -1, -1), visible), 1)
        for block in self.blocks:
            x = block(x)
        return self.loss(images, self.decode(self.norm(x), restore_BN), mask_BN)

    def random_masking(self, tokens_BND: Tensor, noise_BN: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_tokens, width = tokens_BND.shape
        num_kept = int(num_tokens * (1 - mask_ratio))
        shuffle_BN = torch.argsort(noise_BN, 1)
        restore_BN = torch.argsort(shuffle_BN, 1)
        visible = torch.gather(tokens_BND, 1, shuffle_BN[:, :num_kept, None].repeat(1, 1, width))
        mask_BN = torch.ones(batch, num_tokens)
        mask_BN[:, :num_kept] = 0
        return visible, torch.gather(mask_BN, 1, restore_BN), restore_BN

    def decode(self, encoded_BKD: Tensor, restore_BN: Tensor) -> Tensor:
        x = self.decoder_embed(encoded_BKD)
        batch, num_seen, width = x.shape
        filled = torch.cat([x[:, 1:], self.mask_token.repeat(batch, restore_BN.shape[1] + 1 - num_seen, 1)], 1)
        filled = torch.gather(filled, 1, restore_BN[:, :, None].repeat(1, 1, width))
        x = torch.cat([x[:, :1], filled], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def loss(self, images: Tensor, predicted: Tensor, mask_BN: Tensor) -> Tensor:
        batch, bands, rows, columns = images.shape
        patch = self.patch_px
        parts = images.reshape(batch, bands, rows // patch, patch, columns // patch, patch)
        target = torch.einsum("bcyixj->byxijc", parts).reshape(batch, mask_BN.shape[1], -1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        return (((predicted - target) ** 2).mean(-1) * mask_BN).sum() / mask_BN.sum()


def public_names(names: list[str], sensor: str) -> dict[str, str]:
    """Return, for each parameter of our Mae of one sensor, what it is called in PublicMae."""
    renamed = {
        f"encoder.stem.projections.{sensor}.0.project.": "patch_embed.",
        "encoder.backbone.prefix_PD": "cls_token",
        "encoder.backbone.": "",
        "enter.": "decoder_embed.",
        "mask_token.token": "mask_token",
        "decoder.": "decoder_",
        f"head.projections.{sensor}.0.": "decoder_pred.",
    }
    inside = {
        "norm_attention.": "norm1.",
        "norm_mlp.": "norm2.",
        "attention.qkv.": "attn.qkv.",
        "attention.project.": "attn.proj.",
        "mlp.expand.": "fc1.",
        "mlp.project.": "fc2.",
    }
    found = {}
    for name in names:
        start = next(old for old in renamed if name.startswith(old))
        public = renamed[start] + name.removeprefix(start)
        for old, new in inside.items():
            public = public.replace(old, new)
        found[name] = public
    return found
