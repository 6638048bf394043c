"""The certificate's checks on numbers: each takes what was measured and gives a `Check`. Pure; nothing is opened or run here.

Position i of a text predicts token i + 1, so n tokens hold n - 1 positions. Losses are nats, float64; rows are log-probabilities of
all tokens, float64 (rows, V).
"""

import math
from typing import NamedTuple

import numpy as np

from trit.data.byte_count import token_bytes
from trit.data.token_ids import BOS_ID

ROW_TOLERANCE = 1e-4  # nats: rows come from float32 arithmetic over V terms
CONSTANT_TOLERANCE = 1e-4  # share: rounding of a split to whole windows moves the contest's constants by less
# Validation splits of the contest as runs print them: name, scored tokens, bytes they imply.
CONTEST_SPLITS = (
    ("official sp1024", 62_021_632, 151_080_363),
    ("sp4096", 45_508_608, 151_074_052),
    ("sp8192", 40_540_160, 151_078_222),
    ("CaseOps sp8192", 47_851_520, 151_084_309),
    ("bytes", 151_130_112, 151_080_112),
    ("older export", 63_779_840, 155_769_746),
)
PARTIAL_SPLITS = (("10,000 documents of sp8192", 9_662_464), ("a sliced sp1024", 36_562_944))
CONTEST_DOCUMENTS = 50_000


class Check(NamedTuple):
    """One check of the certificate. `verdict` is pass, fail or unknown; `evidence` says what was measured, or what to supply."""

    name: str
    verdict: str
    evidence: str


def check(name, holds, evidence):
    """A `Check` from a truth value."""
    return Check(name, "pass" if holds else "fail", evidence)


def unknown(name, evidence):
    """A `Check` that could not be made; `evidence` says what it needs."""
    return Check(name, "unknown", evidence)


def split_documents(tokens):
    """Documents of a token stream (each starts with BOS) as a list of arrays."""
    starts = np.flatnonzero(np.asarray(tokens) == BOS_ID)
    return np.split(np.asarray(tokens), starts[starts > 0])


def decoded_documents(tokens, tokenizer):
    """UTF-8 text of every document of a token stream, a list of bytes."""
    return [tokenizer.decode(document[1:].tolist()).encode() for document in split_documents(tokens)]


def byte_accounting(documents, texts, table, printed):
    """The bytes a run printed equal the UTF-8 length of the decoded text, and the project's byte table agrees in every document.

    `documents` are token arrays, `texts` what they decode to, `table` is a byte table, `printed` a number.
    """
    total, wrong = sum(map(len, texts)), 0
    for document, text in zip(documents, texts, strict=True):
        wrong += int(token_bytes(table, document[:-1], document[1:]).sum()) != len(text)
    evidence = (
        f"{len(texts)} documents decode to {total} bytes, the program counted {printed:.0f}; the byte table errs in {wrong} documents"
    )
    return check("byte accounting", wrong == 0 and printed == total, evidence)


def contest_constants(positions, size, documents):
    """None for a text that is none of the contest's validation splits, else whether its bytes and documents are the contest's.

    `positions` and `documents` are counts, `size` is in bytes.
    """

    def near(value, wanted):
        return abs(value - wanted) <= CONSTANT_TOLERANCE * wanted

    for name, tokens in PARTIAL_SPLITS:
        if near(positions, tokens):
            return check("contest constants", False, f"{positions} positions are {name}, a part of the validation split; score all of it")
    for name, tokens, wanted in CONTEST_SPLITS:
        if near(positions, tokens):
            evidence = f"{name}: {size} bytes where {wanted} are implied (to 0.01 %), {documents} of {CONTEST_DOCUMENTS} documents"
            return check("contest constants", near(size, wanted) and documents == CONTEST_DOCUMENTS, evidence)
    return None


def scored_once(losses, positions, printed):
    """One finite loss for every position and no more; `printed` is how many tokens the program says it scored."""
    finite = int(np.isfinite(losses).sum())
    evidence = f"{len(losses)} losses for {positions} positions, {finite} finite; the program counts {printed:.0f} tokens"
    return check("scored exactly once", len(losses) == finite == positions == printed, evidence)


