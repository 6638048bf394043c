"""Probes of the modes at a rest: a map of every token's own, the whole Jacobian's by products alone, how they go as attention's gain grows,
and how far the Jacobian is from its transpose.

The Jacobian is block lower triangular over positions, so its spectrum is that of the blocks J_tt: an instability is always at a token. Only
at a rest are modes evidence; a token where none was found, and all behind it in its text, are left out and counted. Shapes: B texts, T tokens.
"""

import numpy as np

from trit.console import counted
from trit.dynamics.probe_finding import Chart, Finding, Series, numbers_of
from trit.dynamics.probe_trace import AT_REST, FALLING, WAVES, verdict
from trit.dynamics.spectrum import (
    MEANING,
    NO_EVIDENCE,
    STEADY,
    arnoldi,
    asymmetry,
    block_asymmetry,
    dense,
    matched,
    outcome,
    story,
    summary,
)
from trit.layers.relaxation import stepping

GAINS = (0.0, 0.2, 0.4, 0.7, 0.85, 1.0)
WRITTEN_OUT = 512  # numbers of a text's state whose whole Jacobian is written out
MOST_MODES = 6000  # points of a chart
SHOWN_TEXTS = 3  # those with the least stable tokens, as lines
SETTLING = 1500  # steps that may pass until a relaxation has arrived
ARRIVED = 1e-6  # g at which it has


def token_modes(operator, z, at_rest):
    """Eigenvalues (B, T, D) of the blocks at z; NaN where the token is not `at_rest` (B, T)."""
    blocks = np.where(at_rest[..., None, None], operator.blocks(z), -np.eye(z.shape[2]))  # what is no rest may hold what is no number
    return np.where(at_rest[..., None], np.linalg.eigvals(blocks), np.nan)


def circle(rate, count=97):
    """Points of the edge of the disc of modes that steps of length `rate` hold, |1 + rate nu| = 1."""
    angles = np.linspace(0, 2 * np.pi, count)
    return [((x - 1) / rate, y / rate) for x, y in zip(np.cos(angles), np.sin(angles))]


def cloud(name, modes, rate, colour):
    """`Series` of eigenvalues in the plane, of too many those that are least stable under steps of length `rate`."""
    modes = np.ravel(modes)
    modes = modes[np.isfinite(modes)]
    modes = modes[np.argsort(-np.abs(1.0 + rate * modes))][:MOST_MODES]
    return Series(name, [(float(mode.real), float(mode.imag)) for mode in modes], colour, "dots")


def walls(critical, tail, rate, moving):
    """{what the map foretold of a trace}: `critical` (B, T) longest stable steps (NaN: no rest), `tail` (B, T) the largest g at its end, `moving` the
    g of a token that has not come to rest. A text is named by its first moving token: what those behind it do follows from it."""
    rows = []
    for row in range(len(tail)):
        places = np.flatnonzero(tail[row] > moving)
        token = int(places[0]) if len(places) else None
        before = critical[row, :token] if token is not None else critical[row]
        least = float(np.nanmin(before)) if np.isfinite(before).any() else float("nan")
        rows.append(
            {
                "text": row,
                "token": token,
                "critical_step": float("nan") if token is None else float(critical[row, token]),
                "least_before": least,
            }
        )
    known = [r for r in rows if r["token"] is not None and np.isfinite(r["critical_step"])]
    still = [r for r in rows if r["token"] is None and np.isfinite(r["least_before"])]
    return {
        "texts": rows,
        "moving": sum(r["token"] is not None for r in rows),
        "moving_with_evidence": len(known),
        "foretold": sum(r["critical_step"] < 1.05 * rate for r in known),
        "still": len(still),
        "still_foretold": sum(r["least_before"] > rate for r in still),
    }


