"""Registration against simulated truth, real pairs with check points, and other programs: `python -m tests.bench.bench_registration`.

`--calibrate` prints the coefficients of the confidence, fitted on a planet that the table does not use. `--arosics PYTHON`,
a Python that has AROSICS (which needs GDAL's own bindings), runs it on the real pairs too.
"""

import argparse
import glob
import json
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from scipy import ndimage
from sklearn.linear_model import LogisticRegression

from pipeline.displacement import Field, fit
from pipeline.registration import WINDOW_PX, Match, coarse_shift, conclude, match, tie_points
from tests.bench.simulated_pairs import Pair, half_hidden, planet_pairs, spoiled

SHARED = Path(__file__).parents[3] / "shared" / "data"
WRONG_PX = 0.5
HIDDEN_SHARES = (0.5, 0.8, 0.95)
AROSICS_SPACING_PX = 150
AROSICS_SECONDS = 900.0


def error_px(field, pair_shift: np.ndarray, block_px: int) -> float:
    """Return the rms distance between the field and the truth over the block."""
    edge = np.linspace(0.1, 0.9, 5) * block_px
    places = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    return float(np.sqrt(((field.at(places) - pair_shift) ** 2).sum(1).mean()))


def simulated(seed: int, block_px: int, every: int) -> None:
    found = defaultdict(list)
    for pair in planet_pairs(seed, block_px, every=every):
        result = _match(pair)
        accepted = result.field is not None
        error = error_px(result.field, pair.shift, block_px) if accepted and pair.shift is not None else np.nan
        found[pair.sensor].append((pair.shift is not None, accepted, error))
    print(f"\nsimulated truth, planet {seed}, blocks of {block_px} px at 10 m against Sentinel-2")
    print(
        f"{'sensor':16s}{'pairs':>7s}{'accepted':>10s}{'median px':>11s}{'rmse px':>9s}{'> 0.5 px':>10s}{'other place accepted':>22s}"
    )
    for sensor, rows in sorted(found.items()):
        same = np.array([(a, e) for is_same, a, e in rows if is_same], float)
        other = np.array([a for is_same, a, _ in rows if not is_same])
        errors = same[same[:, 0] > 0, 1]
        print(
            f"{sensor:16s}{len(same):7d}{same[:, 0].mean():10.1%}{np.median(errors):11.3f}{np.sqrt((errors**2).mean()):9.3f}"
            f"{(errors > WRONG_PX).sum():10d}{f'{other.sum():.0f} of {len(other)}':>22s}"
        )


def spoiled_pairs(seed: int, block_px: int, every: int) -> None:
    """Count the pairs that are moved though one of the two shows no ground, and how well half hidden ground is found."""
    rng, moved = np.random.default_rng(seed), defaultdict(list)
    for pair in planet_pairs(seed, block_px, every=every):
        if pair.shift is None:
            continue
        for kind, spoilt in spoiled(pair, rng):
            moved[kind].append(_match(spoilt).field is not None)
        for share in HIDDEN_SHARES:
            found = _match(half_hidden(pair, share, rng)).field
            wrong = found is not None and error_px(found, pair.shift, block_px) > WRONG_PX
            moved[f"{share:.0%} hidden by cloud"].append(np.nan if found is None else wrong)
    print(
        f"\nno mask tells of the cloud, blocks of {block_px} px\n{'what is seen':24s}{'pairs':>7s}{'moved':>7s}{'wrong by > 0.5 px':>20s}"
    )
    for kind, found in moved.items():
        accepted = int(np.isfinite(found).sum()) if "hidden" in kind else int(np.sum(found))
        wrong = int(np.nansum(found))
        print(f"{kind:24s}{len(found):7d}{accepted:7d}{wrong:20d}")


def _match(pair: Pair) -> Match:
    return match(pair.reference, pair.moving, pair.reference_valid, pair.moving_valid, pair.search_px)


def calibrate(seed: int) -> None:
    features, right = [], []
    for block_px, every in ((512, 2), (256, 6)):
        for pair in planet_pairs(seed, block_px, every=every):
            evidence = _evidence(pair)
            if evidence is not None:
                features.append(evidence[0])
                right.append(pair.shift is not None and error_px(evidence[1], pair.shift, block_px) < WRONG_PX)
    model = LogisticRegression().fit(features, right)
    print(
        f"{len(right)} pairs with an estimate, {sum(right)} right; coefficients {model.coef_[0].round(2)}, {model.intercept_.round(2)}"
    )


