"""Run AROSICS (Scheffler et al. 2017) on one pair of files and print what it found as JSON; for a Python that has it.

`PYTHON arosics_pair.py REFERENCE MOVING global|local GRID_RES_PX MAX_SHIFT_PX DISPLACEMENT.npy`: both files on one pixel
grid. Writes the displacement (y, x, 2) of every pixel, as (down, right) in px.
"""

import json
import sys
import time

import numpy as np
from arosics import COREG, COREG_LOCAL, DESHIFTER
from geoarray import GeoArray


def main(reference: str, moving: str, mode: str, grid_res: int, max_shift: int, out: str) -> None:
    quiet = {"max_shift": max_shift, "CPUs": 1, "progress": False, "q": True, "ignore_errors": True, "nodata": (0, 0)}
    begin = time.perf_counter()
    if mode == "global":
        found = COREG(reference, moving, **quiet)
        found.calculate_spatial_shifts()
        points = 1
    else:
        found = COREG_LOCAL(reference, moving, grid_res=grid_res, **quiet)
        table = found.CoRegPoints_table
        points = int(((table["ABS_SHIFT"] != found.outFillVal) & ~table["OUTLIER"].fillna(True).astype(bool)).sum())
    seconds = time.perf_counter() - begin
    rows, columns = GeoArray(moving).shape[:2]
    if mode == "global":
        shift = [0.0 if v is None else v for v in (found.y_shift_px, found.x_shift_px)]
        np.save(out, np.broadcast_to(-np.array(shift), (rows, columns, 2)))
    else:
        np.save(out, _displacement(found, moving, rows, columns))
    print(json.dumps({"points": points, "seconds": seconds}))


def _displacement(found: COREG_LOCAL, moving: str, rows: int, columns: int) -> np.ndarray:
    """Correct an image of its own coordinates: what is then at a pixel says where its content was taken from."""
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    like = GeoArray(moving)
    coordinates = GeoArray(np.dstack([y, x]), like.gt, like.prj, nodata=-9999)
    corrected = DESHIFTER(
        coordinates, found.coreg_info, align_grids=True, resamp_alg="bilinear", nodata=-9999, progress=False, q=True
    )
    result = corrected.correct_shifts()
    pixels, gt = np.asarray(result["arr_shifted"], np.float32), result["updated geotransform"]
    top, left = round((gt[3] - like.gt[3]) / like.gt[5]), round((gt[0] - like.gt[0]) / like.gt[1])
    taken = np.full((rows, columns, 2), -9999, np.float32)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + pixels.shape[0], rows), min(left + pixels.shape[1], columns)
    taken[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
    return np.where(taken == -9999, 0, taken - np.dstack([y, x]))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
