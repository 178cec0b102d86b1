"""How much less a student costs than its teacher: operations counted, tiles a second measured side by side on one CPU thread.

    python -m tests.bench.bench_students TEACHER_MODEL STUDENT_MODEL ARCHIVE [--folder FOLDER]

Both are exported (ONNX, and int8 of the student) with real tiles of the archive; rounds of all of them take turns, the median counts.
The teacher is the better of its routed experts in torch and its graph, whose experts all answer.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import onnxruntime
import torch

from cluster.graphs import RealTiles, real_tiles, write_graphs
from models.batch import Batch, Tiles
from models.encoder import Encoder
from models.flops import FlopCounter
from models.graph import SensorGraph
from pipeline.archive import open_archive

BATCH, ROUNDS = 32, 7


def as_batch(encoder: Encoder, name: str, real: RealTiles) -> Batch:
    spec, num = encoder.spec(name), len(real.pixels)
    present = torch.ones(num, 1, dtype=torch.bool)
    tiles = Tiles(real.pixels[:, None], real.is_valid[:, None], present, real.time_days[:, None], spec.bands, spec.unit, spec.gsd_m)
    return Batch({name: tiles}, real.lonlat_deg)


def megaflops(encoder: Encoder, batch: Batch) -> float:
    """Of one tile, as executed."""
    with FlopCounter() as counter:
        encoder.encode(batch)
    return counter.total / len(batch) / 1e6


def without_idle_experts(encoder: Encoder) -> Encoder:
    """The same shape with one MLP in place of each mixture: what a token needs, without what empty places of experts cost."""
    return Encoder(replace(encoder.config, backbone=replace(encoder.config.backbone, moe=None))).eval()


def session(path: Path, graph: SensorGraph, real: RealTiles) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {name: value.numpy() for name, value in zip(graph.inputs, real.inputs(graph))}
    return lambda: opened.run(None, inputs)


def rates(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Tiles a second, the median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()  # what the one before left in the caches is not this one's
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: BATCH / median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("teacher", "student", "archive"):
        parser.add_argument(name)
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    archive = open_archive(options.archive)
    teacher, student = Encoder.load(options.teacher), Encoder.load(options.student)
    print(
        f"parameters: teacher {teacher.num_parameters:,} ({teacher.num_active_parameters:,} active), student {student.num_parameters:,}"
    )
    print(
        "| sensor | MFLOPs a tile: teacher, without idle experts, student | fewer | tiles/s: teacher torch, ONNX | student torch, ONNX, int8 | faster |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        for spec in student.config.sensors:
            real = real_tiles(archive, spec.name, BATCH)
            for name, encoder, formats in (("teacher", teacher, ("onnx",)), ("student", student, ("onnx", "int8"))):
                (folder / name).mkdir(parents=True, exist_ok=True)
                write_graphs(encoder, {spec.name: real}, folder / name, formats)  # type: ignore[arg-type]
            graph, batch = SensorGraph(student, spec.name, real.pixels.shape[-1]), as_batch(student, spec.name, real)
            counts = [megaflops(e, batch) for e in (teacher, without_idle_experts(teacher), student)]
            found = rates(
                {
                    "teacher": lambda batch=batch: teacher.encode(batch),
                    "teacher onnx": session(folder / "teacher" / "onnx" / f"{spec.name}.onnx", graph, real),
                    "student": lambda batch=batch: student.encode(batch),
                    "student onnx": session(folder / "student" / "onnx" / f"{spec.name}.onnx", graph, real),
                    "student int8": session(folder / "student" / "int8" / f"{spec.name}.onnx", graph, real),
                }
            )
            faster = found["student onnx"] / max(found["teacher"], found["teacher onnx"])
            shown = " | ".join(
                [
                    ", ".join(f"{count:.1f}" for count in counts),
                    f"{counts[0] / counts[2]:.1f}x, {counts[1] / counts[2]:.1f}x",
                    ", ".join(f"{found[name]:.0f}" for name in ("teacher", "teacher onnx")),
                    ", ".join(f"{found[name]:.0f}" for name in ("student", "student onnx", "student int8")),
                    f"{faster:.1f}x",
                ]
            )
            print(f"| {spec.name} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
