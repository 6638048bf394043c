"""A packed artifact, opened to be used: its model, its tokenizer, what each token spells. In: a record folder. Out: an `Opened`."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trit.config_load import from_dict
from trit.data.tokenizer import open_tokenizer
from trit.library import load_library
from trit.models import load_arch
from trit.submission import load_artifact


class Opened(NamedTuple):
    """`rows(tokens, first)` gives float32 log-probabilities (B, T - first, V) after int tokens (B, T), T at most `window`; `spelled` the
    bytes of every token, None for control tokens; `digest` names the artifact."""

    rows: object
    window: int
    tokenizer: object
    spelled: list
    digest: bytes


def spelled_tokens(tokenizer, vocab_size):
    """[bytes or None] of every id: what it adds to a text."""
    if not tokenizer.pieces:
        return [bytes([i - 4]) if 4 <= i < 260 else None for i in range(vocab_size)]
    pieces, found = tokenizer.pieces, [None] * vocab_size
    for i in range(min(pieces.vocab_size(), vocab_size)):
        if pieces.is_byte(i):
            found[i] = bytes([int(pieces.id_to_piece(i)[3:5], 16)])
        elif not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i)):
            found[i] = pieces.id_to_piece(i).replace("\u2581", " ").encode()
    return found


def open_artifact(folder, library="torch"):
    """`Opened` of a record folder, computed with PyTorch or MLX. ValueError says what is missing."""
    folder = Path(folder)
    for name in ("config.json", "artifact.trit"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}; give a record's folder, which build_submission.py prints last")
    try:
        config = from_dict(json.loads((folder / "config.json").read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"{folder}/config.json: not a record's settings ({fault}); give another record's folder") from None
    arch, (_, ops, backend) = load_arch(config.model.name), load_library(library)
    data = (folder / "artifact.trit").read_bytes()
    weights = load_artifact(ops, arch, config, data)
    evaluator = backend.evaluator(ops, arch, config, weights, backend.start_process())
    tokenizer = open_tokenizer(folder / "tokenizer.model" if (folder / "tokenizer.model").exists() else "byte260")
    if tokenizer.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"{folder}: a vocabulary of {config.model.vocab_size} and no tokenizer.model beside it; copy it from the shards' folder"
        )

    def rows(tokens, first):
        return evaluator.rows(np.asarray(tokens, np.int32), None, first)

    spelled = spelled_tokens(tokenizer, config.model.vocab_size)
    return Opened(rows, config.eval.eval_seq_len, tokenizer, spelled, hashlib.sha256(data).digest()[:8])


def token_ids(opened, data):
    """Ids (n,) that spell `data` exactly: as the tokenizer cuts the text where that gives the text back, else line by line, else byte by
    byte. None where that needs tokens for single bytes and the tokenizer has none."""
    found = exact_ids(opened, data)
    if found is None:
        single = {spelling: i for i, spelling in enumerate(opened.spelled) if spelling is not None and len(spelling) == 1}
        found = []
        for line in data.splitlines(keepends=True):
            ids = exact_ids(opened, line)
            found += [single.get(bytes([byte])) for byte in line] if ids is None else ids
    return None if None in found else np.array(found, np.int32)


def exact_ids(opened, data):
    """Ids of a text as its tokenizer cuts it, a list, or None where they would not spell `data`."""
    try:
        ids = opened.tokenizer.encode(data.decode("utf-8")).tolist()
    except UnicodeDecodeError:
        return None
    return ids if spelling(opened, ids) == data else None


def spelling(opened, ids):
    """The bytes that ids spell, one after the other."""
    return b"".join(opened.spelled[i] or b"" for i in ids)
