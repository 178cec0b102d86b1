"""The table of a sweep that compares arms: what each is worth beside the others, untrained encoders and image statistics."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from jobs.sweeping.cell import Cell
from jobs.sweeping.ledger import Ledger
from jobs.sweeping.quiz import Answers
from jobs.sweeping.rows import LOSSES, PROBES
from jobs.sweeping.verdict import Gain, OfSeeds, gain, lead
from jobs.sweeping.worker import STATISTICS, UNTRAINED


def compare(rows: pd.DataFrame, cells: Sequence[Cell], ledger: Ledger, reference: str) -> list[dict[str, Any]]:
    """Return a line for each arm, best first: sizes, mean and spread of scores over seeds, and Gains over what is beside it.

    over_reference, over_untrained (the same encoders before training) and over_statistics; None where one side has no answers.
    leads: by how much the mean loss under each named exam is lower than the reference's.
    """
    trained, untrained = _answers(cells, ledger)
    statistics: OfSeeds = {}
    if ledger.is_done(STATISTICS):
        statistics = {name: [of] for name, of in ledger.answers(STATISTICS).items()}
    lines = []
    for arm, of in rows.groupby("arm", sort=False):
        own, before = trained[str(arm)], untrained[str(arm)]
        line: dict[str, Any] = {name: str(of[name].iloc[0]) for name in ("recipe", "backbone")}
        line |= {name: int(of[name].iloc[0]) for name in ("parameters", "active_parameters", "steps", "samples")} | {
            "passes": float(of["passes"].iloc[0])
        }
        line |= {"arm": str(arm), "seeds": len(of), "counted_flops": float(of["counted_flops"].mean())}
        line |= {"probe": float(of["probe"].mean()), "probe_spread": float(of["probe"].std(ddof=0))}
        line |= {"untrained": float(of[f"probe/{UNTRAINED}"].mean())}
        line |= {
            name: float(of[name].mean()) for name in of if name.startswith((PROBES, LOSSES, "health/")) and of[name].notna().any()
        }
        line["cpu_seconds"] = float(of["cpu_seconds"].mean())
        line["over_reference"] = gain(own, trained[reference]) if own and reference and arm != reference else None
        line["over_reference_by_label"] = _by_label(own, trained[reference]) if line["over_reference"] else {}
        line["over_untrained"] = gain(own, before) if own else None
        line["over_statistics"] = gain(own, statistics) if own and statistics else None
        line["leads"] = {exam: lead(*pair) for exam, pair in _losses(rows, str(arm), reference).items()}
        lines.append(line)
    return sorted(lines, key=lambda line: -line["probe"] if line["probe"] == line["probe"] else 0.0)


def pairs(rows: pd.DataFrame, cells: Sequence[Cell], ledger: Ledger, versus: Sequence[tuple[str, str]]) -> list[str]:
    """Return a sentence for each pair of arms that a plan wants compared, as each arm is with the reference."""
    trained, _ = _answers(cells, ledger)
    finished, said = set(rows["arm"]), []
    for one, other in versus:
        if {one, other} <= finished and trained[one] and trained[other]:
            said.append(_against(one, other, gain(trained[one], trained[other]), _by_label(trained[one], trained[other])))
        for exam, losses in (_losses(rows, one, other) if {one, other} <= finished else {}).items():
            if told := lead(*losses):
                said.append(f"Held-out loss {_exam(exam)}, {one} against {other}: {told.words()}.")
    return said


def _by_label(own: OfSeeds, other: OfSeeds) -> dict[str, Gain]:
    """Return the gain in each label, where there are several."""
    labels = sorted({name.partition("/")[0] for name in own})
    parts = {label: {name: of for name, of in own.items() if name.partition("/")[0] == label} for label in labels}
    return {label: gain(part, other) for label, part in parts.items()} if len(labels) > 1 else {}


def statistics_score(ledger: Ledger) -> float | None:
    if not ledger.is_done(STATISTICS):
        return None
    scores = [of["score"] for of in ledger.summary(STATISTICS)["probes"].values()]
    return sum(scores) / len(scores) if scores else None


def _answers(cells: Sequence[Cell], ledger: Ledger) -> tuple[dict[str, OfSeeds], dict[str, OfSeeds]]:
    """Return arm -> quiz -> answers of each seed in order, of trained encoders and of the same before training."""
    trained: dict[str, dict[str, list[Answers]]] = {}
    untrained: dict[str, dict[str, list[Answers]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        for found in (trained, untrained):
            found.setdefault(cell.arm, {})
        for name, answers in ledger.answers(cell.key).items():
            quiz = name.removesuffix(f"/{UNTRAINED}")
            (trained if quiz == name else untrained)[cell.arm].setdefault(quiz, []).append(answers)
    return trained, untrained  # type: ignore[return-value]


def words(lines: Sequence[dict[str, Any]], reference: str, statistics: float | None) -> list[str]:
    """Return what the table says, in sentences."""
    asked = [line for line in lines if line["over_untrained"] is not None]
    if not asked:
        return ["No label could be asked, so nothing can be said of what the encoders are worth."]
    best = asked[0]
    said = [f"Highest mean probe: {best['arm']} with {best['probe']:.3f} ± {best['probe_spread']:.3f} over {best['seeds']} seeds."]
    said += _sides("than the same encoder before training", asked, "over_untrained")
    if statistics is not None:
        said.append(f"Mean, deviation and extremes of each band, without any encoder, score {statistics:.3f}.")
        said += _sides("than these image statistics", asked, "over_statistics")
    for line in asked:
        if (told := line["over_reference"]) is not None and len(asked) <= 6:
            said.append(_against(line["arm"], reference, told, line["over_reference_by_label"]))
    if len(asked) > 6 and reference:
        said += _sides(f"than {reference}", [line for line in asked if line["over_reference"]], "over_reference")
    for exam in sorted({exam for line in asked for exam in line["leads"]}):
        shown = "; ".join(f"{line['arm']} {line[exam]:.4g}" for line in asked if exam in line)
        told = "; ".join(f"{line['arm']} {told.words()}" for line in asked if (told := line["leads"].get(exam)))
        said.append(f"Held-out loss {_exam(exam)}: {shown}. Against {reference}: {told or 'one seed, so there is no interval'}.")
    return said


def _against(one: str, other: str, told: Gain, by_label: dict[str, Gain]) -> str:
    of_labels = "".join(f"; {label} {of.words()}" for label, of in by_label.items())
    return f"{one} against {other}: {told.words()}{of_labels}."


def _exam(column: str) -> str:
    return column.removeprefix(LOSSES).removesuffix("/mean")


def _sides(than: str, lines: Sequence[dict[str, Any]], field: str) -> list[str]:
    sides: dict[str, list[str]] = {"better": [], "not told apart": [], "worse": []}
    for line in lines:
        told: Gain = line[field]
        if told is not None:
            sides[told.words().partition(" (")[0]].append(line["arm"])
    parts = [f"{kind}: {len(arms)} ({', '.join(arms)})" for kind, arms in sides.items() if arms]
    return [f"Of {sum(map(len, sides.values()))} arms, {than}, " + "; ".join(parts) + "."]


def _losses(rows: pd.DataFrame, arm: str, reference: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return exam -> mean losses of an arm and of the reference by seed, of named exams: these ask all arms the same."""
    both = [rows[rows["arm"] == name].set_index("seed") for name in (arm, reference)]
    seeds = both[0].index.intersection(both[1].index) if arm != reference else []
    exams = [name for name in rows if name.startswith(LOSSES) and name.count("/") == 2 and name.endswith("/mean")]
    pairs = {exam: (both[0].loc[seeds, exam].tolist(), both[1].loc[seeds, exam].tolist()) for exam in exams}
    return {exam: pair for exam, pair in pairs.items() if pair[0] and not pd.isna([*pair[0], *pair[1]]).any()}
