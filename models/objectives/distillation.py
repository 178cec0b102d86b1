"""Distillation of a frozen teacher encoder into smaller student encoders.

Feature distillation in the manner of Wei et al. 2022 (arXiv 2205.14141: smooth L1 to whitened teacher tokens), at every
stage, and on their means over the tile, which probes and users see. Whitening is full (ZCA over the batch's tokens), not
per channel: a masked-modelling teacher keeps most of its variance in a few directions, and a student that matches only
those loses what tells classes apart. Beside that, where a weight asks for it, relations between samples and soft choices among
prototypes (`targets.py`).
A student sees one sensor per step in turn, the teacher the same whole tiles, or those of other sensors of the same sites; each
normalises with its own statistics. Several students learn from one pass of the teacher, or from what it made of the tiles before.
Legend: B samples (dates counted as samples), Y X pixels, y x cells of a stage's map, D width of the teacher there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.encoder import Encoder, EncoderConfig
from models.errors import InputError
from models.initialise import initialise
from models.objectives.targets import (
    at_size,
    coarsened,
    mean_of_valid,
    mean_over_sensors,
    pooled_distance,
    prototype_distance,
    relation_distance,
    token_distance,
    whiten,
)
from models.objectives.teacher import Taught

Target = tuple[Tensor, Tensor]
"""A stage's whitened map (B, y, x, D) and where it is valid (B, y, x)."""


@dataclass(frozen=True)
class DistillationConfig:
    """The student, and the weights of what it is taught; balance is its experts'.

    taught_by names the sensors that the teacher sees, of which their targets' mean is taken; none: the one that the student sees.
    others are further students of the same sensors, by name.
    """

    encoder: EncoderConfig
    grid_weight: float = 1.0
    balance_weight: float = 0.01
    pooled_weight: float = 1.0
    relation_weight: float = 0.0
    prototype_weight: float = 0.0
    num_prototypes: int = 256
    taught_by: tuple[str, ...] = ()
    others: tuple[tuple[str, EncoderConfig], ...] = ()


