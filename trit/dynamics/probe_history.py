"""What a run's own log says of its relaxation, step by step: residuals, the penalty's weight, the longest stable step, beside the loss.

Reads the events "probe" of metrics.jsonl, which training writes every few log lines; runs nothing. The trace shows which came first, a shrinking
stable step, a growing residual or a growing penalty.
"""

import json
import math

from trit.dynamics.probe_finding import Chart, Finding, Series, numbers_of
from trit.report.page.reading import number, read_text

COLUMNS = {
    "step": "step",
    "critical_step": "critical step",
    "g_deployed_token": "g deployed",
    "g_free_token": "g free",
    "jacobian_weight": "penalty",
    "step_rho": "rho",
    "texts_left_out": "left out",
    "loss_gap": "loss gap",
}
MOST_ROWS = 24  # of the table; the charts have all


def read_history(folder):
    """([{column: number or NaN}] of probes, [(step, loss)]) of a run's log; a step that a resumed run took again counts once, as it went last."""
    probes, losses = {}, {}
    for line in read_text(folder, "metrics.jsonl").splitlines():
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        step = number(said, "step") if isinstance(said, dict) else math.nan
        if math.isnan(step):
            continue
        if said.get("event") == "probe":
            probes[int(step)] = {key: number(said, key) for key in COLUMNS}
        elif "train_loss" in said:
            losses[int(step)] = number(said, "train_loss")
    return [probes[step] for step in sorted(probes)], sorted(losses.items())


def history_probe(folder, rate):
    """`Finding` of a run's log; `rate` is the deployed step."""
    probes, losses = read_history(folder)
    if not probes:
        return Finding(
            "history",
            "History",
            ['metrics.jsonl holds no event "probe": the run was trained elsewhere, or without its log'],
            [],
            [],
            [],
            {"probes": []},
        )

    def points(key, least=None):
        return [(p["step"], p[key] if least is None else max(p[key], least)) for p in probes if math.isfinite(p[key])]

    shown = probes[:: -(-len(probes) // MOST_ROWS)]
    shown = shown if shown[-1] is probes[-1] else [*shown, probes[-1]]
    rows = [[int(p["step"]), *(p[key] for key in list(COLUMNS)[1:])] for p in shown]
    under = [int(p["step"]) for p in probes if p["critical_step"] < rate]
    words = [
        f"{len(probes)} probes; the longest stable step is below the deployed {rate:g} in {len(under)} of them"
        + (f", first at step {under[0]}" if under else "")
    ]
    residuals = [Series("deployed", points("g_deployed_token", 1e-12), 0), Series("free", points("g_free_token", 1e-12), 1)]
    charts = [
        Chart(
            "Longest stable step",
            "below the mark the deployed step cannot come to rest",
            "training step",
            "critical step",
            [Series("critical step", points("critical_step"), 0)],
            marks=((rate, "deployed"),),
        ),
        Chart("Residual of the worst token", "g = |F(z)| / |z|", "training step", "g", residuals, log_up=True),
        Chart("Training loss", "nats a token", "training step", "loss", [Series("loss", losses, 2)]),
    ]
    if points("jacobian_weight"):
        charts.insert(
            2,
            Chart(
                "Weight of the Jacobian's penalty",
                "it follows the residual",
                "training step",
                "weight",
                [Series("weight", points("jacobian_weight"), 3)],
            ),
        )
    return Finding(
        "history",
        "History",
        words,
        list(COLUMNS.values()),
        rows,
        charts,
        {"probes": probes, "below_deployed": under, "table": numbers_of(COLUMNS.values(), rows)},
    )