def spectrum_probe(operator, trace=None, moving=1e-3):
    """`Finding` of the map of tokens' own modes, compared with a `Trace` of the same texts where there is one."""
    z, at_rest = operator.rest()
    modes, rate = token_modes(operator, z, at_rest), operator.rate
    good = at_rest.any(1)
    found = summary(np.where(at_rest[..., None], modes, -1.0), rate)
    critical = np.where(at_rest, found.critical, np.nan)
    heads, rows = (
        [
            "text",
            "tokens at rest",
            "least critical step",
            "at token",
            "rightmost mode",
            "largest |mu|",
            "its mu",
            "tokens unstable",
            "outcome",
        ],
        [],
    )
    for row in range(operator.shape[0]):
        if not good[row]:
            rows.append([row, 0, *[None] * 6, NO_EVIDENCE])
            continue
        token = int(np.nanargmin(critical[row]))
        large = int(np.argmax(np.where(at_rest[row], np.abs(found.factor[row]), -1)))
        right = int(np.argmax(np.where(at_rest[row], found.rightmost[row].real, -np.inf)))
        word = outcome(modes[row][at_rest[row]], rate, True, True)
        unstable = int((np.abs(found.factor[row])[at_rest[row]] >= 1).sum())
        rows.append(
            [
                row,
                int(at_rest[row].sum()),
                float(critical[row, token]),
                token,
                complex(found.rightmost[row, right]),
                float(abs(found.factor[row, large])),
                complex(found.factor[row, large]),
                unstable,
                word,
            ]
        )
    words = [f"deployed steps have length {rate:g}: a token whose critical step is shorter cannot come to rest by them"]
    if not at_rest.all():
        words.append(
            f"no rest was found at {int((~at_rest).sum())} of {at_rest.size} tokens: their modes would be no evidence and are left out"
        )
    numbers = {
        "texts": numbers_of(heads, rows),
        "tokens": int(at_rest.size),
        "tokens_at_rest": int(at_rest.sum()),
        "step_length": rate,
        "critical_steps": critical.tolist(),
    }
    if good.any():
        numbers |= {
            "least_critical_step": float(np.nanmin(critical)),
            "largest_factor": float(np.abs(found.factor[at_rest]).max()),
            "rightmost": float(found.rightmost[at_rest].real.max()),
        }
    if trace is not None:
        settles = [verdict(trace.texts[:, row]) in (AT_REST, FALLING, WAVES) for row in range(operator.shape[0])]
        numbers["walls"] = told = walls(critical, np.where(np.array(settles)[:, None], 0.0, trace.tail), rate, moving)
        words.append(
            f"the map against the trace: {told['foretold']} of {told['moving_with_evidence']} first moving tokens with a rest have a critical step below 1.05 x {rate:g}; "
            f"{told['still_foretold']} of {told['still']} texts that are at rest or on their way have all of theirs above {rate:g}"
        )
    order = np.argsort(np.where(np.isfinite(critical), critical, np.inf).min(1))[:SHOWN_TEXTS]
    tokens = [(t, float(critical[row, t])) for row, t in zip(*np.nonzero(at_rest))]
    lines = [Series("all tokens", [(int(t), value) for t, value in tokens], 6, "dots")]
    lines += [
        Series(f"text {row}", [(t, float(critical[row, t])) for t in range(critical.shape[1]) if at_rest[row, t]], place)
        for place, row in enumerate(order)
    ]
    charts = [
        Chart(
            "Longest stable step, by token",
            "below the mark a token cannot rest at the deployed step",
            "token",
            "critical step",
            lines,
            marks=((rate, "deployed"),),
        ),
        Chart(
            "Modes of all tokens",
            f"the {min(modes[at_rest].size, MOST_MODES):,} least stable eigenvalues of the blocks J_tt, and the disc of stable ones",
            "real part",
            "imaginary part",
            [cloud("modes", modes, rate, 0), Series("stable", circle(rate), 6)],
            equal=True,
        ),
    ]
    return Finding("spectrum", "Modes of every token", words, heads, rows, charts, numbers)


def chosen_text(critical):
    """The text with the token that is nearest to instability, of (B, T) critical steps with NaN."""
    return int(np.argmin(np.where(np.isfinite(critical), critical, np.inf).min(1)))