class Pupil(nn.Module):
    """A student's encoder and a linear head per stage into the teacher's space."""

    def __init__(self, config: EncoderConfig, teacher: EncoderConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.encoder = Encoder(config, generator)
        net, taught = config.backbone, teacher.backbone
        heads = [nn.Linear(net.width(mine), taught.width(its)) for mine, its in stage_pairs(config, teacher)]
        self.heads = nn.ModuleList(heads)
        initialise(self.heads, generator)


class Distillation(Taught):
    """Students and their heads; `encoder`, the first student, and `encoders`, by name, are kept after training."""

    prototypes_KD: Tensor | None

    def __init__(self, config: DistillationConfig, teacher: Encoder, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.take(teacher, [s for s in config.encoder.sensors if not config.taught_by or s.name in config.taught_by])
        for name in config.taught_by:
            teacher.spec(name)
        first = Pupil(config.encoder, teacher.config, generator)
        self.encoder, self.heads = first.encoder, first.heads
        self.others = nn.ModuleDict({name: Pupil(other, teacher.config, generator) for name, other in config.others})
        prototypes = None
        if config.prototype_weight:
            width = teacher.config.backbone.width(teacher.config.backbone.num_stages - 1)
            prototypes = F.normalize(torch.randn(config.num_prototypes, width, generator=generator), dim=-1)
        self.register_buffer("prototypes_KD", prototypes)

    @property
    def encoders(self) -> dict[str, Encoder]:
        """The students by name, where there are several."""
        return {name: encoder for name, encoder, _ in self._pupils()} if len(self.others) else {}

    def _pupils(self) -> Iterator[tuple[str, Encoder, nn.ModuleList]]:
        yield "first", self.encoder, self.heads
        for name, other in self.others.items():
            yield name, other.encoder, other.heads  # type: ignore[misc]

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Return scalars: loss, and detached pooled, grid, balance, relation and prototypes where they have a weight.

        Those of further students begin with their name. The generator is used by drop_path only.
        """
        sensors = [spec for spec in self.config.encoder.sensors if spec.name in batch.tiles]
        for spec in sensors:
            spec.check(batch.tiles[spec.name], self.config.encoder.token_size_m)
        if not sensors:
            raise InputError(f"a batch has {', '.join(batch.tiles)}, the student knows {', '.join(_names(self.config.encoder))}")
        name = sensors[batch.index % len(sensors)].name
        with torch.no_grad():
            targets = self._targets(batch, name)
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for pupil, encoder, heads in self._pupils():
            found = self._learn(encoder, heads, name, batch.tiles[name], targets, generator)
            losses.append(found.pop("loss"))
            terms |= {key if pupil == "first" else f"{pupil}/{key}": value.detach() for key, value in found.items()}
        return {"loss": losses[0] if len(losses) == 1 else torch.stack(losses).sum(), **terms}

    def _targets(self, batch: Batch, name: str) -> list[Target]:
        """Return what is wanted at each of the teacher's stages."""
        teacher, found = self.teacher, []
        for sensor in self._shown(batch, name):
            tiles, spec = batch.tiles[sensor], teacher.spec(sensor)
            spec.check(tiles, teacher.config.token_size_m)
            is_valid = tiles.is_observed.flatten(0, 1)
            is_valid_cell = teacher.cells(is_valid, sensor)
            if (taught := [*batch.features.get(sensor, ())]) == []:
                seen, _ = teacher.normalise(tiles, spec)
                taught = teacher.features(seen, is_valid, sensor).maps
            valid = [at_size(is_valid_cell, part) for part in taught]
            found.append([(whiten(part, where), where) for part, where in zip(taught, valid)])
        return [mean_over_sensors(*zip(*stage)) for stage in zip(*found)]

    def _shown(self, batch: Batch, name: str) -> list[str]:
        """Return the sensors that the teacher sees when the student sees `name`."""
        shown = [sensor for sensor in self.config.taught_by if sensor in batch.tiles] if self.config.taught_by else [name]
        if not shown:
            raise InputError(
                f"a batch has {', '.join(batch.tiles)}, the teacher is to see {', '.join(self.config.taught_by)}; "
                f"give sensor sets that hold one of them"
            )
        return shown

    def _learn(
        self, encoder: Encoder, heads: nn.ModuleList, name: str, tiles: Tiles, targets: list[Target], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return one student's loss and its terms."""
        config, is_valid = self.config, tiles.is_observed.flatten(0, 1)
        seen, _ = encoder.normalise(tiles, encoder.spec(name))
        learnt = encoder.features(seen, is_valid, name, generator=generator)
        is_valid_cell = encoder.cells(is_valid, name)
        stages = []
        for head, (mine, its) in zip(heads, stage_pairs(encoder.config, self.teacher.config)):
            stages.append(_together(head(learnt.maps[mine]).float(), at_size(is_valid_cell, learnt.maps[mine]), *targets[its]))
        made, wanted, is_both = stages[-1]
        is_present_B = is_both.any(-1).any(-1)
        grid_B = torch.stack([token_distance(*stage) for stage in stages]).mean(0)
        pooled_B = torch.stack([pooled_distance(*stage) for stage in stages]).mean(0)
        terms = {"pooled": (pooled_B * is_present_B).mean(), "grid": grid_B.mean(), "balance": learnt.balance}
        loss = config.pooled_weight * terms["pooled"] + config.grid_weight * terms["grid"] + config.balance_weight * learnt.balance
        made_BD, wanted_BD = mean_of_valid(made, is_both), mean_of_valid(wanted, is_both)
        if config.relation_weight:
            terms["relation"] = relation_distance(encoder.pool(learnt, is_valid_cell), wanted_BD, is_present_B)
            loss = loss + config.relation_weight * terms["relation"]
        if self.prototypes_KD is not None:
            terms["prototypes"] = prototype_distance(made_BD, wanted_BD, is_present_B, self.prototypes_KD.float()).mean()
            loss = loss + config.prototype_weight * terms["prototypes"]
        return {"loss": loss, **terms}


def stage_pairs(student: EncoderConfig, teacher: EncoderConfig) -> list[tuple[int, int]]:
    """Return which stage learns from which: each from its own, of another kind of backbone the last from the last.

    Raise InputError for stages or tokens that do not fit.
    """
    net, taught = student.backbone, teacher.backbone
    if (net.kind == taught.kind and net.num_stages != taught.num_stages) or student.token_size_m != teacher.token_size_m:
        raise InputError(
            f"student has {net.num_stages} stages of {student.token_size_m:g} m tokens, the teacher "
            f"{taught.num_stages} of {teacher.token_size_m:g} m; give the student as many stages and the same tokens"
        )
    if net.kind != taught.kind:
        return [(net.num_stages - 1, taught.num_stages - 1)]
    return [(stage, stage) for stage in range(net.num_stages)]


def _together(made: Tensor, is_made: Tensor, wanted: Tensor, is_wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both maps on the coarser of their grids, and where both are valid."""
    grid = min(made.shape[1:3], wanted.shape[1:3])
    valid = [coarsened(part.float()[..., None], grid)[..., 0] > 0 for part in (is_made, is_wanted)]
    return coarsened(made, grid), coarsened(wanted, grid), valid[0] & valid[1]


def _names(config: EncoderConfig) -> list[str]:
    return [spec.name for spec in config.sensors]
