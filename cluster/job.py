"""What a training run is told: how long, on what, where, and how its objective is made."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from cluster.optimiser import OptimiserConfig
from cluster.sinks import SinkName
from models.sensor import SensorSpec
from pipeline.errors import InputError
from pipeline.stream import StreamConfig
from pipeline.views import CrossSensor, View

AVERAGE = "average.copy."
"""Before the names of the encoder's weights averaged over steps."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, with how many workers."""

    num_steps: int = 600
    batch_size: int = 32
    """Samples a lane and step; the global batch is `lanes` times as large, whatever the number of workers."""
    lanes: int = 2
    workers: str = "2"
    """Processes that train together; 'least:most' for as many as the cluster has room for at any time; 0: this process, without
    Ray and DeepSpeed.
    """
    cpus_per_worker: float = 0.75
    gpus_per_worker: float = 0.0
    threads_per_worker: int = 0
    """Threads that a worker computes with, beside those that decode; 0: its share of its machine's cores."""
    window_shards: int = 4
    """Shards that a lane shuffles together."""
    sensor_sets: tuple[tuple[str, ...], ...] = ()
    """Sensors that a sample holds, one entry a set; empty: derived from the archive."""
    share_exponent: float = 1.0
    """A sensor set is trained on in proportion to this power of its samples: 1 as often as it has samples, 0 as often as others,
    between them rare sets more often than they have samples (temperature sampling: Conneau et al. 2020, arXiv 1911.02116).
    """
    view: View = field(default_factory=CrossSensor)
    """Which tiles make a sample."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    new_scenes: str = ""
    """JSON file with ids of scenes, {"new": [...], "withheld": [...]}: samples without a new one are seen again in part
    only (`replay`), those of withheld ones never; none: all are seen alike.
    """
    replay: float = 0.5
    """With `new_scenes`, the share of samples that are old ones, drawn for the run."""
    features: str = ""
    """Folder of features that are read beside the tiles (pipeline/features.py); none by default."""
    checkpoint_every: int = 100
    keep_last: int = 2
    """Checkpoints of a run that stay, the last ones."""
    keep_every: int = 0
    """Steps between checkpoints that stay for ever, in RUN/kept; a multiple of `checkpoint_every`, 0: none."""
    keep_best: bool = False
    """Whether the checkpoint with the lowest mean loss since the one before stays, too."""
    timeout_s: int = 600
    """Seconds that workers wait for one another, before all are started anew."""
    health_every: int = 100
    """Steps between looks at the encoder's health (cluster/watch.py), the last step besides; 0: never. Not under ZeRO 3."""
    compile: bool = False
    """Compile the backbones' blocks: a tenth faster for a vit, after minutes (docs/benchmarks.md)."""
    recompute: bool = False
    """Compute the inside of the backbones' blocks again going back instead of keeping it: less memory, a third more operations."""
    sinks: tuple[SinkName, ...] = ()
    """Told of the run besides metrics.jsonl: tensorboard (RUN/tensorboard), mlflow (MLFLOW_TRACKING_URI, else RUN/mlflow)."""
    profile: int = 0
    """Steps of the first rank to trace into RUN/profile (cluster/trace.py); 0: none."""
    seed: int = 0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        positive = ("num_steps", "batch_size", "lanes", "checkpoint_every", "window_shards", "keep_last", "timeout_s")
        if wrong := [name for name in positive if getattr(self, name) < 1]:
            raise InputError(f"{wrong[0]} is {getattr(self, wrong[0])}, expected at least 1")
        if not 0 <= self.share_exponent <= 1:
            raise InputError(f"share_exponent is {self.share_exponent:g}, expected 0 (all sets alike) to 1 (as their samples)")
        if self.keep_every < 0 or self.keep_every % self.checkpoint_every:
            raise InputError(f"keep_every is {self.keep_every}, expected a multiple of checkpoint_every, {self.checkpoint_every}")
        if self.health_every < 0:
            raise InputError(f"health_every is {self.health_every}, expected a number of steps, or 0 for never")
        if not 0 <= self.replay < 1:
            raise InputError(f"replay is {self.replay:g}, expected [0, 1), the share of old samples")
        if self.threads_per_worker < 0:
            raise InputError(f"threads_per_worker is {self.threads_per_worker}, expected a number, or 0 for a share of the cores")
        if self.profile < 0:
            raise InputError(f"profile is {self.profile}, expected a number of steps, or 0 for none")
        if self.compile and self.recompute:
            raise InputError("compile and recompute are both set; a compiled block keeps what it needs: choose one")
        if self.compile and self.optimiser.expert_parallel:
            raise InputError("compile and expert_parallel are both set; tokens cannot leave a compiled block: choose one")
        for workers in range(max(1, self.fewest), self.most + 1):
            if self.lanes % workers:
                lcm = math.lcm(*range(max(1, self.fewest), self.most + 1))
                raise InputError(f"{self.lanes} lanes cannot be shared evenly by {workers} workers; make lanes a multiple of {lcm}")

    @property
    def fewest(self) -> int:
        """Fewest workers that the run may have."""
        return self._range[0]

    @property
    def most(self) -> int:
        """Most workers that the run may have."""
        return self._range[1]

    @property
    def _range(self) -> tuple[int, int]:
        parts = self.workers.split(":")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            raise InputError(f"workers is '{self.workers}', expected a number, or least:most such as 2:8")
        fewest, most = int(parts[0]), int(parts[-1])
        if most < fewest or (len(parts) == 2 and fewest < 1):
            raise InputError(f"workers is '{self.workers}', expected the smaller number first, at least 1")
        return fewest, most


@dataclass(frozen=True)
class Job:
    """What every worker is given. `build` makes the objective from the archive's sensors and a seeded generator."""

    run_url: str
    archive_url: str
    name: str
    config: TrainConfig
    build: Callable[[tuple[SensorSpec, ...], torch.Generator | None], nn.Module]
    extra: dict[str, Any]
    """What the exported model's config.json says besides its shape."""
    start: str = ""
    """Folder of the weights to begin with (cluster/start.py); none: drawn ones."""

    def finished(self, sensors: tuple[SensorSpec, ...], weights: dict[str, torch.Tensor]) -> Any:
        """Return the objective with `weights` as an engine gathers them, its encoder with their average if there is one."""
        averages = {name.removeprefix(AVERAGE): weights.pop(name) for name in [*weights] if name.startswith(AVERAGE)}
        objective: Any = self.build(sensors, torch.Generator())
        objective.load_state_dict(weights)
        if averages:
            objective.encoder.load_state_dict(averages)
        return objective