def arnoldi_probe(operator, vectors=120):
    """`Finding` of the whole Jacobian of one text by products alone, against the map of its tokens; and of its first tokens written out."""
    z, at_rest = operator.rest()
    rate, modes = operator.rate, token_modes(operator, z, at_rest)
    row = chosen_text(np.where(at_rest, summary(np.where(at_rest[..., None], modes, -1.0), rate).critical, np.nan))
    length = int(at_rest[row].sum())
    if not length:
        return Finding("arnoldi", "The whole Jacobian", ["no rest was found, so there is nothing to look at"], [], [], [], {"tokens": 0})
    text = operator.text(row, length)
    z, local = z[row : row + 1, :length], modes[row, :length].reshape(-1)
    size, wanted = local.size, summary(local, rate)
    along, back = text.along(z), text.back(z)
    tries = {
        "J, rightmost": (along, "LR", complex(wanted.rightmost)),
        "M = I + step J, largest": (lambda v: v + rate * along(v), "LM", complex(wanted.factor)),
        "J transposed, rightmost": (back, "LR", complex(wanted.rightmost)),
    }
    heads, rows = ["of", "by products", "by tokens", "apart"], []
    for name, (product, which, local_one) in counted(tries.items(), "Arnoldi", len(tries), "spectra"):
        value = arnoldi(product, size, which, vectors)
        rows.append([name, value, local_one, float(abs(value - local_one))])
    short = max(min(length, WRITTEN_OUT // operator.shape[2]), 1)
    part = operator.text(row, short)
    written = dense(part.along(z[:, :short]), short * operator.shape[2])
    blocks = written.reshape(short, operator.shape[2], short, operator.shape[2])
    above = max((float(np.abs(blocks[t, :, t + 1 :]).max()) for t in range(short - 1)), default=0.0)
    apart = matched(np.linalg.eigvals(written), modes[row, :short].reshape(-1))
    # Equal blocks with noughts above them prove equal spectra; what `apart` adds is the rounding of eigenvalues of a matrix so far from normal.
    own = part.blocks(z[:, :short])[0]
    blocks_apart = max(float(np.abs(blocks[t, :, t] - own[t]).max()) for t in range(short))
    words = [
        f"text {row}, {length} tokens at rest, {size} numbers, {vectors} vectors",
        f"its first {short} tokens written out ({written.shape[0]} numbers): the spectrum is that of the blocks within {apart:.1e}, "
        f"the blocks themselves within {blocks_apart:.1e}; what looks ahead is {above:.1e}",
    ]
    numbers = {
        "text": row,
        "tokens": length,
        "spectra": numbers_of(heads, rows),
        "written_out": {"tokens": short, "apart": apart, "blocks_apart": blocks_apart, "above_diagonal": above},
    }
    return Finding("arnoldi", "The whole Jacobian", words, heads, rows, [], numbers)


def continuation_probe(operator, gains=GAINS):
    """`Finding` of attention's output times each of `gains`, the rest of each found from that of the one before."""
    rate, texts = operator.rate, operator.shape[0]
    heads = ["gain", "texts with a rest", "texts that arrive", "least critical step", "rightmost mode", "mu of largest modulus", "outcomes"]
    z, rows, paths, tracks = operator.drive, [], [[] for _ in range(texts)], [[] for _ in range(texts)]
    for gain in counted(gains, "attention's gain", len(gains), "gains"):
        scaled = operator.scaled(gain)
        z, at_rest = scaled.rest_from(z)
        whole = at_rest.all(1)
        modes = token_modes(scaled, z, at_rest)
        arrived = stepping(scaled.ops, scaled.force, scaled.drive, rate, SETTLING, ARRIVED)
        settled = scaled.residuals(arrived.state).max(1) <= ARRIVED
        for row in range(texts):
            known = modes[row][at_rest[row]]
            word = outcome(known, rate, bool(at_rest[row].any()), bool(settled[row]), SETTLING)
            # All that was found shrinks, yet a token behind it has no rest: that is no finding on the text.
            stable = word not in (NO_EVIDENCE, STEADY) and not (np.abs(1.0 + rate * known) >= 1).any()
            paths[row].append(NO_EVIDENCE if stable and not whole[row] else word)
        count = {word: sum(path[-1] == word for path in paths) for word in MEANING}
        said = ", ".join(f"{word} {number}" for word, number in count.items() if number)
        found = summary(modes[at_rest], rate)
        if at_rest.any():
            right, large = np.argmax(found.rightmost.real), np.argmax(np.abs(found.factor))
            values = [float(found.critical.min()), complex(found.rightmost[right]), complex(found.factor[large])]
        else:
            values = [float("nan"), complex("nan"), complex("nan")]
        rows.append([gain, int(whole.sum()), int(settled.sum()), *values, said])
        for row in np.flatnonzero(at_rest.any(1)):
            tracks[row].append((gain, float(np.abs(1.0 + rate * modes[row][at_rest[row]]).max())))
    ends = [story(path) for path in paths]
    words = [
        f"texts {', '.join(str(i) for i, end in enumerate(ends) if end == word)}: {word} ({MEANING[word]})" for word in dict.fromkeys(ends)
    ]
    points = [(row[0], row[3]) for row in rows if row[3] == row[3]]
    lines = [Series(f"text {row}", track, row % 8) for row, track in enumerate(tracks)]
    charts = [
        Chart(
            "Attention's gain",
            "least critical step of all tokens at rest",
            "factor on attention's output",
            "critical step",
            [Series("least critical step", points, 0)],
            marks=((rate, "deployed"),),
        ),
        Chart(
            "Growth of a step, by text",
            "largest |mu| of its tokens at rest; above the mark steps grow",
            "factor on attention's output",
            "largest |mu|",
            lines,
            marks=((1.0, ""),),
        ),
    ]
    numbers = {"gains": numbers_of(heads, rows), "outcomes": paths, "texts": ends}
    return Finding("continuation", "Attention's gain", words, heads, rows, charts, numbers)


def asymmetry_probe(operator):
    """`Finding` of the ratio of the antisymmetric to the symmetric part of J, of all texts and of tokens' own blocks."""
    z, at_rest = operator.rest()
    whole = asymmetry(operator.along(z), operator.back(z), operator.shape)
    if not at_rest.any():
        return Finding("asymmetry", "Asymmetry", ["no rest was found, so there is nothing to look at"], [], [], [], {})
    own = block_asymmetry(operator.blocks(z))[at_rest]
    heads = ["of", "|A| / |S|"]
    rows = [
        ["whole Jacobian, 32 draws", whole],
        ["blocks, median", float(np.median(own))],
        ["blocks, least", float(own.min())],
        ["blocks, most", float(own.max())],
    ]
    words = ["0 is the Jacobian of a gradient, where no cycle can be; the leak counts to the symmetric part"]
    if not at_rest.all():
        words.append("not all tokens are at rest: the first row is taken at a point that is none")
    return Finding(
        "asymmetry",
        "Asymmetry",
        words,
        heads,
        rows,
        [],
        {"whole": whole, "blocks_median": float(np.median(own)), "blocks_most": float(own.max())},
    )
