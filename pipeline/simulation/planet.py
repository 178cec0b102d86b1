"""A seeded synthetic planet: terrain, drainage, land cover and the fine structure of every class, without any sensor.

This file decides where things are, in one UTM frame: terrain on a 40 m lattice, classes on the 10 m truth grid and, on
a 2.5 m grid, a material, its tone and its height above ground. What a material looks like is in `materials.py`, what
a sensor records in `imaging.py`. Arrays are (y, x), first row north; x, y are metres east and south of the north-west corner.
"""

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.features import rasterize, shapes
from rasterio.transform import from_origin
from scipy import ndimage
from scipy.spatial import cKDTree
from shapely.geometry import LineString

from pipeline.simulation.materials import INDEX, PHASES

CLASSES = (
    "water", "broadleaf_forest", "conifer_forest", "grassland", "cropland", "orchard", "urban", "suburban", "bare", "wetland", "road",
)  # fmt: skip
WATER, BROADLEAF, CONIFER, GRASSLAND, CROPLAND, ORCHARD, URBAN, SUBURBAN, BARE, WETLAND, ROAD = range(len(CLASSES))
SHARES = {
    BROADLEAF: 0.14,
    CONIFER: 0.15,
    GRASSLAND: 0.16,
    CROPLAND: 0.19,
    ORCHARD: 0.08,
    URBAN: 0.08,
    SUBURBAN: 0.09,
    BARE: 0.06,
    WETLAND: 0.05,
}
"""Share of the dry land each class is steered towards; water follows from the terrain."""

LATTICE_M, TRUTH_M, FINE_M = 40.0, 10.0, 2.5
TONE_ONE = 100.0  # stored tone of a material at its library brightness
HEIGHT_STEP_M = 0.25
STRIPS, LENGTHS = 64, 32  # parcel addresses inside one block, across and along
CHUNK = 256  # fine cells painted at once, square: the working set stays in cache (two threads were slower, not faster)


@dataclass
class Surface:
    """Fine structure at one epoch on the 2.5 m grid, all uint8, and the 10 m classes it sums up to.

    `code` = material index x PHASES + growth phase; brightness = `tone` / TONE_ONE; height = `height` x HEIGHT_STEP_M.
    """

    code: np.ndarray
    tone: np.ndarray
    height: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Change:
    """One true change of land cover: `is_changed` on the 10 m grid."""

    kind: str
    before: int
    after: int
    is_changed: np.ndarray

    def polygons(self, transform: Any) -> list[dict[str, Any]]:
        """Return GeoJSON geometries that cover exactly the changed cells, in the transform's CRS."""
        return [geometry for geometry, _ in shapes(self.is_changed.astype(np.uint8), self.is_changed, transform=transform)]


def noise(generator: np.random.Generator, shape: tuple[int, int], wavelength_px: float, roughness: float = 3.0) -> np.ndarray:
    """Return periodic noise of mean 0, variance 1: flat spectrum above `wavelength_px`, falling as f^-roughness below."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    white = np.fft.rfft2(generator.standard_normal(shape, dtype=np.float32))
    field = np.fft.irfft2(white * (1 + (frequency * wavelength_px) ** 2) ** (-roughness / 2), shape)
    return ((field - field.mean()) / field.std()).astype(np.float32)


def drain(elevation_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (filled elevation, receiver, upstream cells) by priority flood (Barnes et al. 2014); receiver of an outlet is itself."""
    height, width = elevation_m.shape
    filled = elevation_m.astype(float).ravel().copy()
    receiver = np.full(filled.size, -1)
    border = np.ones((height, width), bool)
    border[1:-1, 1:-1] = False
    heap = [(filled[cell], cell) for cell in np.flatnonzero(border).tolist()]
    for _, cell in heap:
        receiver[cell] = cell
    heapq.heapify(heap)
    order = []
    while heap:
        level, cell = heapq.heappop(heap)
        order.append(cell)
        y, x = divmod(cell, width)
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                neighbour = cell + dy * width + dx
                if receiver[neighbour] < 0:
                    receiver[neighbour] = cell
                    filled[neighbour] = max(filled[neighbour], level)
                    heapq.heappush(heap, (filled[neighbour], neighbour))
    upstream = np.ones(filled.size)
    for cell in reversed(order):
        if receiver[cell] != cell:
            upstream[receiver[cell]] += upstream[cell]
    return filled.reshape(height, width), receiver, upstream


