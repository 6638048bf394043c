"""Probes of how a relaxation moves: its trace over thousands of steps, step lengths against each other, solvers against each other.

Two residuals that must not be confused: g = |F(z)| / |z|, the same for every solver and step, and that of a step, r = rate * g, which falls
with the step alone. All verdicts are on g. Shapes: B texts, T tokens, D width, S steps.
"""

from typing import NamedTuple

import numpy as np

from trit.console import counted
from trit.dynamics.probe_finding import Chart, Finding, Series, numbers_of
from trit.layers.anderson import anderson
from trit.layers.implicit import ADAPTIVE_SPAN
from trit.layers.newton import newton
from trit.layers.relaxation import adapting, stepping

STILL = 1e-9  # g below which a text is at rest: what is left is rounding
TAIL = 1000  # steps whose least and largest residual are reported
MOVING = 1e-3  # g of a token that has not come to rest at the end of a trace
AT_REST, FALLING, WAVES, OSCILLATING, STALLED, BLOWN = "at rest", "falling", "falling in waves", "oscillating", "stalled", "diverged"


class Trace(NamedTuple):
    """g over S steps: of all tokens (S,), by text (S, B), of the worst token (S,), and the largest of the tail by token (B, T)."""

    whole: np.ndarray
    texts: np.ndarray
    worst: np.ndarray
    tail: np.ndarray


