"""What a run trains on, fixed when it begins: which shards have how many samples of which sensor sets.

Kept in the run's folder, so that a run that goes on sees the plan that it had, however the archive has grown, and need
not look through the catalog again. Ranks are given the plan; none of them reads the whole catalog.
"""

import numpy as np

from cluster.run import Run
from pipeline import storage
from pipeline.errors import InputError
from pipeline.plan import Plan, SetPlan
from pipeline.samples import SampleSource
from pipeline.views import SensorSet

FILE = "plan.json"
Counts = dict[SensorSet, tuple[list[str], np.ndarray]]


def counts_of_run(run: Run, source: SampleSource, sensor_sets: tuple[SensorSet, ...]) -> Counts:
    """Return the numbers of samples that the run began with, or count them and write them down."""
    if storage.exists(run.path(FILE)):
        sets = storage.read_json(run.path(FILE))["sets"]
        return {tuple(s["sensors"]): (list(s["shards"]), np.array(list(s["shards"].values()))) for s in sets}
    counts = count(source, sensor_sets)
    sets = [{"sensors": s, "shards": dict(zip(shards, sizes.tolist()))} for s, (shards, sizes) in counts.items()]
    storage.write_json(run.path(FILE), {"view": repr(source.view), "sets": sets})
    return counts


def count(source: SampleSource, sensor_sets: tuple[SensorSet, ...]) -> Counts:
    """Return the numbers of samples of `sensor_sets`, or of those that suit the archive where none are named."""
    counts, view = source.count(list(sensor_sets) or source.sensor_sets()), type(source.view).__name__
    where = f"{' and '.join(source.splits)} split of '{source.archive.url}'"
    for sensor_set in sensor_sets if source.replay is None else ():
        if not counts[sensor_set][0]:
            raise InputError(
                f"no site in the {where} has what a {view} of {', '.join(sensor_set)} takes; use other sensor_sets or another view"
            )
    found = {sensor_set: of_shards for sensor_set, of_shards in counts.items() if of_shards[0]}
    if not found:
        raise InputError(f"the {where} has no {view} sample; add ground or dates until it has, or use another view")
    return found


def plan_of(counts: Counts, lanes: int, batch_size: int, window_shards: int, seed: int, share_exponent: float = 1.0) -> Plan:
    """Return the plan; steps take a sensor set in proportion to this power of its samples."""
    sets = [SetPlan(s, *of_shards, lanes, batch_size, window_shards, seed) for s, of_shards in counts.items()]
    return Plan(sets, [float(chosen.sizes.sum()) ** share_exponent for chosen in sets])