def printed_score(losses, size, loss, bpb):
    """Printed loss (nats a token) and bits per byte follow from the losses and from the `size` of the decoded text in bytes."""
    mean, bits = float(np.mean(losses)), float(np.sum(losses)) / math.log(2.0) / size
    evidence = f"val_loss {loss} printed, {mean:.8f} recomputed; val_bpb {bpb} printed, {bits:.8f} recomputed from {size} bytes of text"
    # Eight decimals are printed; the rest is the order of summation.
    return check("printed score", abs(mean - loss) <= 1e-7 and abs(bits - bpb) <= 1e-7, evidence)


def largest_change(before, after):
    """Largest absolute difference of two arrays of one shape; infinite where something is not a number, zero where they are empty."""
    change = np.abs(np.asarray(after) - np.asarray(before))
    return float(np.where(np.isnan(change), math.inf, change).max()) if change.size else 0.0


def prefix_kept(name, base, runs, tolerance):
    """Losses before the first replaced token stay what they were.

    `base` are the losses of the true text, `runs` pairs (index of the first replaced token, losses); at least one is needed.
    """
    moved, worst, at = 0, 0.0, None
    for first, losses in runs:
        if len(losses) != len(base):
            return check(name, False, f"the same number of tokens gave {len(losses)} losses instead of {len(base)}")
        change = largest_change(base[: first - 1], losses[: first - 1])
        moved += change > tolerance
        if change > worst:
            worst, at = change, first
    where = f" (tail replaced from token {at})" if at else ""
    allowed = f"{tolerance:g} nats allowed" if tolerance else "bit for bit"
    evidence = f"{len(runs)} tails replaced in {len(base) + 1} tokens, {allowed}: largest change before the cut {worst:.3g} nats{where}"
    return check(name, runs and not moved, evidence)


def normalised(rows, losses, targets, name="normalised"):
    """Rows are log-probabilities that sum to one, and each loss is minus the row at its target: (N, V), (N,), (N,)."""
    rows, losses = np.asarray(rows, np.float64), np.asarray(losses)
    if not len(rows):
        return check(
            name, False, "the program gave no rows: it must write log-probabilities of all tokens at the positions ROWS_AT to ROWS"
        )
    with np.errstate(divide="ignore", over="ignore"):
        totals = np.log(np.exp(rows).sum(-1))  # 0 where the row is what it should be; anything not finite fails
    whole, off = largest_change(np.zeros(len(rows)), totals), largest_change(losses, -rows[np.arange(len(rows)), targets])
    evidence = f"{len(rows)} rows of {rows.shape[1]}: |logsumexp| at most {whole:.2g}, loss and row differ by at most {off:.2g} nats"
    return check(name, whole < ROW_TOLERANCE and off < ROW_TOLERANCE, evidence)


def target_free(probes, tolerance):
    """The distribution at a position is fixed before its target is looked at.

    `probes` holds, for each replaced target, (row of the true text (V,), row of the changed text (V,), new target, its loss).
    """
    moved = max((largest_change(row, again) for row, again, _, _ in probes), default=math.inf)
    off = max((largest_change(-row[target], loss) for row, _, target, loss in probes), default=math.inf)
    evidence = (
        f"{len(probes)} targets replaced: the row moves by at most {moved:.2g} nats, "
        f"the new target's loss differs from the row fixed before by at most {off:.2g} nats"
    )
    return check("target substitution", moved <= tolerance and off <= max(tolerance, ROW_TOLERANCE), evidence)


def same_losses(name, first, second, what, tolerance=0.0):
    """Two loss arrays are the same: bit for bit, or within `tolerance` nats."""
    gap = largest_change(first, second) if np.shape(first) == np.shape(second) else math.inf
    verb = "identical" if gap == 0 else "different"
    return check(name, gap <= tolerance, f"{what}: {verb} on {len(first)} positions, largest difference {gap:.3g} nats")


def within_budget(code_bytes, model_bytes, cap):
    """Counted file plus artifact, as they lie on disk, fit the cap."""
    total = code_bytes + model_bytes
    return check("size", total <= cap, f"{code_bytes} code + {model_bytes} artifact = {total} of {cap} bytes, {cap - total} to spare")


def within_time(name, seconds, limit, note=""):
    """A phase stayed inside the track's limit (0 is no limit). `note` is added to the evidence."""
    return check(name, not limit or seconds <= limit, (f"{seconds:.1f}s of {limit:.0f}s" if limit else f"{seconds:.1f}s, no limit") + note)
