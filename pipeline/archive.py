"""The archive: write-once Zarr v3 shards plus a GeoParquet catalog, as `docs/design.md` section 3.4 lays it out.

Decides what is on disk and when it counts: a shard exists for readers once its catalog part names it. A shard carries
its own catalog rows and statistics, so that both can be had again from it. What goes into a tile is decided by
`coregister` and `ingest`; fast decoding is `reader`'s.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from pipeline import reader, storage
from pipeline.errors import InputError
from pipeline.grid import Grid
from pipeline.labels import Label, LabelMap
from pipeline.sensors import Sensor, sensor_from_dict
from pipeline.shard import MAPS, STATISTICS, Tile, write_shard
from pipeline.statistics import SensorStatistics, read_table

SCHEMA_VERSION = 2  # 2: a crc32c after every tile, shards carry their catalog rows and statistics
INDEX = "archive.json"
ROWS = "catalog.parquet"
NUM_READERS = 16
TILE_COLUMNS = ("shard", "site", "sensor", "time", "order", "row", "split", "lon_deg", "lat_deg")


class DamagedShard(InputError):
    """A shard that is not, byte by byte, what was published."""


class Archive:
    """An archive at `url`, local or `s3://`. Use `open_archive` or `create_archive`."""

    def __init__(self, url: str, grid: Grid, sensors: dict[str, Sensor], labels: dict[str, Label]):
        self.url = url
        self.grid = grid
        self.sensors = sensors
        self.labels = labels

    features_url = ""
    """Where features are that are read beside the tiles (`features.py`); none by default."""

    def published(self) -> list[str]:
        """Return the ids of the shards that readers see."""
        parts = storage.names(storage.join(self.url, "catalog"))
        return [name.removesuffix(".parquet") for name in parts if name.endswith(".parquet")]

    def catalog(self) -> gpd.GeoDataFrame:
        """Return one row per tile, ordered by shard, sensor and row."""
        with ThreadPoolExecutor(NUM_READERS) as pool:
            parts = [part for part in pool.map(self._read_part, self.published()) if part is not None]
        if not parts:
            raise InputError(f"archive '{self.url}' has no tiles; fill it with 'terraloom coregister' or 'terraloom ingest'")
        table = pd.concat(parts, ignore_index=True)
        return table.sort_values(["shard", "sensor", "row"], ignore_index=True)

    def rows(self, shard: str) -> gpd.GeoDataFrame:
        """Return one row per tile of one shard, ordered by sensor and row."""
        part = self._read_part(shard)
        if part is None:
            raise InputError(f"shard '{shard}' is no longer in archive '{self.url}'; start a new run")
        return part.sort_values(["sensor", "row"], ignore_index=True)

    def tiles(self, shards: Sequence[str], more: Sequence[str] = ()) -> pd.DataFrame:
        """Return of each tile in `shards` the columns that say where and when it is, and `more`; far less than the catalog has."""
        if len(shards) == 1:
            return self._read_columns(shards[0], more)
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return pd.concat(list(pool.map(lambda shard: self._read_columns(shard, more), shards)), ignore_index=True)

    def _read_columns(self, shard: str, more: Sequence[str]) -> pd.DataFrame:
        try:
            content = io.BytesIO(storage.read_bytes(self._part_url(shard)))
            return pq.read_table(content, columns=[*TILE_COLUMNS, *more], use_threads=False).to_pandas()
        except FileNotFoundError:
            raise InputError(f"shard '{shard}' is no longer in archive '{self.url}'; start a new run") from None
        except (OSError, ValueError) as error:
            raise self._damaged_part(shard, error) from None

    def _read_part(self, shard: str) -> gpd.GeoDataFrame | None:
        """Return the catalog part of a shard; None where a job that writes it again has just taken it away."""
        try:
            return gpd.read_parquet(io.BytesIO(storage.read_bytes(self._part_url(shard))))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged_part(shard, error) from None

    def _damaged_part(self, shard: str, error: Exception) -> InputError:
        return InputError(f"catalog part of shard '{shard}' is damaged ({error}); run 'terraloom repair {self.url}'")

    def _part_url(self, shard: str) -> str:
        return storage.join(self.url, "catalog", f"{shard}.parquet")

    def _empty_url(self, shard: str) -> str:
        return storage.join(self.url, "empty", shard)

    def shard_url(self, shard: str) -> str:
        return storage.join(self.url, "shards", _plain(shard, f"shard id in the catalog of '{self.url}'") + ".zarr")

    def read(self, shard: str, sensor: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return stored pixels (row, band, y, x) and validity (row, y, x) of tiles `rows` of one sensor in one shard."""
        root = storage.join(self.shard_url(shard), sensor)
        return reader.read_rows(storage.join(root, "pixels"), rows), reader.read_rows(storage.join(root, "valid"), rows)

    def read_map(self, shard: str, sensor: str, label: str, rows: np.ndarray) -> LabelMap:
        """Return label `label` of kind 'map' on tiles `rows` of one sensor in one shard: (row, y, x) each.

        Tiles that do not have it are labelled nowhere.
        """
        root = storage.join(self.shard_url(shard), sensor, MAPS, _plain(label, "label"))
        try:
            parts = [reader.read_rows(storage.join(root, name), rows) for name in ("classes", "labelled")]
        except FileNotFoundError:
            raise InputError(
                f"shard '{shard}' has no map '{label}' of {sensor}; 'terraloom inspect' says which labels there are"
            ) from None
        return LabelMap(*parts)

    def inputs(self) -> dict[str, str]:
        """Return {shard: what `publish` was told it was made from}, of shards without tiles too."""
        empty = [name for name in storage.names(storage.join(self.url, "empty")) if not name.startswith(".")]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            found = {shard: text.decode() for shard, text in zip(empty, pool.map(storage.read_bytes, map(self._empty_url, empty)))}
            parts = list(pool.map(self._read_part, self.published()))
        return found | {str(part["shard"].iloc[0]): str(part["inputs"].iloc[0]) for part in parts if part is not None}

    def publish(self, shard: str, split: str | Mapping[str, str], tiles: list[Tile], inputs: str) -> int:
        """Write `tiles` as one shard and make it visible; return the number of tiles.

        `split` is that of all tiles, or of each site. `inputs` is a digest of what the shard was made from, so that a
        later job knows what is up to date.

        Until the catalog part is there nobody reads the shard, so a writer killed at any point leaves nothing behind
        that counts. Publishing a shard again replaces it; publishing no tiles takes it away and only notes that.
        """
        if not tiles:
            self.withdraw(shard)
            storage.write_bytes(self._empty_url(shard), inputs.encode())
            return 0
        with storage.staged_folder(self.shard_url(shard)) as folder:
            rows = write_shard(folder, tiles, self.sensors, self.labels, self.grid)
            digest = storage.folder_digest(str(folder))
            for row in rows:
                row |= {"shard": shard, "split": split if isinstance(split, str) else split[row["site"]]}
                row |= {"shard_digest": digest, "inputs": inputs}
            content = _part_content(rows)
            (folder / ROWS).write_bytes(content)
            self.hide(shard)
        storage.write_bytes(self._part_url(shard), content)
        storage.remove(self._empty_url(shard))
        return len(rows)

    def withdraw(self, shard: str) -> None:
        """Take a shard out of the archive: first from readers' sight, then from the store."""
        self.hide(shard)
        storage.remove(self.shard_url(shard))

    def whole_rows(self, shard: str) -> bytes:
        """Return the catalog part that a shard carries in itself; DamagedShard unless its every byte is as it was written."""
        url = self.shard_url(shard)
        try:
            content = storage.read_bytes(storage.join(url, ROWS))
        except FileNotFoundError:
            raise DamagedShard(f"{shard}: was never finished, or is not there") from None
        try:
            stated = gpd.read_parquet(io.BytesIO(content))
        except (OSError, ValueError) as error:
            raise DamagedShard(f"{shard}: its own catalog rows are damaged ({error})") from None
        if (stated["shard"] != shard).any() or (stated["shard_digest"] != storage.folder_digest(url, without=ROWS)).any():
            raise DamagedShard(f"{shard}: checksum differs from the one it was published with")
        return content

    def republish(self, shard: str) -> bool:
        """Publish what a shard says of itself; return whether that was not so before; DamagedShard where it is not whole."""
        content = self.whole_rows(shard)
        if self.is_as_published(shard, content):
            return False
        storage.write_bytes(self._part_url(shard), content)
        return True

    def is_as_published(self, shard: str, rows: bytes) -> bool:
        """Return whether the catalog part of a shard is `rows`, byte by byte."""
        return storage.exists(self._part_url(shard)) and storage.read_bytes(self._part_url(shard)) == rows

    def hide(self, shard: str) -> None:
        """Take a shard out of readers' sight."""
        storage.remove(self._part_url(shard))

    def scene_records(self) -> dict[str, Any]:
        """Return what jobs wrote down of the scenes that they put into the archive, by scene id."""
        folder = storage.join(self.url, "scenes")
        urls = [storage.join(folder, name) for name in storage.names(folder) if name.endswith(".json")]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return {record["scene"]["id"]: record for record in pool.map(storage.read_json, urls)}

    def write_scene_record(self, record: dict[str, Any]) -> None:
        """Keep `record` of the scene that its entry 'scene' describes; ids may hold any character, file names may not."""
        name = hashlib.sha256(record["scene"]["id"].encode()).hexdigest()[:16]
        storage.write_json(storage.join(self.url, "scenes", f"{name}.json"), record)

    def digest(self) -> str:
        """Return the SHA-256 of all that the archive holds: catalog rows and, through them, the bytes of the shards.

        It depends neither on the order of publishing nor on where the scenes lay.
        """
        rows = self.catalog()
        table = pd.DataFrame(rows.drop(columns=["inputs", "geometry"])).assign(geometry=rows.geometry.to_wkb(hex=True))
        text = table[sorted(table.columns)].to_json(orient="records", double_precision=15, date_format="iso", date_unit="us")
        return hashlib.sha256(text.encode()).hexdigest()

    def shard_statistics(self, shard: str) -> dict[str, SensorStatistics]:
        """Return the statistics of one shard's valid pixels, by sensor, as they were when it was written."""
        return read_table(storage.read_bytes(storage.join(self.shard_url(shard), STATISTICS)))

    def read_statistics(self) -> dict[str, Any]:
        """Return `statistics.json`: per sensor and band over valid pixels of the train split, in physical units."""
        url = storage.join(self.url, "statistics.json")
        if not storage.exists(url):
            raise InputError(f"archive '{self.url}' has no statistics.json; run its 'coregister' or 'ingest' to the end")
        return storage.read_json(url)


