"""Champion and challenger on one frozen suite: for each task, sensor and protocol by how much one is better, and how surely."""

from typing import Any

from cluster.run import Run
from jobs.evaluate import evaluate
from jobs.evaluation import cell as cells
from jobs.evaluation.cell import read_outcome
from jobs.evaluation.contenders import titles
from jobs.evaluation.interval import gain
from jobs.retraining.context import Context
from pipeline.errors import RunFailed


def compare(context: Context) -> dict[str, Any]:
    """Return a line for each comparison: both scores, the challenger's gain and its 95 % interval over paired test samples."""
    suite, scores = context.schedule.suite, context.round.path("scores")
    challenger, champion = context.round.path("run"), context.champion.model
    done = evaluate(",".join(suite.tasks), challenger, (champion,), (suite.archive,), scores, suite.config())
    if done["failed"]:
        failed = [note for note in done["notes"] if note.startswith("failed: ")]
        raise RunFailed(f"{done['failed']} of the suite's {done['cells']} cells failed ({failed[0]}); mend that and run this again")
    mine, theirs = titles([Run(challenger, "pretrain"), Run(champion, "pretrain")])
    rows = list(cells.read(scores).values())
    lines = []
    for task, sensors, protocol, metric in sorted({(row.task, row.sensors, row.protocol, row.metric) for row in rows}):
        of = {}
        for title in (mine, theirs):
            chosen = [row for row in rows if (row.task, row.sensors, row.protocol, row.model) == (task, sensors, protocol, title)]
            of[title] = sorted(chosen, key=lambda row: row.seed)
        outcomes = {title: [read_outcome(scores, row) for row in found] for title, found in of.items()}
        more, low, high = gain(outcomes[mine], outcomes[theirs], metric)
        means = {
            name: sum(row.score for row in of[title]) / len(of[title])
            for name, title in (("challenger", mine), ("champion", theirs))
        }
        lines.append(
            {
                "task": task,
                "sensors": sensors,
                "protocol": protocol,
                "metric": metric,
                **means,
                "gain": more,
                "low": low,
                "high": high,
            }
        )
    return {"suite_digest": next(iter(done["digests"])), "lines": lines}
