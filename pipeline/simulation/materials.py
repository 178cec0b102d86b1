"""What each ground material of the synthetic planet looks like: reflectance, its change over the year, backscatter.

Numbers are typical values, rounded, in the spirit of public spectral libraries (USGS splib07, Kokaly et al. 2017) and
of C-band clutter statistics (Ulaby & Dobson, 1989); nothing here is a measurement. `planet.py` decides where a material
lies, `imaging.py` what a sensor makes of it.
"""

from dataclasses import dataclass

import numpy as np

WAVELENGTHS_NM = (443, 490, 560, 665, 705, 740, 783, 842, 945, 1610, 2200)
PHASES = 8  # steps of growth: parcels of one material are up to two weeks early or late
PHASE_DAYS = 4.0

SPECTRA_PERCENT: dict[str, tuple[float, ...]] = {
    "leaf": (2.0, 2.5, 6.0, 3.0, 9.0, 27, 35, 39, 40, 20, 8.5),
    "needle": (1.6, 2.1, 4.0, 2.4, 5.8, 17, 21, 24, 24, 11, 4.8),
    "twig": (3.5, 4.5, 6.5, 8.0, 10, 13, 16, 19, 21, 24, 16),
    "shade": (1.0, 1.2, 2.2, 1.5, 3.5, 9, 11, 12, 12, 6, 2.6),
    "grass": (2.8, 3.8, 7.8, 4.5, 11, 28, 36, 40, 40, 23, 11),
    "hay": (5.5, 7.5, 11, 13, 17, 21, 24, 27, 30, 32, 22),
    "crop": (2.6, 3.4, 7.0, 3.6, 10, 31, 41, 45, 45, 20, 9),
    "blossom": (3.0, 5.0, 13, 11, 15, 30, 38, 43, 42, 21, 10),
    "straw": (8.0, 11, 16, 21, 24, 27, 30, 33, 36, 38, 27),
    "soil": (6.0, 8.0, 11, 15, 17, 19, 21, 24, 27, 34, 29),
    "mud": (4.0, 5.0, 7.0, 9.0, 10, 12, 13, 15, 16, 18, 14),
    "water": (3.2, 3.6, 3.6, 2.0, 1.5, 1.0, 1.0, 0.8, 0.6, 0.3, 0.2),
    "silt_water": (5.0, 6.0, 8.0, 6.0, 5.0, 3.0, 3.0, 2.0, 1.5, 0.5, 0.3),
    "asphalt": (7.0, 8.0, 9.0, 10, 10.5, 11, 11.5, 12, 13, 16, 15),
    "concrete": (13, 16, 19, 22, 23, 24, 25, 26, 27, 31, 29),
    "tile": (6.0, 7.0, 10, 19, 23, 26, 28, 31, 33, 37, 33),
    "rock": (13, 15.5, 19, 21.5, 23, 24, 25, 26, 28, 32, 29),
    "reed": (2.6, 3.3, 6.5, 4.2, 9.0, 22, 28, 31, 31, 18, 9),
}  # fmt: skip
EVERGREEN = ((1, 1.0, 0.0),)


@dataclass(frozen=True)
class Material:
    """One ground material. Reflectance mixes `bare`, `green` and `ripe` spectra by day of year; backscatter likewise.

    `season` holds (day of year, share green, share ripe) knots; the rest is bare. `sigma0_db` is (VV, VH) when bare,
    `sigma0_green_db` when green, at 39 degrees incidence.
    """

    bare: str
    sigma0_db: tuple[float, float]
    green: str = ""
    ripe: str = ""
    season: tuple[tuple[int, float, float], ...] = EVERGREEN
    sigma0_green_db: tuple[float, float] | None = None


