"""Train small objectives for a few steps, by one process on whole batches or by several on parts of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from models.batch import Batch, Tiles
from models.encoder import Encoder, EncoderConfig
from models.objectives.autoencoder import Given
from models.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from models.objectives.byol import Byol, ByolConfig
from models.objectives.dino import Dino, DinoConfig
from models.objectives.distillation import Distillation, DistillationConfig
from models.objectives.loom import Loom, LoomConfig, loom_encoder
from models.objectives.moco import Moco, MocoConfig, MocoV3, MocoV3Config
from models.objectives.rs_byol import RsByol, RsByolConfig
from models.objectives.seco import Seco, SecoConfig
from models.objectives.simclr import Simclr, SimclrConfig
from models.objectives.vicreg import Vicreg, VicregConfig
from models.resnet import ResnetConfig
from models.sensor import SensorSpec
from models.stems.resnet import ResnetStemConfig
from models.stems.shared import SharedStemConfig
from models.swin import SwinConfig
from models.vit import VitConfig

OPTICAL = SensorSpec(
    "optical", "passive", "surface_reflectance", "1", 10.0, ("red", "nir"), (665.0, 842.0), (0.1, 0.3), (0.05, 0.1)
)
RADAR = SensorSpec("radar", "active", "sigma0", "dB", 10.0, ("VV",), (None,), (-12.0,), (4.0,))
Made = Callable[[], dict[str, nn.Module]]
DECODER = VitConfig(embed_dim=8, depth=1, num_heads=2, has_class_token=False)
NUM_STEPS = 5
NUM_SAMPLES = 8
RATE = 0.05
RESNET_RATE = 0.002
"""Batch norms in a row over few numbers make of a rounding error in one step a difference in the fifth."""


def encoder_config() -> EncoderConfig:
    return EncoderConfig(VitConfig(embed_dim=8, depth=1, num_heads=2), 20.0, (OPTICAL, RADAR), hidden="absent")


class SteadyLoom(Loom):
    """Every second token hidden, all told: nothing is drawn for as many samples as a rank has."""

    def _told(self, given: list[Given], generator: torch.Generator) -> list[Given]:
        return given

    def hide(self, seen: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        return [(torch.arange(part[0].numel()) % 2 == 0).view(part[0].shape).expand_as(part) for part in seen]


def objectives() -> dict[str, nn.Module]:
    """Return one of each, with every parameter large enough to show."""
    encoder = encoder_config()
    resnet = EncoderConfig(ResnetConfig(18, embed_dim=4), 10.0, (OPTICAL, RADAR), stem=ResnetStemConfig())
    shared = replace(encoder, stem=SharedStemConfig())
    made: dict[str, nn.Module] = {
        "resnet": Byol(resnet, ByolConfig(hidden=12, dim=6, momentum=0.9), seeded(1)),
        "simclr": Simclr(encoder, SimclrConfig(hidden=12, dim=6), seeded(1)),
        "barlow_twins": BarlowTwins(encoder, BarlowTwinsConfig(dim=6), seeded(1)),
        "vicreg": Vicreg(encoder, VicregConfig(dim=6), seeded(1)),
        "sensors": Vicreg(encoder, VicregConfig(views="sensors", dim=6), seeded(1)),
        "byol": Byol(encoder, ByolConfig(hidden=12, dim=6, momentum=0.9), seeded(1)),
        "rs_byol": RsByol(shared, RsByolConfig(hidden=12, dim=6, momentum=0.9), seeded(1)),
        "moco": Moco(encoder, MocoConfig(queue_size=20, hidden=12, dim=6, momentum=0.9), seeded(1)),
        "seco": Seco(encoder, SecoConfig(queue_size=20, dim=6, temperature=0.2, momentum=0.9), seeded(1)),
        "moco_v3": MocoV3(encoder, MocoV3Config(hidden=12, dim=6, momentum=0.9), seeded(1)),
        "loom": SteadyLoom(
            loom_encoder(encoder.backbone, 20.0, encoder.sensors, metadata_drop=0.0), LoomConfig(DECODER), seeded(1)
        ),
        "dino": Dino(encoder, DinoConfig(12, 6, 10, momentum=0.9), seeded(1)),
    }
    for objective in made.values():
        draw = seeded(2)
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad and not name.endswith("norm.weight"):
                parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        for name in ("target", "keys", "teacher"):
            if hasattr(objective, name):
                getattr(objective, name).update(objective._online(), 0.0)
    return made


def distillations() -> dict[str, nn.Module]:
    """Return a plain one; and one of all that looks at the whole batch, from other sensors, for two students of different kinds."""
    encoder = encoder_config()
    student = replace(encoder, backbone=VitConfig(embed_dim=4, depth=1, num_heads=1))
    swin = EncoderConfig(SwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 1), window=2), 20.0, (RADAR,))
    everything = DistillationConfig(
        replace(student, sensors=(RADAR,)),
        relation_weight=1.0,
        prototype_weight=0.01,
        num_prototypes=12,
        taught_by=("optical", "radar"),
        others=(("swin", swin),),
    )
    return {
        "plain": Distillation(DistillationConfig(student), teacher_of(encoder), seeded(1)),
        "everything": Distillation(everything, teacher_of(encoder), seeded(1)),
    }


def teacher_of(encoder: EncoderConfig) -> Encoder:
    teacher = Encoder(encoder, seeded(5))
    for parameter in teacher.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=seeded(6)) * 0.2)
    return teacher


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(step: int, part: slice = slice(None)) -> Batch:
    """Return samples `part` of one step's batch: two sensors, two large crops and two small, three dates."""
    draw = seeded(100 + step)

    def tiles(spec: SensorSpec, side: int, times: int) -> Tiles:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
        pixels = torch.randn(NUM_SAMPLES, times, spec.num_bands, side, side, generator=draw) * std + mean
        is_valid = torch.rand(NUM_SAMPLES, times, side, side, generator=draw) < 0.9
        whole = (pixels, is_valid, torch.ones(NUM_SAMPLES, times, dtype=torch.bool), torch.zeros(NUM_SAMPLES, times).double())
        return Tiles(*(x[part] for x in whole), spec.bands, spec.unit, spec.gsd_m)

    def batch(side: int, times: int, crops: tuple[Batch, ...] = ()) -> Batch:
        found = {spec.name: tiles(spec, side, times) for spec in (OPTICAL, RADAR)}
        return Batch(found, torch.zeros(NUM_SAMPLES, 2).double()[part], step, crops)

    return batch(8, 3, (batch(8, 3), batch(8, 3), batch(4, 3), batch(4, 3)))


