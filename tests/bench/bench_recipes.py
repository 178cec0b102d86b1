"""Every tiny recipe from the command line: does it learn, stay healthy, resume bit by bit, and what does it cost.

`python -m tests.bench.bench_recipes ARCHIVE [--only mae_tiny,byol_tiny]`: on one Ray cluster a whole run of each recipe, then
one of each that is killed after its first checkpoint and started again, then a probe of all (3 seeds). Writes docs/recipes.json,
which keeps what other recipes had, and the table docs/recipes.md made of it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import ray

from cluster.connect import connect
from cluster.watch import MIN_HEAD_SHARE, MIN_RANK, MIN_STD
from jobs.evaluation.contenders import RANDOM, random_title
from jobs.recipes import load_recipe, recipes
from models.encoder import Encoder

TASK, PROBED = "landcover", "sentinel2_l2a"
"""The label, and the sensor that is probed."""
NEEDS_TEACHER = {"gfm_tiny": "mae_tiny"}
"""Recipes that are given another one's run."""
TERMS = ("mse", "l1", "objective", "low")
"""Of terms called <kind>/<sensor> those that say whose loss a step's is."""
FEWEST_STEPS = 3
"""A tenth of a sensor set's steps is at least these."""
OUT = Path("docs")
PARTS = ("whole", "resumed", "probe")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", *map(str, arguments)]


