"""Is a record better than another? python -m trit.report.against RECORD OTHER

The rules ask for 0.005 nats a token at p < 0.01; practice has asked for less. So several readings stand side by side, each with its own
one-sided Welch test over the seeds (contest.md 1.1). Two record folders, this project's or anybody's.
"""

import math
from typing import NamedTuple

from trit.console import Parser, command
from trit.report.public import read_public
from trit.report.statistics import mean_and_deviation

MARGIN_NATS = 0.005
READINGS = (
    ("strict: 0.005 nats a token, p < 0.01", MARGIN_NATS, 0.01),
    ("difference alone: any, p < 0.01", 0.0, 0.01),
    ("loose: any, p < 0.25, as a leaderboard pass of April accepted", 0.0, 0.25),
)


class Reading(NamedTuple):
    """One reading of the rule: what it asks, by how much `gain` (nats a token) exceeds the margin, one-sided p, whether it holds (None
    where the seeds cannot say)."""

    name: str
    beyond: float
    p: float
    holds: object


def one_sided(values, base, margin):
    """p of Welch's test that the mean of `values` lies more than `margin` below that of `base`. A single value of the base is taken as
    its true mean. NaN with less than two values, or where neither side spreads."""
    from scipy import stats

    values = [value + margin for value in values]
    if len(values) < 2 or mean_and_deviation(values)[1] == 0 and (len(base) < 2 or mean_and_deviation(base)[1] == 0):
        return math.nan
    if len(base) < 2:
        return float(stats.ttest_1samp(values, base[0], alternative="less").pvalue)
    return float(stats.ttest_ind(values, base, equal_var=False, alternative="less").pvalue)


def readings(losses, base):
    """[Reading] of nats a token by seed against those of the record to beat."""
    gain, found = mean_and_deviation(base)[0] - mean_and_deviation(losses)[0], []
    for name, margin, level in READINGS:
        p = one_sided(losses, base, margin)
        holds = False if gain < margin else None if math.isnan(p) else p < level
        found.append(Reading(name, gain - margin, p, holds))
    return found


def nats_of_a_bit(record):
    """Nats a token at one bit per byte, from the headline of a `PublicRecord` or a seed that names both; NaN where none does."""
    pairs = [(record.loss, record.bpb), *((seed.loss, seed.bpb) for seed in record.seeds)]
    return next((loss / bpb for loss, bpb in pairs if not math.isnan(loss + bpb)), math.nan)


def nats(record, ratio):
    """Nats a token of every seed of a `PublicRecord`, through `ratio` where a seed tells bits per byte alone. ValueError where none is known."""
    found = [seed.bpb * ratio if math.isnan(seed.loss) else seed.loss for seed in record.seeds]
    found = [loss for loss in found if not math.isnan(loss)]
    if not found:
        raise ValueError(f"{record.name}: no seed names its val_loss or val_bpb; add seed_results to submission.json")
    return found


def comparison(record, other):
    """(lines that compare two `PublicRecord`s, their facts for programs)."""
    notes, lines, facts, ratios = [], [], {}, [nats_of_a_bit(record), nats_of_a_bit(other)]
    for place, one in enumerate((record, other)):
        if math.isnan(ratios[place]):
            ratios[place] = ratios[1 - place]
            notes.append(f"{one.name} names no val_loss: its bits per byte are read as if it counted tokens as the other record does")
    if math.isnan(ratios[0]):
        raise ValueError(
            "neither record names val_loss and val_bpb together, and the rule is in nats a token; add val_loss to submission.json"
        )
    ours, theirs = nats(record, ratios[0]), nats(other, ratios[1])
    for name, found, one in (("this", ours, record), ("other", theirs, other)):
        mean, deviation = mean_and_deviation(found)
        facts[name] = {"name": one.name, "loss": mean, "loss_std": deviation, "bpb": one.bpb, "seeds": len(found), "doubts": one.doubts}
        spread = "" if math.isnan(deviation) else f" +- {deviation:.5f}"
        lines.append(f"{name:<6}{mean:.5f}{spread} nats a token, {one.bpb:.5f} bits per byte, {len(found)} seeds: {one.name}")
    if abs(ratios[0] / ratios[1] - 1) > 1e-3:
        notes.append(
            "the two count tokens differently: nats a token do not compare, bits per byte are compared instead, in nats of this one"
        )
        theirs = [loss * ratios[0] / ratios[1] for loss in theirs]
    lines, facts = [*notes, *lines], facts | {"notes": notes, "readings": readings(ours, theirs)}
    for reading in facts["readings"]:
        verdict = {True: "holds", False: "does not hold", None: "unknown: it needs two seeds or more that differ"}[reading.holds]
        p = "-" if math.isnan(reading.p) else f"{reading.p:.4g}"
        lines.append(
            f"{reading.name}: {verdict} (beyond the margin by {reading.beyond:+.5f} nats, {reading.beyond / ratios[0]:+.5f} bits per byte; p {p})"
        )
    lines += [f"doubt about {one.name}: {doubt}" for one in (record, other) for doubt in one.doubts]
    return lines, facts


def main(arguments=None):
    """Command line of this module."""
    description = "Readings of the rule that a record beats another."
    parser = Parser(prog="python -m trit.report.against", description=description, answers=True)
    parser.add_argument("record")
    parser.add_argument("other", help="the record to beat")
    options = parser.parse_args(arguments)
    with command(options.json) as answer:
        lines, facts = comparison(read_public(options.record), read_public(options.other))
        print("\n".join(lines))
        answer |= facts


if __name__ == "__main__":
    main()
