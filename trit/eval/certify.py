"""Checks that a submission is what it says: each gives a name, a verdict and the evidence. Tools only; never shipped.

Inputs are the counted file, the artifact and the validation split; nothing is taken from the training process's memory.
"""

import math
from typing import NamedTuple

import numpy as np

from trit.data.byte_count import byte_table, token_bytes
from trit.data.tokenizer import open_tokenizer
from trit.eval.score import score_tokens

BOS = 1


class Check(NamedTuple):
    """One check of the certificate. `verdict` is pass or fail; `evidence` says what was measured."""

    name: str
    verdict: str
    evidence: str


def check(name, holds, evidence):
    """A `Check` from a truth value."""
    return Check(name, "pass" if holds else "fail", evidence)


def split_documents(tokens):
    """Documents of a token stream (each starts with BOS) as a list of arrays."""
    starts = np.flatnonzero(np.asarray(tokens) == BOS)
    return np.split(np.asarray(tokens), starts[starts > 0])


def byte_accounting(tokens, tokenizer_path, vocab_size):
    """The byte table's count equals the UTF-8 length of the decoded text in every document."""
    table, tokenizer = byte_table(tokenizer_path, vocab_size), open_tokenizer(tokenizer_path)
    wrong, total, documents = 0, 0, split_documents(tokens)
    for document in documents:
        counted = int(token_bytes(table, document[:-1], document[1:]).sum())
        size = len(tokenizer.decode(document[1:].tolist()).encode())
        wrong, total = wrong + (counted != size), total + size
    return check(
        "byte accounting", wrong == 0, f"{len(documents)} documents, {total} bytes of decoded text, {wrong} documents counted wrongly"
    )


def scored_once(score, tokens):
    """Every position of the split was scored exactly once (the scorer raises otherwise) and none was left out."""
    return check("scored exactly once", score.tokens == len(tokens) - 1, f"{score.tokens} of {len(tokens) - 1} positions, each once")


def prefix_replay(cfg, token_losses, tokens, vocab_size, seed=0):
    """Replace the tail of the text by noise: every loss before the cut must stay the same, bit for bit on CPU."""
    length, stride = cfg.eval.eval_seq_len, cfg.eval.eval_stride
    tokens = np.asarray(tokens[: 8 * length + stride // 2 + 3], np.int32)
    generator, moved, tried = np.random.default_rng(seed), 0.0, 0
    before, _ = score_tokens(cfg, token_losses, tokens, 0, 1)
    for cut in sorted({length // 2, length - 1, length, 2 * length + stride + 1, len(tokens) - 2}):
        if not 0 < cut < len(tokens) - 1:
            continue
        changed = tokens.copy()
        changed[cut + 1 :] = generator.integers(0, vocab_size, len(tokens) - cut - 1)
        after, _ = score_tokens(cfg, token_losses, changed, 0, 1)
        moved, tried = max(moved, float(np.abs(after[:cut] - before[:cut]).max())), tried + 1
    return check(
        "prefix replay", tried > 0 and moved == 0.0, f"{tried} cuts in {len(tokens)} tokens, largest change before a cut {moved:.3g} nats"
    )


def normalised(logits, losses, targets):
    """Losses equal minus the log-softmax row at the target: `logits` (N, V), `losses` and `targets` (N,)."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    rows = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    off = float(np.abs(losses + rows[np.arange(len(targets)), targets]).max())
    whole = float(np.abs(np.exp(rows).sum(-1) - 1.0).max())
    return check(
        "normalised probabilities",
        off < 1e-4 and whole < 1e-6,
        f"{len(targets)} rows: loss off by at most {off:.2g} nats, sums off by {whole:.2g}",
    )


def same_losses(name, first, second, what):
    """Two loss arrays are identical, bit for bit."""
    equal = first.shape == second.shape and bool((first == second).all())
    gap = float(np.abs(first - second).max()) if first.shape == second.shape else math.inf
    return check(
        name, equal, f"{what}: {'identical' if equal else 'different'} on {len(first)} positions, largest difference {gap:.3g} nats"
    )


def within_budget(code_bytes, model_bytes, cap):
    """Counted file plus artifact, as they lie on disk, fit the cap."""
    total = code_bytes + model_bytes
    return check("size", total <= cap, f"{code_bytes} code + {model_bytes} artifact = {total} of {cap} bytes, {cap - total} to spare")


def within_time(name, seconds, limit):
    """A phase stayed inside the track's limit (0 is no limit)."""
    return check(name, not limit or seconds <= limit, f"{seconds:.1f}s of {limit:.0f}s" if limit else f"{seconds:.1f}s, no limit")
