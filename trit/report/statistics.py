"""Statistics of repeated trainings. In: bits per byte by variant. Out: mean, spread and how sure a difference is."""

import math
from typing import NamedTuple


class Compared(NamedTuple):
    """A variant against another: difference of the means, half the width of its 95 % interval, two-sided p of Welch's test, and p after
    Holm's correction for as many comparisons as there are. NaN where one training cannot say."""

    difference: float
    margin: float
    p: float
    corrected: float = float("nan")


def mean_and_deviation(values):
    """(mean, sample standard deviation) of at least one value; the deviation of one is NaN."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, float("nan")
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def pooled_deviation(groups):
    """(standard deviation of one value, degrees of freedom) that lists of values share if all spread alike; NaN and 0 for single values."""
    freedom = sum(len(values) - 1 for values in groups)
    squares = sum((value - sum(values) / len(values)) ** 2 for values in groups for value in values)
    return (math.sqrt(squares / freedom) if freedom else float("nan")), freedom


def compare(values, base):
    """`Compared` of values against those of the base, without assuming equal variances."""
    from scipy import stats

    difference = mean_and_deviation(values)[0] - mean_and_deviation(base)[0]
    if len(values) < 2 or len(base) < 2:
        return Compared(difference, float("nan"), float("nan"))
    found = stats.ttest_ind(values, base, equal_var=False)
    interval = found.confidence_interval(0.95)
    return Compared(difference, (interval.high - interval.low) / 2, float(found.pvalue))


def corrected(compared):
    """The same list of `Compared` with Holm's corrected p: how often chance alone would make the best of so many look like this."""
    order = sorted((i for i, each in enumerate(compared) if not math.isnan(each.p)), key=lambda i: compared[i].p)
    found, highest = list(compared), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * compared[i].p))
        found[i] = found[i]._replace(corrected=highest)
    return found
