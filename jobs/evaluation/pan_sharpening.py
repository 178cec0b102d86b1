"""Pan-sharpening: a multispectral image at the panchromatic pixels, learnt and judged at coarser ones (Wald's protocol).

Decides the samples and the two judgements. Both images are brought to pixels as much coarser as the two differ, the original is
then the truth. Models take the coarse images as if they were the sensors' own: that what holds from 16 to 4 m holds from 4 to 1 m
is what the protocol assumes. At full resolution there is no truth; QNR judges the sharpened image itself.
"""

from dataclasses import dataclass, replace

import numpy as np

from jobs.evaluation.image_metrics import full_resolution, reduced_resolution, scaled
from jobs.evaluation.metrics import Outcome
from jobs.evaluation.perturbation import Perturbation
from jobs.evaluation.restored import SHARPENING, Example, disturbed, restoration_samples, restored
from jobs.evaluation.samples import TaskSamples
from jobs.evaluation.sharpening import Pair, bicubic
from jobs.evaluation.tiles import TileReader
from pipeline.archive import Archive
from pipeline.augment import SensorArrays
from pipeline.sensors import Sensor

NAMES = {"q2n": "Q2n", "sam": "SAM", "ergas": "ERGAS", "scc": "SCC", "psnr": "PSNR", "ssim": "SSIM"}
FULL_NAMES = {"qnr": "QNR", "d_lambda": "D_lambda", "d_s": "D_s"}


@dataclass(frozen=True)
class PanSharpening:
    """The task of one archive."""

    archive: Archive
    name: str = "pan_sharpening"
    kind: str = SHARPENING
    metric: str = "Q2n"
    classes: tuple[str, ...] = ()

    def samples(self, sensors: frozenset[str]) -> list[TaskSamples]:
        """Return samples of each multispectral sensor together with its panchromatic one, where both are valid everywhere."""
        catalog = self.archive.catalog()
        whole = catalog[(catalog["valid_fraction"] == 1) & catalog["sensor"].isin(sensors)].drop_duplicates(["sensor", "site"])
        groups = {str(name): tiles.set_index("site", drop=False) for name, tiles in whole.groupby("sensor")}
        found = []
        for name in sorted(groups):
            for pan in (other for other in sorted(groups) if self._is_pan_of(other, name)):
                sites = groups[name].index.intersection(groups[pan].index)
                ms = groups[name].loc[sites]
                tables = {name: ms.assign(target=ms["row"], other=-1, pattern=-1, symmetry=-1), pan: groups[pan].loc[sites]}
                found += [restoration_samples(tables)] if len(sites) else []
        return found

    def _is_pan_of(self, pan: str, name: str) -> bool:
        one, many = self.archive.sensors[pan], self.archive.sensors[name]
        ratio = many.gsd_m / one.gsd_m
        is_pair = len(one.bands) == 1 and len(many.bands) > 1 and one.sensing == many.sensing == "passive"
        return is_pair and ratio > 1.5 and abs(ratio - round(ratio)) < 1e-6 and one.quantity == many.quantity

    def target_sensor(self, samples: TaskSamples) -> Sensor:
        return self.archive.sensors[samples.sensors[0]]

    def reader(self, samples: TaskSamples, perturbation: Perturbation | None = None) -> "PairReader":
        return PairReader(self.archive, samples, perturbation)

    def outcome(self, samples: TaskSamples, chosen: np.ndarray, predicted: tuple[np.ndarray, np.ndarray]) -> Outcome:
        """Return what sharpened images are worth: those of the coarse pairs, (N, C, Y, X), and those of the originals, finer."""
        clip, found = self.target_sensor(samples).valid_range, []
        for coarse, fine, pair in zip(*predicted, self.reader(samples).pairs(chosen)):
            scores = reduced_resolution(scaled(coarse, clip), scaled(pair.ms, clip), pair.ratio)
            full = full_resolution(
                scaled(fine, clip), scaled(pair.ms, clip), *(scaled(p, clip) for p in (pair.pan, pair.coarse_pan()))
            )
            named = {NAMES[name]: scores[name] for name in NAMES}
            found.append(named | {FULL_NAMES[name]: full[name] for name in FULL_NAMES})
        return restored(samples.place[chosen], found)


class PairReader:
    """Pairs of a multispectral and a panchromatic tile."""

    def __init__(self, archive: Archive, samples: TaskSamples, perturbation: Perturbation | None = None) -> None:
        self._samples, self._perturbation = samples, perturbation
        self._tiles = TileReader(archive, samples)

    def example(self, chosen: np.ndarray) -> Example:
        """Return the coarse pairs, the coarse image enlarged, and the original."""
        arrays, truth = self._arrays(chosen), self.pairs(chosen)
        pairs = [pair.reduced() for pair in _pairs(arrays)]
        true = np.stack([pair.ms for pair in truth])
        return _example(arrays, pairs, true)

    def full(self, chosen: np.ndarray) -> Example:
        """Return the original pairs and the original enlarged; the truth is not known."""
        arrays = self._arrays(chosen)
        pairs = _pairs(arrays)
        example = _example(arrays, pairs, np.stack([bicubic(pair) for pair in pairs]))
        return replace(example, is_valid=np.zeros_like(example.is_valid))

    def pairs(self, chosen: np.ndarray) -> list[Pair]:
        """Return the original pairs as they are."""
        return _pairs(self._tiles.arrays(chosen))

    def disturbed_pairs(self, chosen: np.ndarray) -> list[Pair]:
        return _pairs(self._arrays(chosen))

    def _arrays(self, chosen: np.ndarray) -> dict[str, SensorArrays]:
        return disturbed(self._tiles.arrays(chosen), self._perturbation, chosen)


def _pairs(arrays: dict[str, SensorArrays]) -> list[Pair]:
    # A tile that a perturbation took away is dark to sharpeners.
    ms, pan = ((found.pixels * found.is_present[..., None, None, None])[:, 0].astype(np.float64) for found in arrays.values())
    return [Pair(image, fine[0]) for image, fine in zip(ms, pan)]


def _example(arrays: dict[str, SensorArrays], pairs: list[Pair], truth: np.ndarray) -> Example:
    images = [np.stack([pair.ms for pair in pairs]), np.stack([pair.pan[None] for pair in pairs])]
    inputs = {name: _inputs(found, image) for (name, found), image in zip(arrays.items(), images)}
    everywhere = np.ones((len(truth), *truth.shape[2:]), bool)
    guess = np.stack([bicubic(pair) for pair in pairs])
    is_known = everywhere & next(iter(arrays.values())).is_present[:, 0, None, None]
    return Example(inputs, guess.astype(np.float32), is_known, truth.astype(np.float32), everywhere)


def _inputs(arrays: SensorArrays, images: np.ndarray) -> SensorArrays:
    """Return images (N, C, Y, X) as tiles; a date that a perturbation took away stays away."""
    pixels = images[:, None].astype(np.float32)
    is_valid = np.broadcast_to(arrays.is_present[..., None, None], (*pixels.shape[:2], *pixels.shape[3:]))
    return replace(arrays, pixels=pixels, is_valid=is_valid.copy())