def _evidence(pair: Pair):
    images = pair.reference, pair.moving, pair.reference_valid, pair.moving_valid
    coarse = coarse_shift(*images, pair.search_px)
    points = tie_points(*images, coarse)
    found = fit(points, WINDOW_PX, WINDOW_PX // 2, np.random.default_rng(0))
    if coarse.reason or found is None:
        return None
    agreeing = found.is_inlier.sum()
    share = np.clip(agreeing / len(points), 1e-3, 0.99)
    terms = np.log(share / (1 - share)), np.log(found.error_px + 0.01), np.log(max(coarse.height, 0.5)), np.log(agreeing)
    return terms, found.field


def checkpoints(arosics: str | None) -> None:
    print(
        f"\nreal pairs with check points, rms px\n{'pair':20s}{'before':>8s}{'after':>8s}{'affine fit to the points':>26s}{'s':>6s}"
        f"{'AROSICS global':>16s}{'local':>8s}  reason"
    )
    for name, reference, moving, places, truth in _point_pairs():
        shape = tuple(max(a, b) for a, b in zip(reference.shape[1:], moving.shape[1:]))
        (fixed, fixed_valid), (moved, moved_valid) = _padded(reference, shape), _padded(moving, shape)
        begin = time.perf_counter()
        found = match(fixed, moved, fixed_valid, moved_valid, 150.0)
        seconds = time.perf_counter() - begin
        predicted = found.field.at(places + 0.5) if found.field else 0.0
        design = np.column_stack([np.ones(len(places)), places])
        limit = truth - design @ np.linalg.lstsq(design, truth, rcond=None)[0]
        before, after, best = (float(np.sqrt((d**2).sum(1).mean())) for d in (truth, truth - predicted, limit))
        others = []
        for mode in ("global", "local") if arosics else ():
            other = run_arosics(arosics, fixed.mean(axis=0), moved.mean(axis=0), mode, 32, 150)
            if other is None:
                others.append("fails")
                continue
            there = other.displacement[tuple(np.clip(np.rint(places).astype(int), 0, np.array(shape) - 1).T)]
            others.append(f"{np.sqrt(((truth - there) ** 2).sum(1).mean()):.2f}")
        shown = "".join(f"{text:>{width}s}" for text, width in zip(others or ("-", "-"), (16, 8)))
        print(f"{name:20s}{before:8.2f}{after:8.2f}{best:26.2f}{seconds:6.1f}{shown}  {found.reason}", flush=True)


@dataclass(frozen=True)
class Other:
    """What another program found: displacement (y, x, 2) of every pixel, from how many points, in which time."""

    displacement: np.ndarray
    points: int
    seconds: float


def run_arosics(python: str, fixed: np.ndarray, moving: np.ndarray, mode: str, spacing_px: int, max_shift_px: int) -> Other | None:
    """Let AROSICS find the displacement between two images (y, x); None where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.tif" for name in ("fixed", "moving")]
        for path, image in zip(paths, (fixed, moving)):
            profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:32633", "nodata": 0}
            transform = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
            with rasterio.open(path, "w", height=image.shape[0], width=image.shape[1], transform=transform, **profile) as file:
                file.write(image.astype(np.float32), 1)
        script = str(Path(__file__).with_name("arosics_pair.py"))
        command = [python, script, *paths, mode, str(spacing_px), str(max_shift_px), f"{folder}/found.npy"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=AROSICS_SECONDS, check=True)
        except subprocess.SubprocessError:
            return None
        return Other(np.load(f"{folder}/found.npy"), **json.loads(done.stdout.splitlines()[-1]))


def _point_pairs():
    """Yield name, images (band, y, x), places (N, 2) (y, x) in array indices of the reference, and displacement (N, 2)."""
    for folder in sorted(glob.glob(f"{SHARED}/coreg_multimodal/*/")):
        if Path(folder, "check_points.txt").is_file():
            x, y, to_x, to_y = np.loadtxt(f"{folder}/check_points.txt")[:, :4].T - 1
            images = (_image(glob.glob(f"{folder}/{kind}.*")[0]) for kind in ("ref", "sen"))
            yield Path(folder).name, *images, np.stack([y, x], 1), np.stack([to_y - y, to_x - x], 1)
    for folder in sorted(glob.glob(f"{SHARED}/matching_landmarks/*/")):
        points = json.loads(Path(folder, "landmarks.json").read_text())
        fixed, moved = (np.array(points[k])[:, ::-1] - 1.0 for k in ("fix_xy", "move_xy"))
        yield Path(folder).name, _image(f"{folder}/fix.png"), _image(f"{folder}/move.png"), fixed, moved - fixed


def _image(path: str) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()[:3].astype(np.float32)


def _padded(image: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    pixels, is_valid = np.zeros((len(image), *shape), np.float32), np.zeros(shape, bool)
    pixels[:, : image.shape[1], : image.shape[2]] = image
    is_valid[: image.shape[1], : image.shape[2]] = True
    return pixels, is_valid


def sentinel2_pair(arosics: str | None) -> None:
    """Compare on the Berlin pair: residual after correction by an estimator of its own, 256 px windows, gradients."""
    fixed, moving = _common_part(*sorted(glob.glob(f"{SHARED}/coreg_s2_s2/*.jp2")))
    valid = [image[0] > 0 for image in (fixed, moving)]
    rows: list[tuple[str, np.ndarray | None, float, str]] = [("as found", None, 0.0, "")]
    for spacing in (WINDOW_PX // 2, AROSICS_SPACING_PX):
        begin = time.perf_counter()
        coarse = coarse_shift(fixed, moving, *valid, 6.0)
        found = conclude(tie_points(fixed, moving, *valid, coarse, spacing), coarse, spacing)
        seconds = time.perf_counter() - begin
        assert found.field is not None
        remark = f"{len(found.points or ())} points, {found.field.kind}"
        rows.append((f"terraloom, every {spacing} px", _everywhere(found.field, fixed.shape[1:]), seconds, remark))
    begin = time.perf_counter()
    shift = -_phase(fixed[0], moving[0])
    rows.append(("scikit-image, global", np.broadcast_to(shift, (*fixed.shape[1:], 2)), time.perf_counter() - begin, ""))
    for mode in ("global", "local") if arosics else ():
        other = run_arosics(arosics, fixed[0], moving[0], mode, AROSICS_SPACING_PX, 6)
        if other:
            rows.append((f"AROSICS, {mode}", other.displacement, other.seconds, f"{other.points} points"))
    print(f"\ncoreg_s2_s2, {fixed.shape[1]} x {fixed.shape[2]} px\n{'method':26s}{'residual px (median of windows)':>34s}{'s':>8s}")
    for name, displacement, seconds, remark in rows:
        corrected = moving[0] if displacement is None else _warped(moving[0], displacement)
        print(f"{name:26s}{_residual(fixed[0], corrected, valid):34.3f}{seconds:8.1f}  {remark}", flush=True)


def _common_part(first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    with rasterio.open(first) as a, rasterio.open(second) as b:
        offset = [round((b.transform.f - a.transform.f) / a.transform.e), round((b.transform.c - a.transform.c) / a.transform.a)]
        images = a.read().astype(np.float32), b.read().astype(np.float32)
    starts = [[max(o, 0) for o in offset], [max(-o, 0) for o in offset]]
    size = [min(i.shape[k + 1] - s[k] for i, s in zip(images, starts)) for k in (0, 1)]
    first_part, second_part = (i[:, s[0] : s[0] + size[0], s[1] : s[1] + size[1]] for i, s in zip(images, starts))
    return first_part, second_part


def _phase(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    from skimage.registration import phase_cross_correlation

    gradients = (ndimage.gaussian_gradient_magnitude(i, 1.0) for i in (fixed, moving))
    return np.asarray(phase_cross_correlation(*gradients, upsample_factor=100, normalization=None)[0])


def _residual(fixed: np.ndarray, moving: np.ndarray, valid: list[np.ndarray]) -> float:
    distances = []
    for y in range(0, fixed.shape[0] - 256, 256):
        for x in range(0, fixed.shape[1] - 256, 256):
            window = slice(y, y + 256), slice(x, x + 256)
            if (valid[0][window] & valid[1][window]).mean() > 0.99:
                distances.append(np.hypot(*_phase(fixed[window], moving[window])))
    return float(np.median(distances))


def _everywhere(field: Field, shape: tuple[int, ...]) -> np.ndarray:
    """Return the displacement (y, x, 2) at every pixel's centre."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]] + 0.5
    return field.at(np.stack([y.ravel(), x.ravel()], 1)).reshape(*shape, 2)


def _warped(image: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(float)
    return ndimage.map_coordinates(image, (y + displacement[..., 0], x + displacement[..., 1]), order=1, mode="nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--real-only", action="store_true")
    parser.add_argument("--arosics", metavar="PYTHON", help="a Python that has AROSICS")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.calibrate:
        calibrate(1)
        return
    if not arguments.real_only:
        simulated(2, 512, every=1)
        simulated(2, 256, every=4)
        spoiled_pairs(2, 512, every=8)
        spoiled_pairs(2, 256, every=40)
    if SHARED.is_dir():
        if not arguments.arosics:
            print("AROSICS left out: no --arosics")
        sentinel2_pair(arguments.arosics)
        checkpoints(arguments.arosics)
    else:
        print(f"real pairs left out: no {SHARED}")


if __name__ == "__main__":
    main()
