"""The whole chain on a simulated planet: what `make demo` runs, command by command, in the folder `demo`."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

CHAIN = (
    "simulate demo/planet",
    "coregister demo/planet/scenes demo/archive --labels demo/planet/truth",
    "pretrain msgfm demo/archive demo/pretrained",
    "distill student demo/pretrained demo/archive demo/student",
    "evaluate landcover demo/pretrained demo/landcover --also demo/student --sensors sentinel2_l2a sentinel1_grd",
    "report demo/pretrained demo/student demo/landcover --out demo/report.html",
)


def main() -> None:
    """Run the chain; a step that was finished before is only reported."""
    started = time.monotonic()
    for command in CHAIN:
        print(f"\n$ terraloom {command}", flush=True)
        before = time.monotonic()
        status = subprocess.run([sys.executable, "-m", "jobs.cli", *shlex.split(command)], check=False).returncode
        if status:
            raise SystemExit(status)
        print(f"({time.monotonic() - before:.0f} s)", flush=True)
    print(f"\nThe chain took {(time.monotonic() - started) / 60:.1f} minutes. The report: {Path('demo/report.html').resolve()}")


if __name__ == "__main__":
    main()
