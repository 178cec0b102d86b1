"""What Ray Train and DeepSpeed cost beside a bare loop: `python -m tests.bench.bench_hosts ARCHIVE --work DIR`.

The same recipe on the same samples, in turns: in one process of plain torch, and as one worker of Ray Train under DeepSpeed
with each ZeRO stage asked for. Seconds of a step are those that metrics.jsonl tells, the first ones left out; data wait is
the share of a step spent waiting for its samples.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median

LEFT_OUT = 20


def steps(folder: Path) -> tuple[list[float], list[float], float]:
    """Return relative seconds of each step, its data wait, and the last loss."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][LEFT_OUT:]
    return (
        [1 / r["samples_per_second"] for r in records],
        [r["data_wait_share"] for r in records],
        mean(r["loss"] for r in records[-10:]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive")
    parser.add_argument("--recipe", default="mae")
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", type=int, nargs="+", default=[2])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("options", nargs="*", help="further options of terraloom pretrain, after --")
    given = parser.parse_args()
    hosts = {"bare loop": ["--workers", "0"]}
    hosts |= {f"Ray Train, ZeRO {stage}": ["--workers", "1", "--zero-stage", str(stage)] for stage in given.stages}
    found: dict[str, tuple[list[float], list[float], list[float]]] = {name: ([], [], []) for name in hosts}
    for turn in range(given.rounds):
        for number, (name, options) in enumerate(hosts.items()):
            folder = given.work / f"{turn}_{number}"
            fixed = ["--num-steps", str(given.steps), "--checkpoint-every", str(given.steps), "--health-every", "0"]
            command = ["pretrain", given.recipe, given.archive, str(folder), *fixed, *options, *given.options]
            subprocess.run([sys.executable, "-m", "jobs.cli", *command], check=True, capture_output=True)
            seconds, waits, loss = steps(folder)
            found[name][0].extend(seconds)
            found[name][1].extend(waits)
            found[name][2].append(loss)
    base = median(found["bare loop"][0])
    print("| host | a step, relative (quartile, quartile) | data wait, mean | loss of the last 10 |")
    print("|---|---|---|---|")
    for name, (seconds, waits, losses) in found.items():
        ordered = sorted(seconds)
        low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
        print(
            f"| {name} | {median(seconds) / base:.3f} ({low / base:.3f}, {high / base:.3f}) | {mean(waits):.1%} "
            f"| {', '.join(f'{loss:.5f}' for loss in losses)} |"
        )


if __name__ == "__main__":
    main()
