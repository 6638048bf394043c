"""How many bytes of text each token stands for. Input: a tokenizer and token ids; output: byte counts for bits per byte.

The rule is the contest's: the sum over a document is the UTF-8 length of its decoded text. Two points where a model that
keeps white space needs care: inner spaces of a piece count one byte each, and a space right after BOS counts, because such
a model decodes it; where decoding drops that space it counts nothing.
"""

import numpy as np
import sentencepiece


def byte_table(tokenizer_path, vocab_size):
    """Per-token facts for the model file `tokenizer_path`, or "byte260".

    Returns (base int16 (V,), lead bool (V,), boundary bool (V,)), V = max(tokenizer's pieces, `vocab_size`): bytes without a
    leading space; has a leading space; swallows a leading space that follows it. Padding rows count nothing.
    """
    pieces = None if tokenizer_path == "byte260" else sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    count = pieces.vocab_size() if pieces else 260
    size = max(count, vocab_size)
    base, lead, boundary = np.zeros(size, np.int16), np.zeros(size, bool), np.ones(size, bool)
    if not pieces:
        base[4:260], boundary[4:260] = 1, False
        return base, lead, boundary
    for i in range(count):
        if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
            continue
        piece = pieces.id_to_piece(i)
        boundary[i] = False
        lead[i] = not pieces.is_byte(i) and piece[:1] == "\u2581"
        base[i] = 1 if pieces.is_byte(i) else len(piece[int(lead[i]) :].replace("\u2581", " ").encode())
    if lead.any() and pieces.decode([int(lead.argmax())])[:1] == " ":
        for i in range(count):
            boundary[i] &= not pieces.is_control(i)
    return base, lead, boundary


def token_bytes(table, previous, targets):
    """Bytes of each of `targets` after `previous` (integer arrays of one shape); same shape, int64. ValueError on a foreign id."""
    base, lead, boundary = table
    previous, targets = np.asarray(previous), np.asarray(targets)
    for ids in (previous, targets):
        if ids.size and not 0 <= ids.min() <= ids.max() < len(base):
            raise ValueError(f"token ids {ids.min()} to {ids.max()} do not fit the byte table of {len(base)} rows")
    return base[targets].astype(np.int64) + (lead[targets] & ~boundary[previous])