def steer(scores: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return argmax over `scores` (class, cell) after adding the per-class bias that brings the classes to `shares`."""
    bias = np.zeros((len(scores), 1))
    for step in 0.5 * 0.97 ** np.arange(120):
        found = np.bincount((scores + bias).argmax(0), minlength=len(scores)) / scores.shape[1]
        bias[:, 0] += step * np.log(shares / np.maximum(found, shares / 20))
    return (scores + bias).argmax(0)


def block_sum(cells: np.ndarray, factor: int) -> np.ndarray:
    """Return sums over factor x factor blocks, float32."""
    rows = sum((cells[k::factor].astype(np.float32) for k in range(1, factor)), cells[::factor].astype(np.float32))
    return sum((rows[:, k::factor] for k in range(1, factor)), rows[:, ::factor])


class Planet:
    """The world before any sensor sees it. `before` and `after` are its two epochs; `elevation_m` is bare terrain at 10 m."""

    def __init__(self, generator: np.random.Generator, size_m: float, num_changes: int) -> None:
        self.size_m = size_m
        self._lattice = (round(size_m / LATTICE_M),) * 2
        terrain, blocks, grain, changes = generator.spawn(4)
        self._raise_terrain(terrain)
        self._lay_out_blocks(blocks)
        fine = (round(size_m / FINE_M),) * 2
        self._grain = {
            sigma: _blobs(grain, (fine[0] // step, fine[1] // step), sigma / step) for sigma, step in ((0.8, 1), (1.6, 1), (8.0, 4))
        }
        code, tone, height = (np.empty(fine, np.uint8) for _ in range(3))
        self.before = Surface(code, tone, height, np.empty((fine[0] // 4,) * 2, np.uint8))
        self._paint(self.before, np.zeros_like(self.before.classes, bool), WATER)
        self.changes = self._draw_changes(changes, num_changes)
        self.after = Surface(*(a.copy() for a in (self.before.code, self.before.tone, self.before.height, self.before.classes)))
        for change in self.changes:
            self._paint(self.after, change.is_changed, change.after)

    def _raise_terrain(self, generator: np.random.Generator) -> None:
        """Hills, hollows and drainage; leaves elevation, lakes, rivers and roads."""
        size_m, shape = self.size_m, self._lattice
        y, x = (np.indices(shape, dtype=np.float32) + 0.5) * LATTICE_M
        relief_m = 110 * noise(generator, shape, min(6000, size_m) / LATTICE_M, 3.6)
        ground_m = 620 + relief_m + 260 * (y / size_m - 0.5) * min(1, size_m / 10000) + 1.5 * noise(generator, shape, 12, 2.5)
        for _ in range(max(1, round(size_m / 3400))):
            centre_y, centre_x = generator.uniform(0.15, 0.85, 2) * size_m
            radius_m = min(generator.uniform(350, 850), size_m / 5)
            ground_m -= 60 * np.exp(-(((y - centre_y) ** 2 + ((x - centre_x) * generator.uniform(0.7, 1.3)) ** 2) / radius_m**2))
        filled_m, receiver, upstream = drain(ground_m)
        self.lake_depth_m = ndimage.gaussian_filter((filled_m - ground_m).astype(np.float32), 1.0)
        self.elevation_m = ndimage.zoom(
            np.where(self.lake_depth_m > 4, filled_m, ground_m).astype(np.float32),
            4,
            order=1,
            grid_mode=True,
            mode="nearest",
        )
        self._is_river = self._trace_rivers(generator, receiver, upstream)
        water = (self.lake_depth_m > 4) | (block_sum(self._is_river, 16) > 60)
        self._classify_regions(generator, ground_m, water)
        self._roads = [
            (*generator.uniform(0.2, 0.8, 2) * size_m, angle, noise(generator, (1, 512), 45, 3)[0] * 260)
            for angle in generator.uniform(0, np.pi) + np.array([0, 1.3, 2.1])
        ]

    def _trace_rivers(self, generator: np.random.Generator, receiver: np.ndarray, upstream: np.ndarray) -> np.ndarray:
        """Return the river mask on the fine grid: smoothed flow paths, wider where more land drains through them."""
        width = self._lattice[1]
        drained_km2 = upstream * (LATTICE_M / 1000) ** 2
        least_km2 = max(0.15, 0.012 * (self.size_m / 1000) ** 2)
        is_river = drained_km2 > least_km2
        heads = np.flatnonzero(is_river & ~np.isin(np.arange(receiver.size), receiver[is_river]))
        wander = np.stack([noise(generator, self._lattice, 12, 3) for _ in range(2)], -1).reshape(-1, 2) * 30
        seen, reaches = np.zeros(receiver.size, bool), []
        for cell in sorted(heads.tolist(), key=lambda c: -upstream[c]):
            path = [cell]
            while receiver[path[-1]] != path[-1] and not seen[path[-1]]:
                seen[path[-1]] = True
                path.append(int(receiver[path[-1]]))
            points = np.array([((c % width + 0.5), (c // width + 0.5)) for c in path]) * LATTICE_M + wander[path]
            inner = ndimage.gaussian_filter1d(points, 2.5, axis=0, mode="nearest")
            inner[[0, -1]] = points[[0, -1]]
            for start in range(0, len(path) - 1, 4):
                width_m = 6 + 9 * np.sqrt(drained_km2[path[start]])
                reaches.append(
                    LineString(inner[start : start + 5] if start + 5 <= len(path) else inner[start:]).buffer(width_m / 2)
                )
        fine = (round(self.size_m / FINE_M),) * 2
        if not reaches:
            return np.zeros(fine, bool)
        return rasterize(reaches, fine, transform=from_origin(0, 0, FINE_M, -FINE_M), dtype="uint8").astype(bool)

    def _classify_regions(self, generator: np.random.Generator, ground_m: np.ndarray, is_water: np.ndarray) -> None:
        """One class per 40 m cell from noise and terrain: conifers high, crops low and flat, wetland near water."""
        shape = self._lattice
        wavelength_px = min(3400, self.size_m / 1.2) / LATTICE_M
        slope = np.hypot(*np.gradient(ndimage.gaussian_filter(ground_m, 3), LATTICE_M))
        high, steep = (_standardise(a) for a in (ground_m, slope))
        near = np.exp(-ndimage.distance_transform_edt(~is_water) * LATTICE_M / 350) if is_water.any() else np.zeros(shape)
        town = noise(generator, shape, wavelength_px, 3)
        preference = {
            BROADLEAF: 0.3 * steep, CONIFER: 0.7 * high + 0.2 * steep, GRASSLAND: 0.1 * high, CROPLAND: -0.5 * high - 0.6 * steep,
            ORCHARD: -0.3 * high, URBAN: 1.6 * town - 0.3 * steep, SUBURBAN: 1.4 * town - 0.1 * steep,
            BARE: 0.4 * high + 0.5 * steep, WETLAND: 2.0 * near - 0.5 * steep,
        }  # fmt: skip
        scores = np.stack(
            [
                value + noise(generator, shape, wavelength_px, 2.6) + 0.2 * noise(generator, shape, 10, 2)
                for value in preference.values()
            ]
        )
        chosen = steer(scores[:, ~is_water], np.array([SHARES[k] for k in preference]))
        self._regions = np.zeros(shape, np.uint8)
        self._regions[~is_water] = np.array(list(preference), np.uint8)[chosen]
        # Shores lie on water cells of the lattice; they take the class of the nearest land.
        nearest = ndimage.distance_transform_edt(is_water, return_distances=False, return_indices=True)
        self._regions = self._regions[tuple(nearest)]
        self._warp_m = np.stack([noise(generator, shape, 6, 2) for _ in range(2)]) * 22

    def _lay_out_blocks(self, generator: np.random.Generator) -> None:
        """Blocks of land (a Voronoi mosaic) with one orientation each, cut into parcels; tables hold what a parcel has drawn."""
        spacing_m = 620.0
        count = int(np.ceil(self.size_m / spacing_m)) + 2
        cells = np.indices((count, count)).reshape(2, -1).T - 1 + 0.5
        self._seeds = ((cells + generator.uniform(-0.38, 0.38, cells.shape)) * spacing_m).astype(np.float32)
        num = len(self._seeds)
        coarse = np.indices((round(self.size_m / 20),) * 2).reshape(2, -1).T * 20 + 10
        side = round(self.size_m / 20)
        self._nearest = cKDTree(self._seeds).query(coarse, k=2)[1].T.reshape(2, side, side).astype(np.int32)
        angle = generator.uniform(0, np.pi, num).astype(np.float32)
        self._cos, self._sin = np.cos(angle), np.sin(angle)
        self._strip_m = generator.uniform(45, 120, num).astype(np.float32)
        self._length_m = generator.uniform(130, 340, num).astype(np.float32)
        self._offset = generator.random((num, STRIPS), dtype=np.float32)
        size = (num, STRIPS, LENGTHS)
        self._parcel_tone = np.clip(generator.normal(1, 0.1, size), 0.7, 1.3).astype(np.float32)
        self._parcel_draw = generator.random(size, dtype=np.float32)
        self._parcel_phase = generator.integers(0, PHASES, size, dtype=np.uint8)
        self._parcel_crop = generator.choice([INDEX[n] for n in ("wheat", "maize", "rapeseed", "beet", "grass")], size, p=[0.36, 0.26, 0.14, 0.14, 0.1]).astype(np.uint8)  # fmt: skip
        self._lots = generator.random(1 << 16, dtype=np.float32)
        block, strip, length = np.indices(size, dtype=np.int32)
        u = (strip - STRIPS // 2 + 0.5) * self._strip_m[block]
        v = (length - LENGTHS // 2 + 0.5 - self._offset[block, strip]) * self._length_m[block]
        x = self._seeds[block, 1] + u * self._cos[block] - v * self._sin[block]
        y = self._seeds[block, 0] + u * self._sin[block] + v * self._cos[block]
        self._parcel_class = self._region_at(y, x)

    def _region_at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        last = self._lattice[0] - 1
        return self._regions[np.clip(y / LATTICE_M, 0, last).astype(int), np.clip(x / LATTICE_M, 0, last).astype(int)]

    def _draw_changes(self, generator: np.random.Generator, count: int) -> list[Change]:
        """Blobs well inside one class: forest felled, fields built over, meadows flooded."""
        kinds = (
            ("clear_cut", (CONIFER, BROADLEAF), BARE),
            ("built_up", (CROPLAND, ORCHARD), SUBURBAN),
            ("reservoir", (GRASSLAND, CROPLAND), WATER),
        )
        classes, changes = self.before.classes.copy(), []
        y, x = np.indices(classes.shape) * TRUTH_M
        for number in range(count):
            kind, sources, after = kinds[number % len(kinds)]
            depth = ndimage.distance_transform_edt(np.isin(classes, sources))
            candidates = np.flatnonzero(depth >= 0.6 * depth.max())
            if depth.max() < 4:
                continue
            centre = np.unravel_index(generator.choice(candidates), classes.shape)
            before = int(classes[centre])
            bearing = np.arctan2(y - centre[0] * TRUTH_M, x - centre[1] * TRUTH_M)
            wobble = sum(generator.uniform(-0.12, 0.12) * np.cos(k * bearing + generator.uniform(0, 6.3)) for k in (2, 3, 5))
            radius_m = min(generator.uniform(180, 420), self.size_m / 10)
            distance_m = np.hypot(y - centre[0] * TRUTH_M, x - centre[1] * TRUTH_M)
            is_changed = (distance_m < radius_m * (1 + wobble)) & (classes == before)
            classes[is_changed] = ROAD  # any class that no later change starts from
            changes.append(Change(kind, before, after, is_changed))
        return changes

    def _paint(self, surface: Surface, is_changed: np.ndarray, after: int) -> None:
        """Fill `surface` chunk by chunk; where `is_changed` holds anything, repaint only those cells with class `after`."""
        repaint = bool(is_changed.any())

        def paint(corner: tuple[int, int]) -> None:
            window = tuple(slice(start, min(start + CHUNK, surface.code.shape[0])) for start in corner)
            truth = tuple(slice(s.start // 4, s.stop // 4) for s in window)
            if repaint and not is_changed[truth].any():
                return
            forced = np.kron(is_changed[truth], np.ones((4, 4), bool)) if repaint else None
            classes, *structure = self._structure(window, forced, after)  # type: ignore[arg-type]
            keep = slice(None) if forced is None else forced
            for whole, part in zip((surface.code, surface.tone, surface.height), structure):
                whole[window][keep] = part[keep]
            present = np.unique(classes)
            votes = np.stack([block_sum(classes == k, 4) for k in present])
            coarse = slice(None) if forced is None else is_changed[truth]
            surface.classes[truth][coarse] = present[votes.argmax(0)][coarse]

        starts = range(0, surface.code.shape[0], CHUNK)
        for top in starts:
            for left in starts:
                paint((top, left))

    def _structure(self, window: tuple[slice, slice], forced: np.ndarray | None, after: int) -> tuple[np.ndarray, ...]:
        """Return (class, code, tone, height) of one chunk of the fine grid, cells of one class sharing its building plan."""
        rows, columns = (np.arange(s.start, s.stop) for s in window)
        y, x = (((a + 0.5) * FINE_M).astype(np.float32) for a in (rows[:, None], columns[None, :]))
        first, second = self._nearest[:, rows[:, None] // 8, columns[None, :] // 8]
        to_first, to_second = ((y - self._seeds[k, 0]) ** 2 + (x - self._seeds[k, 1]) ** 2 for k in (first, second))
        gap_m = np.abs(to_second - to_first) / (2 * np.hypot(*np.moveaxis(self._seeds[first] - self._seeds[second], -1, 0)))
        block = np.where(to_first <= to_second, first, second)
        east, south = x - self._seeds[block, 1], y - self._seeds[block, 0]
        u = east * self._cos[block] + south * self._sin[block]
        v = south * self._cos[block] - east * self._sin[block]
        across = u / self._strip_m[block] + STRIPS // 2
        strip = np.clip(across, 0, STRIPS - 1).astype(np.int32)
        along = v / self._length_m[block] + LENGTHS // 2 + self._offset[block, strip]
        length = np.clip(along, 0, LENGTHS - 1).astype(np.int32)
        parcel = (block, strip, length)
        margin_m = np.minimum((across % 1) * self._strip_m[block], (along % 1) * self._length_m[block])

        warp_y, warp_x, depth_m = (_linear(a, y / LATTICE_M - 0.5, x / LATTICE_M - 0.5) for a in (*self._warp_m, self.lake_depth_m))
        region = self._region_at(y + warp_y, x + warp_x)
        owned = self._parcel_class[parcel]
        natural = (BARE, WETLAND)
        classes = np.where(np.isin(region, natural) | np.isin(owned, natural), region, owned)
        is_lake = depth_m > 4
        is_river = self._is_river[window] & ~is_lake
        road_m = self._road_distance_m(y, x)
        classes = np.where(is_lake | is_river, WATER, classes)
        classes = np.where((road_m < 9) & ~is_lake, ROAD, classes).astype(np.uint8)  # bridges cross rivers, not lakes
        if forced is not None:
            classes[forced] = after

        fine, crown, clump = (self._grain_at(sigma, window) for sigma in self._grain)
        phase, draw, stand = self._parcel_phase[parcel], self._parcel_draw[parcel], self._parcel_tone[parcel]
        material = np.full(classes.shape, INDEX["lake"], np.uint8)
        tone = stand * (1 + 0.05 * fine)
        height_m = np.zeros(classes.shape, np.float32)

        def put(where: np.ndarray, name: str, height: Any = 0.0, brightness: Any = None) -> None:
            material[where] = INDEX[name]
            height_m[where] = height[where] if isinstance(height, np.ndarray) else height
            if brightness is not None:
                tone[where] = brightness[where] if isinstance(brightness, np.ndarray) else brightness

        def lot(size_u: float, size_v: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """Return a number in 0-1 drawn per lot of size_u x size_v metres, and the metres inside the lot."""
            number = block * 7919 + np.floor(u / size_u).astype(np.int32) * 131 + np.floor(v / size_v).astype(np.int32) * 9176
            return self._lots[number & 0xFFFF], u % size_u, v % size_v

        is_tree = (crown > 2.4) & (clump > 0)
        stand_m = 14 + 18 * draw
        is_class = {k: classes == k for k in np.unique(classes).tolist()}

        if WATER in is_class:
            put(is_class[WATER] & is_river, "river", brightness=1 + 0.02 * fine)
            put(is_class[WATER] & ~is_river, "lake", brightness=1 + 0.02 * fine)
        if BROADLEAF in is_class:
            put(
                is_class[BROADLEAF],
                "broadleaf",
                stand_m * (0.8 + 0.1 * crown),
                stand * (1 + 0.12 * crown + 0.05 * fine),
            )
            put(is_class[BROADLEAF] & (crown + 0.5 * clump > 1.5) & (draw > 0.5), "conifer", stand_m)
            put(is_class[BROADLEAF] & (crown < -1.5), "gap")
        if CONIFER in is_class:
            put(is_class[CONIFER], "conifer", stand_m * (0.8 + 0.14 * fine), stand * (1 + 0.16 * fine))
            put(is_class[CONIFER] & (fine + 0.5 * clump > 1.6) & (draw > 0.4), "broadleaf", stand_m * 0.8)
            put(is_class[CONIFER] & (fine < -1.3), "gap")
        if GRASSLAND in is_class:
            put(is_class[GRASSLAND], "grass", 0.2, stand * (1 + 0.04 * fine + 0.06 * clump))
            put(
                is_class[GRASSLAND] & (is_tree | ((margin_m < 4) & (draw > 0.75) & (crown > -0.3))),
                "broadleaf",
                7 + 2 * crown,
            )
        if CROPLAND in is_class:
            material[is_class[CROPLAND]] = self._parcel_crop[parcel][is_class[CROPLAND]]
            tone[is_class[CROPLAND] & (u % 21 < 2.5)] *= 0.8  # tramlines
            height_m[is_class[CROPLAND]] = 0.5
            put(is_class[CROPLAND] & (margin_m < 2.5), "grass", 0.2)
        if ORCHARD in is_class:
            put(is_class[ORCHARD], "grass", 0.2)
            put(
                is_class[ORCHARD] & (u % 12 < 7) & (v % 8 < 6.5) & (margin_m > 5),
                "fruit_tree",
                4 + 0.6 * crown,
                stand * (1 + 0.1 * fine),
            )
        if URBAN in is_class:
            drawn, in_u, in_v = lot(24, 20)
            put(is_class[URBAN], "paving", brightness=0.8 + 0.1 * fine)
            put(is_class[URBAN] & (drawn > 0.8), "grass", 0.1)
            put(is_class[URBAN] & (drawn > 0.72) & (crown > 0.5), "broadleaf", 9 + crown)
            is_house = is_class[URBAN] & (drawn < 0.72) & (in_u > 2.5) & (in_v < 17.5)
            storeys_m, shade = 8 + 26 * drawn, 0.55 + 0.9 * ((drawn * 97) % 1) + 0.03 * fine
            put(is_house & (drawn < 0.44), "flat_roof", storeys_m, shade)
            put(is_house & (drawn >= 0.44), "tile_roof", 0.6 * storeys_m, shade)
            put(is_class[URBAN] & ((u % 96 < 11) | (v % 120 < 11)), "asphalt", brightness=0.9 + 0.1 * fine)
        if SUBURBAN in is_class:
            drawn, in_u, in_v = lot(25, 25)
            put(is_class[SUBURBAN], "grass", 0.1, stand * (1 + 0.1 * fine))
            put(is_class[SUBURBAN] & (crown > 1.0), "broadleaf", 6 + 1.5 * crown)
            is_house = is_class[SUBURBAN] & (np.abs(in_u - 9 - 8 * drawn) < 6) & (np.abs(in_v - 12) < 7) & (drawn < 0.85)
            shade = 0.6 + 0.8 * ((drawn * 97) % 1) + 0.03 * fine
            put(is_house & (drawn < 0.6), "tile_roof", 7 + 2 * drawn, shade)
            put(is_house & (drawn >= 0.6), "flat_roof", 5 + 2 * drawn, shade)
            put(is_class[SUBURBAN] & (np.abs(in_u - 9 - 8 * drawn) < 1.5) & (in_v > 19), "paving")
            put(is_class[SUBURBAN] & ((u % 75 < 7) | (v % 150 < 7)), "asphalt", brightness=0.9 + 0.1 * fine)
        if BARE in is_class:
            put(is_class[BARE], "rock", 0.3 + 0.2 * np.abs(clump), (1 + 0.1 * fine + 0.1 * clump) * (0.8 + 0.2 * stand))
            put(is_class[BARE] & (clump + 0.3 * crown > 0.6), "soil", brightness=1 + 0.08 * fine)
            put(is_class[BARE] & (clump + 0.8 * crown < -1.1), "grass", 0.2)
        if WETLAND in is_class:
            put(is_class[WETLAND], "reed", 1.8 + 0.3 * fine, 1 + 0.06 * fine + 0.08 * clump)
            put(is_class[WETLAND] & (clump > 0.7), "grass", 0.4)
            put(is_class[WETLAND] & (clump < -1.0), "mud")
            put(is_class[WETLAND] & (clump + 0.2 * crown < -1.4), "lake", 0.0, 1.0)
            put(is_class[WETLAND] & (crown > 1.9), "broadleaf", 5 + crown)
        if ROAD in is_class:
            put(is_class[ROAD], "grass", 0.1)
            put(is_class[ROAD] & (road_m < 8) & (road_m > 1), "asphalt", brightness=0.9 + 0.05 * fine)
        is_track = (gap_m < 2.6) & ~np.isin(classes, (WATER, WETLAND, BARE, ROAD))
        put(is_track, "paving", brightness=0.8 + 0.1 * fine)
        code = material * PHASES + phase
        stored_tone, stored_height = (
            np.clip(np.rint(a), 1, 255).astype(np.uint8) for a in (tone * TONE_ONE, height_m / HEIGHT_STEP_M)
        )
        return classes, code.astype(np.uint8), stored_tone, stored_height - (height_m < HEIGHT_STEP_M / 2)

    def _grain_at(self, sigma: float, window: tuple[slice, slice]) -> np.ndarray:
        grain = self._grain[sigma]
        step = round(self.size_m / FINE_M) // grain.shape[0]
        part = grain[tuple(slice(s.start // step, s.stop // step) for s in window)].astype(np.float32) / 32
        return part if step == 1 else ndimage.zoom(part, step, order=1, grid_mode=True, mode="nearest")

    def _road_distance_m(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Distance to the nearest main road; a road is a line through the planet with a smooth sideways wander."""
        nearest = np.full(np.broadcast_shapes(y.shape, x.shape), np.inf, np.float32)
        for centre_y, centre_x, angle, wander_m in self._roads:
            east, south = x - np.float32(centre_x), y - np.float32(centre_y)
            run = east * np.float32(np.cos(angle)) + south * np.float32(np.sin(angle))
            side = south * np.float32(np.cos(angle)) - east * np.float32(np.sin(angle))
            station = np.linspace(-1.5 * self.size_m, 1.5 * self.size_m, len(wander_m))
            np.minimum(nearest, np.abs(side - np.interp(run, station, wander_m)), out=nearest)
        return nearest


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-6)


def _blobs(generator: np.random.Generator, shape: tuple[int, int], sigma_px: float) -> np.ndarray:
    """Return crown-sized random blobs as int8 with standard deviation 32."""
    field = ndimage.gaussian_filter(generator.standard_normal(shape, dtype=np.float32), sigma_px, mode="wrap", truncate=2.5)
    return np.clip(field * (32 / field.std()), -127, 127).astype(np.int8)


def _linear(values: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Interpolate linearly between cell centres at a column of `y` and a row of `x`, clamped at the ends."""
    y, x = (np.clip(a, 0, n - 1).ravel() for a, n in zip((y, x), values.shape))
    top, left = (np.minimum(a.astype(int), n - 2) for a, n in zip((y, x), values.shape))
    down = (y - top).astype(np.float32)[:, None]
    right = (x - left).astype(np.float32)
    rows = values[top] * (1 - down) + values[top + 1] * down
    return rows[:, left] * (1 - right) + rows[:, left + 1] * right
