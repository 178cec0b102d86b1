"""What SEN12MS and SEN12MS-CR share: names of seasons' regions of interest, and which of them are held out.

SEN12MS-CR publishes a split by region (Ebel et al., TGRS 2021, as their data loaders list it). Both data sets name their
regions in the same way, so SEN12MS goes by it too: what is pretrained on its train split has not seen the others' test.
"""

import re
from collections.abc import Iterable

REGION = r"(?P<region>ROIs\d+_[a-z]+)"
HELD_OUT = {
    "val": {"spring": (17,), "summer": (17, 19, 80, 127), "fall": (65,), "winter": (22, 84, 107, 130)},
    "test": {"spring": (31, 44, 106, 123, 140), "summer": (73, 119), "fall": (139,), "winter": (63, 108)},
}


def scene_of(place: str) -> str:
    """Return '<region>_<scene>' of '<region>_<scene>_p<patch>'."""
    return place.rpartition("_")[0]


def split_by_region(places: Iterable[str]) -> dict[str, str]:
    """Return the published split of places '<region>_<scene>_p<patch>'."""
    return {place: _split_of(scene_of(place)) for place in places}


def _split_of(scene: str) -> str:
    match = re.fullmatch(rf"{REGION}_(?P<scene>\d+)", scene)
    season, number = (match["region"].rpartition("_")[2], int(match["scene"])) if match else ("", -1)
    return next((split for split, held in HELD_OUT.items() if number in held.get(season, ())), "train")
