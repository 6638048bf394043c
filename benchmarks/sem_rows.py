"""How steadily the variants of a study learned, and how soon: python -m benchmarks.sem_rows STUDY.toml [--out runs/NAME] [--json]

Reads what `python -m trit.study STUDY.toml` left, FOLDER/<variant>/<seed>/{record.json, metrics.jsonl}, of a study with train.log_every=1.
Printed for each variant: bits per byte and loss on training text (mean of the last half), means over seeds; then as ratios to the first
variant with the same seed, geometric means over seeds, below 1 better:
  loss variance      of the last half's losses around their straight line, which takes out how fast they fall
  gradient variance  of the last half's gradient norms before clipping; and the same over their squared mean, which no scale moves
  steps, time        until the loss (mean of the last WINDOW steps) is where the first variant's was at half of its steps, over what that
                     one took; "-" where a seed never got there. Variants of a study train as long: time counts shares of it, not steps
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trit.study.plan import read_study

WINDOW = 20
RATIOS = ("loss_variance", "gradient_variance", "gradient_spread", "steps", "time")


class Run(NamedTuple):
    """A training: its steps, loss of each in nats, gradient norm of each, bits per byte of its artifact."""

    steps: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    bpb: float


def read_run(folder):
    """`Run` of a training's folder, None where it is not done. ValueError where steps are missing from its log, or no number."""
    if not (folder / "record.json").exists():
        return None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "train_loss" in line]
    steps, losses, norms = (np.array([line[key] for line in lines], np.float64) for key in ("step", "train_loss", "gradient_norm"))
    if not np.array_equal(steps, np.arange(1, len(steps) + 1)) or len(steps) < 4 * WINDOW:
        raise ValueError(f"{folder}/metrics.jsonl holds {len(steps)} steps with gaps or too few; train with train.log_every=1")
    if not np.isfinite(losses).all() or not np.isfinite(norms).all():
        raise ValueError(f"{folder}/metrics.jsonl has a loss or a gradient norm that is no number")
    return Run(steps, losses, norms, json.loads((folder / "record.json").read_text()).get("bpb", math.nan))


def around_line(values):
    """Variance of values around the straight line that fits them best."""
    places = np.arange(len(values))
    return float(np.var(values - np.polyval(np.polyfit(places, values, 1), places)))


def smoothed(losses):
    """Means of the last WINDOW losses, from step WINDOW on."""
    return np.convolve(losses, np.full(WINDOW, 1 / WINDOW), "valid")


def steps_to(losses, target):
    """The first step at which the mean of the last WINDOW losses is at most `target`; infinite where there is none."""
    below = np.flatnonzero(smoothed(losses) <= target)
    return float(below[0] + WINDOW) if len(below) else math.inf


def ratios(run, base):
    """{name: `run`'s number over `base`'s} of RATIOS."""
    ends = [slice(len(each.steps) // 2, None) for each in (run, base)]
    one, two = ([around_line(each.losses[end]), float(np.var(each.norms[end]))] for each, end in zip((run, base), ends))
    spread = [variance / float(np.mean(each.norms[end])) ** 2 for (_, variance), each, end in zip((one, two), (run, base), ends)]
    half = len(base.steps) // 2
    target = smoothed(base.losses)[half - WINDOW]
    reached = steps_to(run.losses, target) / steps_to(base.losses, target)
    found = one[0] / two[0], one[1] / two[1], spread[0] / spread[1], reached, reached * len(base.steps) / len(run.steps)
    return dict(zip(RATIOS, found))


def rows_of(study, out):
    """One {name: value} a variant that has trainings, compared with the first, seeds paired. ValueError where the first has none."""
    runs = {variant.name: {seed: read_run(out / variant.name / str(seed)) for seed in study.seeds} for variant in study.variants}
    runs = {name: {seed: run for seed, run in found.items() if run} for name, found in runs.items()}
    first = runs[study.variants[0].name]
    if not first:
        raise ValueError(f"{out} has no finished training of {study.variants[0].name}, which all others are compared with")
    rows = []
    for name, found in runs.items():
        shared = [seed for seed in found if seed in first]
        if not shared:
            continue
        row = {"variant": name, "seeds": len(shared), "bpb": statistics.mean(found[seed].bpb for seed in shared)}
        row["train_loss"] = statistics.mean(float(found[seed].losses[len(found[seed].losses) // 2 :].mean()) for seed in shared)
        each = [ratios(found[seed], first[seed]) for seed in shared]
        for key in RATIOS:
            row[key] = statistics.geometric_mean(ratio[key] for ratio in each)
            row[key + "_range"] = [min(ratio[key] for ratio in each), max(ratio[key] for ratio in each)]
        rows.append(row)
    return rows


def text(rows):
    """Markdown table of rows; ratios with least and largest of the seeds."""
    heads = ["variant", "seeds", "bits per byte", "training loss", "loss variance", "gradient variance", "over its mean", "steps", "time"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [row["variant"], str(row["seeds"]), f"{row['bpb']:.4f}", f"{row['train_loss']:.4f}"]
        for key in RATIOS:
            low, high = row[key + "_range"]
            cells.append("-" if math.isinf(high) else f"{row[key]:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="TOML file of the study")
    parser.add_argument("--out", help="folder of its results, runs/NAME where this is missing")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        study = read_study(options.study)
        rows = rows_of(study, Path(options.out or f"runs/{study.name}"))
    except ValueError as fault:
        sys.exit(f"error: {fault}")
    print(json.dumps(rows, indent=1) if options.json else text(rows))


if __name__ == "__main__":
    main()