def train(rank: int = 0, world_size: int = 1, made: Made = objectives) -> dict[str, dict[str, Any]]:
    """Return, for each objective, the losses of all steps, the first step's gradients and the state at the end."""
    size = NUM_SAMPLES // world_size
    part = slice(rank * size, (rank + 1) * size)
    found = {}
    for name, objective in made().items():
        trained = [p for p in objective.parameters() if p.requires_grad]
        losses, gradients = [], {}
        for step in range(NUM_STEPS):
            objective.zero_grad()
            loss = objective(make_batch(step, part), seeded(step))["loss"]
            loss.backward()
            mean_loss = loss.detach().clone()
            for tensor in [mean_loss, *(p.grad for p in trained if p.grad is not None)]:
                if world_size > 1:
                    dist.all_reduce(tensor)
                    tensor /= world_size
            if not step:
                gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
            with torch.no_grad():
                for parameter in trained:
                    if parameter.grad is not None:
                        parameter -= (RESNET_RATE if name == "resnet" else RATE) * parameter.grad
            if hasattr(objective, "after_step"):
                objective.after_step(step, NUM_STEPS)
            losses.append(float(mean_loss))
        state = {key: value.clone() for key, value in objective.state_dict().items()}
        found[name] = {"losses": losses, "gradients": gradients, "state": state}
    return found


def _worker(rank: int, world_size: int, folder: str, made: Made) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    torch.save(train(rank, world_size, made), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train_on_ranks(world_size: int, folder: Path, made: Made = objectives) -> list[dict[str, dict[str, Any]]]:
    """Return what `train` returns on each of several processes."""
    mp.spawn(_worker, (world_size, str(folder), made), world_size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