def _part_content(rows: list[dict[str, Any]]) -> bytes:
    frame = gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326")
    frame["time"] = pd.to_datetime(frame["time"], utc=True)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def is_archive(url: str) -> bool:
    return storage.exists(storage.join(url, INDEX))


def open_archive(url: str) -> Archive:
    """Open an existing archive; refuses another schema version."""
    index = storage.join(url, INDEX)
    if not is_archive(url):
        raise InputError(f"no archive at '{url}' ({INDEX} is missing); make one with 'terraloom coregister' or 'terraloom ingest'")
    content = storage.read_json(index)
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"archive '{url}' has schema version {version}, this program reads version {SCHEMA_VERSION}; "
            "make the archive anew or use the Terraloom that wrote it"
        )
    sensors = {name: sensor_from_dict(spec, f"{name} of '{url}'") for name, spec in _read_definitions(url, "sensors").items()}
    labels = {n: Label(**{**spec, "classes": tuple(spec["classes"])}) for n, spec in _read_definitions(url, "labels").items()}
    return Archive(storage.absolute(url), Grid(**content["grid"]), sensors, labels)


def _read_definitions(url: str, kind: str) -> dict[str, Any]:
    folder = storage.join(url, kind)
    return {
        n.removesuffix(".json"): storage.read_json(storage.join(folder, n)) for n in storage.names(folder) if n.endswith(".json")
    }