def run(*arguments: str | Path) -> dict[str, Any]:
    """Run one terraloom command; return its summary."""
    done = subprocess.run([*command(*arguments), "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"terraloom {' '.join(map(str, arguments))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Sample the training workers, five times a second; yield what returns the largest sum of their own memory so far, MiB."""
    peak, stopped = [0.0], threading.Event()

    def own(process: psutil.Process) -> int:
        try:
            return process.memory_full_info().uss if "TrainWorker" in process.name() + "".join(process.cmdline()[:1]) else 0
        except psutil.Error:
            return 0

    def watch() -> None:
        while not stopped.wait(0.2):
            peak[0] = max(peak[0], sum(map(own, psutil.Process().children(recursive=True))) / 2**20)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: peak[0]
    stopped.set()
    thread.join()


def kill_after_first_checkpoint(arguments: list[str], folder: Path) -> None:
    """Start a command, kill it once its run has a checkpoint that Ray Train has committed: what is only stored does not count."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    committed = folder / "checkpoints" / "checkpoint_manager_snapshot.json"
    while not (committed.is_file() and '"checkpoint_dir_name"' in committed.read_text()):
        if process.poll() is not None:
            raise SystemExit(f"terraloom {' '.join(arguments)} ended with {process.returncode} before its first checkpoint")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def losses(folder: Path, warmup: int) -> dict[str, list[float]]:
    """Return the mean loss of a tenth of the steps of each sensor: the first, the first after the warm-up, the last.

    A step's sensor is the one that its terms name; losses of different sensors are not on one scale. Where sensors take turns,
    a set's name is theirs.
    """
    by_sensor: dict[str, list[tuple[int, float]]] = {}
    for record in records(folder, "metrics.jsonl"):
        named = [name.partition("/")[2] for name in record if name.partition("/")[0] in TERMS]
        sensor = named[0] if len(named) == 1 else record["sensor_set"]
        by_sensor.setdefault(sensor, []).append((record["step"], record["loss"]))
    found = {}
    for name, values in by_sensor.items():
        count, every = max(FEWEST_STEPS, len(values) // 10), [loss for _, loss in values]
        late = [loss for step, loss in values if step >= warmup]
        found[name] = [mean(every[:count]), mean(late[:count]), mean(every[-count:])]
    return found


def health(folder: Path) -> dict[str, float]:
    """Return what the last look at each sensor found."""
    kinds = ("feature_std", "effective_rank", "projection_std", "projection_rank", "high_frequency", "cosine_turned_90")
    found: dict[str, float] = {}
    for record in records(folder, "metrics.jsonl"):
        found |= {name: value for name, value in record.items() if name.partition("/")[0] in kinds}
    return found


def options_of(name: str, archive: str, work: Path) -> list[str]:
    """Return what the recipe needs besides an archive and a folder."""
    if teacher := NEEDS_TEACHER.get(name):
        run("pretrain", teacher, archive, work / "teachers" / teacher)
        return ["--teacher", str(work / "teachers" / teacher)]
    return []


def whole(name: str, archive: str, work: Path) -> dict[str, Any]:
    """Run a recipe undisturbed; return what that costs and what it comes to."""
    folder, options = work / name / "run", options_of(name, archive, work)
    begin = time.perf_counter()
    with peak_memory() as peak:
        run("pretrain", name, archive, folder, *options)
        seconds, memory = time.perf_counter() - begin, peak()
    times = {event["event"]: event["time"] for event in records(folder, "events.jsonl")}
    return {
        "parameters": Encoder.load(folder / "model").num_parameters,
        "seconds": seconds,
        "training_seconds": times["checkpoint"] - times["training"],
        "memory_mib": memory,
        "losses": losses(folder, load_recipe("pretrain", name).train.optimiser.warmup_steps),
        "health": health(folder),
    }


def resumed(name: str, archive: str, work: Path) -> dict[str, Any]:
    """Run a recipe, kill it, run it again; return whether that is the model of the whole run, bit by bit."""
    folder = work / name / "killed"
    arguments = ["pretrain", name, archive, str(folder), *options_of(name, archive, work)]
    kill_after_first_checkpoint(arguments, folder)
    run(*arguments)
    went_on_at = [event["start"] for event in records(folder, "events.jsonl") if event["event"] == "training"][-1]
    if not went_on_at:
        raise SystemExit(f"'{folder}' began anew; expected it to go on from its checkpoint")
    models = [(work / name / part / "model" / "model.safetensors").read_bytes() for part in ("run", "killed")]
    return {"went_on_at": went_on_at, "resumed_exactly": models[0] == models[1]}


def probe(names: list[str], work: Path) -> dict[str, dict[str, Any]]:
    """Return the mean and spread of each recipe's probe, and of its encoder's before training."""
    first, *others = (work / name / "run" for name in names)
    also = ["--also", *others] if others else []
    sensors = ["--sensors", PROBED, "--finetune-steps", "1", "--seeds", "3"]
    summary = run("evaluate", TASK, first, work / "scores", *also, *sensors)
    found = {row["model"]: [row["mean"], row["spread"]] for row in summary["table"] if row["method"] == "linear"}
    titles = ["pretrained", *(f"pretrained {name}" for name in names[1:])]
    configs = [Encoder.load(work / name / "run" / "model").config for name in names]
    untrained = [random_title(titles[i]) if i else RANDOM for i in map(configs.index, configs)]
    return {name: {"probe": found[title], "random": found[other]} for name, title, other in zip(names, titles, untrained)}


def row(name: str, facts: dict[str, Any]) -> str:
    changes = "<br>".join(
        f"{sensors} " + " → ".join(f"{value:.3g}" for value in values) for sensors, values in sorted(facts["losses"].items())
    )
    lowest = {kind: min((v for k, v in facts["health"].items() if k.startswith(f"{kind}/")), default=None) for kind in KINDS}
    measured = [f"{lowest[kind]:.2g}" if lowest[kind] is not None else "" for kind in KINDS]
    probes = ["{:.3f} ± {:.3f}".format(*facts[kind]) if kind in facts else "" for kind in ("probe", "random")]
    cells = [
        name, f"{facts['parameters'] / 1e3:.0f} k", f"{facts['seconds']:.0f}", f"{facts['training_seconds']:.0f}",
        f"{facts['memory_mib']:.0f}", changes, *measured, *probes, {True: "yes", False: "**no**", None: ""}[facts.get("resumed_exactly")],
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


KINDS = ("feature_std", "effective_rank", "projection_std")
HEAD = f"""# Tiny recipes

`python -m tests.bench.bench_recipes ARCHIVE`, each from the command line on the demo planet, two CPU cores: 60 steps, 120 of the
masked autoencoders, the least that shows whether a recipe learns, not how well.

- seconds: the command from start to end; in training: between the workers' first step and the last checkpoint.
- memory: of the training workers together, MiB, at its peak, without what they share.
- loss: mean of a tenth of the steps (at least {FEWEST_STEPS}) of each sensor, or set of sensors: the first → the first after the warm-up →
  the last. MoCo's and DINO's are low before a queue is filled, a centre found.
- std, rank: of the embeddings, at the end, the lowest sensor's; a run that falls under {MIN_STD:g} and {MIN_RANK:g} is ended. Head std: of
  what the loss compares, ended under {MIN_HEAD_SHARE:g} of the embeddings'.
- probe: {TASK} from {PROBED}, linear, mean ± standard deviation over 3 seeds; beside it the same encoder before training.
- resumes: killed after its first checkpoint and started again, the model has the bits of the undisturbed run's.

| recipe | encoder | seconds | in training | memory | loss | std | rank | head std | probe | untrained | resumes |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--only", default="", help="names of recipes, with commas between; default: all tiny ones")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of recipes.md and recipes.json")
    parser.add_argument(
        "--parts", nargs="+", default=PARTS, choices=PARTS, help="what to do; later parts need earlier ones' --work"
    )
    parser.add_argument("--work", type=Path, help="keep the runs in this folder")
    options = parser.parse_args()
    known = [name for name in recipes("pretrain") if name.endswith("_tiny")]
    chosen = options.only.split(",") if options.only else known
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"no tiny recipe is called {', '.join(unknown)} (known: {', '.join(known)})")
    work = options.work or Path(tempfile.mkdtemp(prefix="recipes_"))
    connect()
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    path = options.out / "recipes.json"
    found = json.loads(path.read_text()) if path.is_file() else {}

    def keep(facts: dict[str, dict[str, Any]]) -> None:
        for name, more in facts.items():
            found[name] = found.get(name, {}) | more
            print(name, more, flush=True)
        path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")

    for part in (whole, resumed):
        for name in chosen if part.__name__ in options.parts else ():
            keep({name: part(name, options.archive, work)})
    if "probe" in options.parts:
        keep(probe(chosen, work))
    rows = [row(name, facts) for name, facts in sorted(found.items())]
    (options.out / "recipes.md").write_text(HEAD + "\n".join(rows) + "\n")
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
