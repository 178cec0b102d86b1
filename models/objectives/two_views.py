"""Two views of the same samples, as the joint-embedding objectives take them: two crops, two dates or two sensors.

This file decides which tiles are compared; what is drawn at random was drawn before. Every rank sees the same sensors in
the same step.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from models.batch import Batch, Tiles
from models.encoder import Encoder
from models.errors import InputError

Kind = Literal["crops", "dates", "sensors"]
View = tuple[str, Tiles]
"""The sensor's name and its tiles, one date each."""


def two_views(batch: Batch, kind: Kind, encoder: Encoder) -> tuple[View, View]:
    """Return the two views of `batch`; sensors take turns where one is enough. Dates are of two crops where there are any."""
    names = [spec.name for spec in encoder.config.sensors if spec.name in batch.tiles]
    if kind == "sensors":
        if len(names) < 2:
            raise InputError(f"a batch of {', '.join(names)} has one sensor, expected two views of two; use sensor sets of two")
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        first, second = pairs[batch.index % len(pairs)]
        return (first, at_date(batch.tiles[first], 0)), (second, at_date(batch.tiles[second], 0))
    name = names[batch.index % len(names)]
    if kind == "crops":
        if len(batch.crops) < 2:
            raise InputError(f"a batch has {len(batch.crops)} crops, expected two views; set stream.crops")
        return (name, at_date(batch.crops[0].tiles[name], 0)), (name, at_date(batch.crops[1].tiles[name], 0))
    tiles = batch.tiles[name]
    if tiles.is_present.shape[1] < 2:
        raise InputError(f"a batch has {tiles.is_present.shape[1]} dates, expected two; set view to a temporal or season pair")
    one, two = (crop.tiles[name] for crop in batch.crops[:2]) if len(batch.crops) > 1 else (tiles, tiles)
    return (name, at_date(one, 0)), (name, at_date(two, 1))


def pooled_view(encoder: Encoder, view: View, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Return `encoder.pooled` of a view, which may hold some of its sensor's bands only where the stem can do with them."""
    name, tiles = view
    spec = encoder.spec(name)
    if tiles.bands != spec.bands:
        encoder = encoder.extended(spec.select(tiles.bands))
    return encoder.pooled(tiles, name, generator)


def sensors_of(views: Sequence[View]) -> str:
    """Return the name under which a term of these views is told: the sensors', each once."""
    return "+".join(dict.fromkeys(name for name, _ in views))


def at_date(tiles: Tiles, date: int) -> Tiles:
    """Return the tiles of one date, (B, 1, ...)."""
    part = slice(date, date + 1)
    return replace(
        tiles,
        pixels=tiles.pixels[:, part],
        is_valid=tiles.is_valid[:, part],
        is_present=tiles.is_present[:, part],
        time_days=tiles.time_days[:, part],
    )