_LEAVES = ((98, 0.05, 0), (130, 1, 0), (265, 1, 0), (283, 0.7, 0.3), (315, 0.05, 0))
_MEADOW = ((60, 0.45, 0.3), (110, 0.95, 0), (160, 0.9, 0), (200, 0.65, 0.25), (240, 0.8, 0.1), (300, 0.65, 0.2))
MATERIALS: dict[str, Material] = {
    "lake": Material("water", (-21, -28)),
    "river": Material("silt_water", (-19, -27)),
    "broadleaf": Material("twig", (-9.2, -15.3), "leaf", "hay", _LEAVES, (-8.8, -14.2)),
    "conifer": Material("needle", (-8.6, -14.0)),
    "gap": Material("shade", (-11.0, -17.0)),
    "grass": Material("soil", (-12.5, -20.5), "grass", "hay", _MEADOW, (-13.2, -19.8)),
    "wheat": Material("soil", (-11.5, -19.5), "crop", "straw",
        ((60, 0.35, 0), (115, 1, 0), (165, 1, 0), (190, 0.05, 0.95), (228, 0.1, 0.5), (250, 0, 0), (300, 0.2, 0)), (-14.5, -20.0)),
    "maize": Material("soil", (-11.5, -19.5), "crop", "straw",
        ((145, 0, 0), (185, 1, 0), (245, 1, 0), (272, 0.1, 0.8), (285, 0, 0.2)), (-9.5, -15.5)),
    "rapeseed": Material("soil", (-11.5, -19.0), "blossom", "straw",
        ((60, 0.6, 0), (120, 1, 0), (175, 0.8, 0), (195, 0.05, 0.95), (225, 0, 0.2), (260, 0.35, 0), (300, 0.6, 0)), (-9.8, -15.0)),
    "beet": Material("soil", (-11.5, -19.5), "crop", "hay",
        ((120, 0, 0), (170, 1, 0), (285, 0.95, 0), (300, 0, 0)), (-9.3, -15.8)),
    "fruit_tree": Material("twig", (-9.8, -16.3), "leaf", "hay", _LEAVES, (-9.3, -15.3)),
    "asphalt": Material("asphalt", (-16.0, -24.0)),
    "flat_roof": Material("concrete", (-3.5, -12.0)),
    "tile_roof": Material("tile", (-4.0, -12.5)),
    "paving": Material("concrete", (-14.0, -22.0)),
    "rock": Material("rock", (-10.5, -18.0)),
    "soil": Material("soil", (-11.8, -20.0)),
    "reed": Material("mud", (-9.5, -18.0), "reed", "hay",
        ((90, 0.1, 0.7), (150, 0.9, 0.1), (235, 0.95, 0.05), (290, 0.3, 0.65)), (-8.8, -16.8)),
    "mud": Material("mud", (-12.0, -20.0)),
}  # fmt: skip
NAMES = tuple(MATERIALS)
INDEX = {name: number for number, name in enumerate(NAMES)}
IS_ROOF = np.array([name.endswith("_roof") for name in NAMES])
IS_WATER = np.array([name in ("lake", "river") for name in NAMES])


def spectrum(name: str, wavelengths_nm: np.ndarray) -> np.ndarray:
    """Return reflectance (0-1) of a library spectrum, linear between its knots, constant beyond them."""
    return np.interp(wavelengths_nm, WAVELENGTHS_NM, SPECTRA_PERCENT[name]) / 100


def growth(material: Material, day: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the green and the ripe share, each (PHASES,), of a material on a day of the year."""
    days = day + (np.arange(PHASES) - (PHASES - 1) / 2) * PHASE_DAYS
    knots = np.array(material.season, dtype=float)
    green, ripe = (np.interp(days, knots[:, 0], knots[:, k], period=365) for k in (1, 2))
    return green, ripe


def reflectance_table(wavelengths_nm: np.ndarray, day: float) -> np.ndarray:
    """Return reflectance (code, band) float32; code = material index x PHASES + phase."""
    rows = []
    for material in MATERIALS.values():
        bare = spectrum(material.bare, wavelengths_nm)
        green, ripe = growth(material, day)
        share = green[:, None] if material.green else np.zeros((PHASES, 1))
        dry = ripe[:, None] if material.ripe else np.zeros((PHASES, 1))
        leaf, straw = (spectrum(name or material.bare, wavelengths_nm) for name in (material.green, material.ripe))
        rows.append((1 - share - dry) * bare + share * leaf + dry * straw)
    return np.concatenate(rows).astype(np.float32)


def backscatter_table(day: float, moisture_db: float, wind_db: float) -> np.ndarray:
    """Return sigma0 in linear power (code, [VV, VH]) float32; wet soil and rough water are brighter, VV more than VH."""
    rows = []
    for name, material in MATERIALS.items():
        green = growth(material, day)[0][:, None] if material.sigma0_green_db else np.zeros((PHASES, 1))
        bare_db = np.array(material.sigma0_db, dtype=float)
        if IS_WATER[INDEX[name]]:
            bare_db = bare_db + wind_db * np.array([1.0, 0.4])
        elif not (IS_ROOF[INDEX[name]] or name in ("asphalt", "paving")):
            bare_db = bare_db + moisture_db * np.array([1.0, 0.7])
        green_db = np.array(material.sigma0_green_db or material.sigma0_db) + 0.4 * moisture_db
        rows.append(10 ** (((1 - green) * bare_db + green * green_db) / 10))
    return np.concatenate(rows).astype(np.float32)