def create_archive(url: str, grid: Grid, sensors: dict[str, Sensor], labels: dict[str, Label]) -> Archive:
    """Open the archive at `url`, or begin one, and make it hold `sensors` and `labels` too.

    The grid, and the definition of a sensor or label that is already there, cannot change. Each definition is a file
    of its own that is created once, so jobs that add to one archive at the same time lose nothing.
    """
    index = storage.join(url, INDEX)
    begun = [name for name in storage.names(url) if not name.startswith(".")]  # a dot: another job is beginning it just now
    if begun and not is_archive(url):
        raise InputError(f"'{url}' is not empty and not an archive; give a new or an archive folder")
    for sensor in sensors.values():
        sensor.tile_shape(grid.site_size_m)
    storage.create_bytes(index, storage.json_bytes({"schema_version": SCHEMA_VERSION, "grid": asdict(grid)}))
    archive = open_archive(url)
    if archive.grid != grid:
        raise InputError(f"archive '{url}' has {archive.grid}, this job asks for {grid}; use the archive's or another folder")
    specs = {("sensors", name): sensor.model_dump(mode="json", exclude_defaults=True) for name, sensor in sensors.items()}
    specs |= {("labels", name): asdict(label) for name, label in labels.items()}
    for (folder, name), spec in specs.items():
        storage.create_bytes(storage.join(url, folder, f"{_plain(name, f'name in {folder}')}.json"), storage.json_bytes(spec))
    archive = open_archive(url)
    for kind, present, wanted in (("sensor", archive.sensors, sensors), ("label", archive.labels, labels)):
        for name, definition in wanted.items():
            if present[name] != definition:
                raise InputError(f"{kind} '{name}' is defined otherwise in archive '{url}'; use another archive or name")
    return archive


def _plain(name: str, what: str) -> str:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise InputError(f"{what} is '{name}', not a plain name; use letters, digits, _ and -")
    return name
