"""Whether a site has changed between its first and its last date, from polygons of what changed and when.

For archives without a label of change. Polygons are GeoJSON with a `time` (ISO 8601) each, as `terraloom simulate` writes them
to truth/changes.geojson. A site has changed where such polygons cover MIN_SHARE of it and lie between its two dates.
"""

import numpy as np
import pandas as pd

from jobs.evaluation.samples import samples_of
from jobs.sweeping.quiz import SPLITS, Quiz, drawn
from pipeline import storage
from pipeline.archive import Archive
from pipeline.errors import InputError

LABEL = "changed"
MIN_SHARE = 0.01
MIN_EACH = 2
"""Sites that have changed, and that have not, in each split."""


def change_quizzes(archive: Archive, url: str, num_samples: int) -> list[Quiz]:
    """Return a quiz for each sensor with two dates; raise InputError where some split lacks changed sites or others."""
    import geopandas as gpd

    if not storage.exists(url):
        raise InputError(f"changes '{url}' are missing, expected GeoJSON of polygons, each with a time")
    with storage.local_copy(url) as path:
        changes = gpd.read_file(path)
    if "time" not in changes or changes.crs is None:
        raise InputError(f"changes '{url}' have no time or no CRS, expected polygons with a property 'time' each")
    times, catalog, found = pd.to_datetime(changes["time"], utc=True), archive.catalog(), []
    sites = catalog.drop_duplicates("site").set_index("site").to_crs(changes.crs).geometry
    for name, tiles in catalog.groupby("sensor"):
        dates = tiles.sort_values(["site", "order"]).groupby("site")
        first, last = (table.set_index("site", drop=False) for table in (dates.nth(0), dates.nth(-1)))
        two = first.index[(dates["row"].count().reindex(first.index) > 1).to_numpy()]
        first, last = first.loc[two], last.loc[two]
        share = np.zeros(len(two))
        for polygon, time in zip(changes.geometry, times):
            is_between = (pd.to_datetime(first["time"], utc=True) < time).to_numpy() & (
                pd.to_datetime(last["time"], utc=True) >= time
            ).to_numpy()
            ground = sites.loc[two]
            share += is_between * (ground.intersection(polygon).area / ground.area).to_numpy()
        labels = (share >= MIN_SHARE).astype(float)
        samples = samples_of({str(name): [first, last]}, labels, labels)
        counts = {split: np.bincount(labels[samples.part(split)].astype(int), minlength=2) for split in SPLITS}
        if len(two) and min(of.min() for of in counts.values()) >= MIN_EACH:
            found.append(Quiz(LABEL, archive, samples, drawn(samples, num_samples), labels, "binary"))
    if not found:
        raise InputError(
            f"no sensor of '{archive.url}' has {MIN_EACH} sites that changed by '{url}', and as many others, in every split; "
            "use more ground or more changes"
        )
    return found
