"""Compress any file with an artifact's model, and get it back bit for bit: the bits per byte that a record claims, as bytes on a disk.

The file is cut into lanes that are coded side by side, each predicted from its own past in windows of the model's length. Both sides
compute the same array shapes, with noughts for tokens that are not known yet: a causal model's rows do not depend on them, in no bit
(the certificate's prefix replay shows it). That holds on one kind of machine with one set of versions; a checksum tells where it does not.
The arithmetic coder is constriction's (Bamler, arXiv:2201.01741).
"""

import hashlib
import math
import struct
from typing import NamedTuple

import brotli
import numpy as np

from trit.data.token_ids import BOS_ID
from trit.use.opened import spelling, token_ids

MAGIC, HEADER = b"TRZ1", "<4sBIHH8s8s"  # magic, kind, tokens, lanes, window, artifact, checksum of the file
STORED, CODED = 0, 1
LANES, LANE_TOKENS, MOST_TOKENS = 16, 128, 1 << 28


class Compressed(NamedTuple):
    """`data` is the compressed file; `bits` what the model itself gives its tokens, NaN where they are stored without it; `tokens`."""

    data: bytes
    bits: float
    tokens: int


def coder_library():
    """constriction; ValueError where it is not installed."""
    try:
        import constriction
    except ImportError:
        raise ValueError("compressing needs the package constriction: pip install constriction") from None
    return constriction.stream


class Lanes:
    """Tokens (lanes, 1 + length) side by side behind a first BOS, `count` of them in all; lane by lane they follow one another."""

    def __init__(self, count, lanes, window):
        self.count, self.window, self.stride = count, window, max(window // 2, 1)
        self.lengths = np.array([count // lanes + (lane < count % lanes) for lane in range(lanes)])
        self.length = int(self.lengths.max(initial=0))
        self.tokens = np.zeros((lanes, 1 + self.stride * -(-self.length // self.stride)), np.int32)
        self.tokens[:, 0] = BOS_ID

    def places(self):
        """(lanes, length) mask of the positions that hold tokens."""
        return np.arange(self.tokens.shape[1] - 1) < self.lengths[:, None]

    def blocks(self):
        """(begin, end) of the positions that one window predicts."""
        return [(begin, min(begin + self.stride, self.length)) for begin in range(0, self.length, self.stride)]

    def rows(self, opened, begin):
        """Probabilities float32 (lanes, stride, V) at the positions from `begin` on, from what is known."""
        end = begin + self.stride
        start = max(0, end - self.window)
        return np.exp(opened.rows(self.tokens[:, start:end], begin - start).astype(np.float64)).astype(np.float32)


def compress(opened, data, lanes=LANES, progress=lambda done, total: None):
    """`Compressed` of bytes. `progress(tokens done, all)` is called on the way."""
    ids, digest = token_ids(opened, data), hashlib.sha256(data).digest()[:8]
    if ids is None:
        head = struct.pack(HEADER, MAGIC, STORED, len(data), 0, 0, opened.digest, digest)
        return Compressed(head + brotli.compress(data), math.nan, 0)
    if len(ids) > MOST_TOKENS:
        raise ValueError(f"{len(ids):,} tokens are more than {MOST_TOKENS:,}; cut the file into parts")
    stream = coder_library()
    held = Lanes(len(ids), max(1, min(lanes, len(ids) // LANE_TOKENS)), opened.window)
    held.tokens[:, 1:][held.places()] = ids
    coder, model, bits, done = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False), 0.0, 0
    for begin, end in held.blocks():
        rows = held.rows(opened, begin)
        for at in range(begin, end):
            alive = held.lengths > at
            p, symbols = rows[alive, at - begin], held.tokens[alive, at + 1]
            coder.encode(symbols, model, p)
            bits -= float(np.log2(p[np.arange(len(symbols)), symbols].astype(np.float64)).sum())
            done += len(symbols)
        progress(done, held.count)
    head = struct.pack(HEADER, MAGIC, CODED, held.count, len(held.lengths), opened.window, opened.digest, digest)
    return Compressed(head + coder.get_compressed().astype("<u4").tobytes(), bits, held.count)


def decompress(opened, data, progress=lambda done, total: None):
    """The bytes that `compress` took. ValueError where they are not such a file, of another artifact, damaged, or where this machine
    computes other bits than the one that compressed."""
    size = struct.calcsize(HEADER)
    if data[:4] != MAGIC or len(data) < size:
        raise ValueError("not a file that trit.use compressed: it does not begin with TRZ1 and a whole header")
    _, kind, count, lanes, window, artifact, digest = struct.unpack_from(HEADER, data)
    if artifact != opened.digest:
        raise ValueError(
            f"compressed with the artifact {artifact.hex()}..., this one is {opened.digest.hex()}...; give that record's folder"
        )
    body = data[size:]
    found = stored_bytes(body, count) if kind == STORED else coded_bytes(opened, body, kind, count, lanes, window, progress)
    if hashlib.sha256(found).digest()[:8] != digest:
        raise ValueError(
            "the result is not the file that was compressed: the bytes are damaged, or this machine computes other bits than that one; "
            "use the same versions, processor and number of threads"
        )
    return found


def stored_bytes(body, count):
    """The bytes of a file whose tokens could not be spelled; no more than it says there are."""
    decoder = brotli.Decompressor()
    try:
        found = decoder.process(body, output_buffer_limit=count + 1)
    except brotli.error:
        raise ValueError("the stored bytes are damaged") from None
    return found


def coded_bytes(opened, body, kind, count, lanes, window, progress):
    """The bytes of a file of coded tokens."""
    good = (
        kind == CODED
        and window == opened.window
        and count <= MOST_TOKENS
        and 0 < lanes <= max(1, count // LANE_TOKENS)
        and len(body) % 4 == 0
    )
    if not good:
        raise ValueError(f"a header of kind {kind}, {count} tokens, {lanes} lanes and windows of {window} is none of this model's")
    stream, held = coder_library(), Lanes(count, lanes, window)
    coder, model, done = stream.queue.RangeDecoder(np.frombuffer(body, "<u4").astype(np.uint32)), stream.model.Categorical(perfect=False), 0
    for begin, end in held.blocks():
        for at in range(begin, end):
            alive = held.lengths > at
            p = held.rows(opened, begin)[alive, at - begin]
            try:
                held.tokens[alive, at + 1] = coder.decode(model, p)
            except (AssertionError, ValueError):
                raise ValueError("the coded tokens are damaged") from None
            done += int(alive.sum())
        progress(done, count)
    return spelling(opened, held.tokens[:, 1:][held.places()])
