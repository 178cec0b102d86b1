"""Which old samples a run with new scenes is shown again, fixed when it begins and kept in its folder."""

import json
from dataclasses import replace

from cluster.job import TrainConfig
from cluster.run import Run
from cluster.snapshot import Counts
from pipeline import storage
from pipeline.errors import InputError
from pipeline.replay import Replay
from pipeline.samples import SampleSource

FILE = "replay.json"


def replay_of_run(run: Run, source: SampleSource, config: TrainConfig) -> Replay | None:
    """Return the replay that the run began with, or find its share of old samples and write it down; None without new scenes."""
    if not config.new_scenes:
        return None
    if storage.exists(run.path(FILE)):
        found = storage.read_json(run.path(FILE))
        return Replay(frozenset(found["new"]), frozenset(found["withheld"]), found["keep"], found["seed"])
    new, withheld = _scenes(config.new_scenes)
    replay = Replay(new, withheld, seed=config.seed)
    sets = list(config.sensor_sets) or replace(source, replay=replay).sensor_sets()
    num_new, num_all = (_total(replace(source, replay=replace(replay, keep=keep)).count(sets)) for keep in (0.0, 1.0))
    if not num_new:
        raise InputError(
            f"no {type(source.view).__name__} training sample of '{source.archive.url}' shows one of the {len(new)} scenes "
            f"that '{config.new_scenes}' names as new; coregister them first, or leave new_scenes out"
        )
    replay = replay.of(num_new, num_all - num_new, config.replay)
    about = {"new_samples": num_new, "old_samples": num_all - num_new, "keep": replay.keep, "seed": replay.seed}
    storage.write_json(run.path(FILE), {**about, "new": sorted(replay.new), "withheld": sorted(replay.withheld)})
    return replay


def enough(counts: Counts, lanes: int, run: Run) -> Counts:
    """Return the sensor sets that have a sample for each lane: of a set without new scenes only few old ones may be left."""
    few = {s: int(of_shards[1].sum()) for s, of_shards in counts.items() if of_shards[1].sum() < lanes}
    for sensor_set, number in few.items() if len(few) < len(counts) else ():
        run.event("left_out", sensors="+".join(sensor_set), because=f"{number} samples for {lanes} lanes")
    return {s: of_shards for s, of_shards in counts.items() if s not in few} or counts


def _total(counts: Counts) -> int:
    return sum(int(sizes.sum()) for _, sizes in counts.values())


def _scenes(url: str) -> tuple[frozenset[str], frozenset[str]]:
    try:
        content = storage.read_json(url)
        unknown = set(content) - {"new", "withheld"}
        if unknown:
            raise ValueError(f"has '{sorted(unknown)[0]}'")
        return frozenset(map(str, content["new"])), frozenset(map(str, content.get("withheld", ())))
    except FileNotFoundError:
        raise InputError(f'no file \'{url}\'; expected JSON such as {{"new": ["scene id"], "withheld": []}}') from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(
            f'\'{url}\' cannot be used ({said}); expected JSON such as {{"new": ["scene id"], "withheld": []}}'
        ) from None