def traced(operator, steps, rate=None):
    """`Trace` of `steps` explicit steps from the drive. Ends early where every token stands still or a number is none."""
    ops, z, rate = operator.ops, operator.drive, rate or operator.rate
    whole, texts, tokens = [], [], []
    for _ in counted(range(steps), "relaxation", steps, "steps"):
        pull = operator.force(z)
        up, down = (ops.to_numpy(ops.sum(x * x, -1)) for x in (pull, z))
        whole.append((up.sum() / down.sum()) ** 0.5)
        texts.append((up.sum(1) / down.sum(1)) ** 0.5)
        tokens.append((up / down) ** 0.5)
        if not STILL * 1e-4 < tokens[-1].max() < 1e6:
            break
        z = z + rate * pull
    worst = np.array([g.max() for g in tokens])
    return Trace(np.array(whole), np.array(texts), worst, np.max(tokens[-min(TAIL, max(len(tokens) // 2, 1)) :], 0))


def autocorrelation(values, lags):
    """Correlation (lags + 1,) of a series with itself some steps later, 1 at lag 0; zeros for a series that does not move."""
    values = np.asarray(values, np.float64)
    values = values - values.mean()
    power = (values * values).sum()
    if not power > 0:
        return np.zeros(lags + 1)
    return np.array([(values[: len(values) - lag] * values[lag:]).sum() / power for lag in range(lags + 1)])


def period(values, lags=200):
    """Steps after which a series resembles itself most, the first peak of its `autocorrelation` behind a trough; 0 where there is none."""
    found = autocorrelation(values, min(lags, len(values) // 2))
    below = np.flatnonzero(found < 0)
    if not len(below):
        return 0
    after = found[below[0] :]
    peaks = np.flatnonzero((after[1:-1] > after[:-2]) & (after[1:-1] >= after[2:]) & (after[1:-1] > 0.1)) + 1
    return int(below[0] + peaks[0]) if len(peaks) else 0


def verdict(values):
    """What a series (S,) of residuals of one text does at its end: one word of this module. Told by halves of its tail, not by a few steps: slow
    contraction looks like a halt in a short window, and a cycle like contraction in one half of its turn."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values[-1]) or values[-1] > 1e2 * max(values[0], 1.0):
        return BLOWN
    if values[-1] <= STILL:
        return AT_REST
    tail = values[-min(TAIL, max(len(values) // 2, 2)) :]
    rising = bool((np.diff(tail) > 1e-9 * tail[:-1]).any())
    half = len(tail) // 2
    lower = tail[half:].mean() < 0.95 * tail[:half].mean()
    if rising:
        return WAVES if lower else OSCILLATING
    return FALLING if lower else STALLED


def sampled(values, most=400):
    """[(step, value)] of a series, thinned to about `most` points; of a stretch its largest and least, so that cycles stay to be seen."""
    values, size = np.asarray(values), max(1, -(-2 * len(values) // most))
    found = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        found += [(start + place, float(part[place])) for place in sorted({int(part.argmin()), int(part.argmax())})]
    return found


def trace_probe(operator, steps=2000):
    """`Finding` of the trace."""
    trace, deployed = traced(operator, steps), operator.cfg.arch.relax_steps
    if len(trace.worst) < 2 * CLOSE_LOOK:
        words = [f"every token stood still, or one diverged, after {len(trace.worst)} steps"]
    else:
        words = []
    rows, moving = [], 0
    for row in range(operator.shape[0]):
        values = trace.texts[:, row]
        tail = values[-min(TAIL, max(len(values) // 2, 1)) :]
        word = verdict(values)
        moving += word in (OSCILLATING, STALLED, BLOWN)
        first = np.flatnonzero(trace.tail[row] > MOVING)
        rows.append(
            [
                row,
                float(values[min(deployed, len(values) - 1)]),
                float(operator.rate * values[min(deployed, len(values) - 1)]),
                float(values[-1]),
                float(tail.min()),
                float(tail.max()),
                word,
                period(np.log(tail + 1e-300)) if word in (OSCILLATING, WAVES) else 0,
                int(first[0]) if len(first) and word in (OSCILLATING, STALLED, BLOWN) else None,
            ]
        )
    heads = ["text", "g deployed", "r deployed", "g last", "tail least", "tail most", "verdict", "period", "first moving token"]
    end = min(deployed, len(trace.worst) - 1)
    words.append(
        f"after the {deployed} deployed steps g is {trace.whole[end]:.2e} over all, {trace.texts[end].max():.2e} in the worst text, "
        f"{trace.worst[end]:.2e} at the worst token (r is {operator.rate:g} times these)"
    )
    words.append(f"{moving} of {operator.shape[0]} texts do not come to rest at steps of {operator.rate:g}")
    lines = [
        Series("worst token", sampled(trace.worst), 1),
        Series("worst text", sampled(trace.texts.max(1)), 0),
        Series("all tokens", sampled(trace.whole), 2),
    ]
    charts = [
        Chart(
            "Relaxation",
            f"g = |F(z)| / |z| at steps of {operator.rate:g}",
            "steps",
            "g",
            lines,
            log_up=True,
            marks=((STILL, "at rest"),) if trace.worst.min() < 100 * STILL else (),
        )
    ]
    tail = np.log(trace.worst[-min(TAIL, max(len(trace.worst) // 2, 2)) :] + 1e-300)
    lags = min(200, len(tail) // 2)
    if moving and lags > 2:
        points = list(enumerate(map(float, autocorrelation(tail, lags))))
        charts.append(
            Chart(
                "Does it repeat?",
                "autocorrelation of log g of the worst token over the tail",
                "lag, steps",
                "correlation",
                [Series("worst token", points, 1)],
                marks=((0.0, ""),),
            )
        )
    numbers = {
        "texts": numbers_of(heads, rows),
        "steps": len(trace.worst),
        "deployed_steps": deployed,
        "g_deployed": {"whole": trace.whole[end], "text": trace.texts[end].max(), "token": trace.worst[end]},
        "g_last": {"whole": trace.whole[-1], "text": trace.texts[-1].max(), "token": trace.worst[-1]},
    }
    numbers["r_deployed"] = {name: operator.rate * value for name, value in numbers["g_deployed"].items()}
    return Finding("trace", "Relaxation trace", words, heads, rows, charts, numbers), trace


CLOSE_LOOK = 50  # steps; a trace that is shorter than twice that ended early


def rates_probe(operator, multiples=(0.125, 0.25, 0.5, 1.0, 1.5, 2.0), times=3.0):
    """`Finding` of step lengths, multiples of the deployed one, each over the same time: `times` that of the deployed relaxation."""
    heads, rows, lines = ["step length", "steps", "g last", "tail least", "tail most", "r last", "verdict"], [], []
    span = times * operator.cfg.arch.relax_steps * operator.rate
    for place, multiple in enumerate(multiples):
        rate = multiple * operator.rate
        found = traced(operator, max(round(span / rate), 2), rate)
        tail = found.worst[-max(len(found.worst) // 4, 2) :]
        rows.append(
            [rate, len(found.worst), float(tail[-1]), float(tail.min()), float(tail.max()), float(rate * tail[-1]), verdict(found.worst)]
        )
        lines.append(Series(f"{rate:g}", [(step * rate, value) for step, value in sampled(found.worst, 240)], place))
    words = ["read g: r shrinks with the step even where nothing came to rest"]
    charts = [Chart("Step lengths", "g of the worst token, by time = steps x length", "time", "g", lines, log_up=True)]
    return Finding("rates", "Step lengths", words, heads, rows, charts, {"rates": numbers_of(heads, rows), "time": span})


def solvers_probe(operator, tolerance=1e-6, budget=1200):
    """`Finding` of the evaluations of the force that solvers take until the worst token of all texts has a residual of `tolerance`."""
    ops, start, own = operator.ops, operator.drive, operator.own_force
    solvers = {
        f"steps of {rate:g}": lambda rate=rate: stepping(ops, operator.force, start, rate, budget, tolerance)
        for rate in sorted({0.05, 0.1, 0.25, operator.rate})
    }
    solvers |= {
        "frozen prefix": lambda: stepping(ops, operator.force, start, operator.rate, budget, tolerance, freezes=True),
        "adaptive": lambda: adapting(ops, operator.force, start, 0.05, ADAPTIVE_SPAN, budget, tolerance, precision=1e-16),
        "Anderson by texts": lambda: anderson(ops, operator.force, start, budget, tolerance),
        "Anderson by prefixes": lambda: anderson(ops, operator.force, start, budget, tolerance, prefix=True),
        "Newton by tokens": lambda: newton(ops, own, start, tolerance),
    }
    heads, rows = ["solver", "evaluations", "worst g", "texts at rest", "status"], []
    for name, solve in counted(solvers.items(), "solvers", len(solvers), "solvers"):
        found = solve()
        worst = operator.residuals(found.state).max(1)
        rows.append([name, found.evaluations, float(worst.max()), int((worst <= tolerance).sum()), ", ".join(sorted(set(found.status)))])
    words = [
        f"evaluations of the force for all {operator.shape[0]} texts together until every token has g <= {tolerance:g}, at most {budget}; a block of Newton's counts its width of them"
    ]
    return Finding(
        "solvers", "Solvers", words, heads, rows, [], {"tolerance": tolerance, "budget": budget, "solvers": numbers_of(heads, rows)}
    )
