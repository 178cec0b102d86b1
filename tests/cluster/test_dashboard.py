"""The dashboard's charts ask for names that jobs count or runs record."""

import json
import re
from pathlib import Path

import pytest

import cluster
from cluster.counters import COUNTERS, GAUGES

BOARD = json.loads((Path(cluster.__file__).parent / "grafana" / "terraloom.json").read_text())
CHARTS = [panel for panel in BOARD["panels"] if panel["type"] == "timeseries"]
FOLDER = Path(__file__).parents[2]
RECORDED = "".join((FOLDER / name).read_text() for name in ("cluster/loop.py", "cluster/engine.py", "models/health.py"))


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart["title"])
def test_every_name_is_one_of_ours_or_rays(chart: dict) -> None:  # type: ignore[type-arg]
    ours = {f"{name}_total" for name in COUNTERS} | {*GAUGES} | {"step", "loss"}
    names = {name for target in chart["targets"] for name in re.findall(r"\bray_\w+", target["expr"])}
    assert names
    for name in names:
        own = name.removeprefix("ray_terraloom_")
        assert own == name or own in ours or f'"{own}"' in RECORDED, name


def test_all_counters_are_shown() -> None:
    shown = json.dumps(CHARTS)
    assert [name for name in (*COUNTERS, *GAUGES) if f"ray_terraloom_{name}" not in shown] == []
