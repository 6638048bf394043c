"""Token shards, the contest's file format: 256 little-endian int32 of header, then 16-bit little-endian token ids.

Inputs: token arrays or files. Outputs: files, or read-only uint16 arrays that were checked before anyone reads them.
"""

import glob
import os

import numpy as np

from trit.data.files import atomic_write

SHARD_MAGIC = 20240520
SHARD_VERSION = 1
HEADER_BYTES = 1024
CHECK_TOKENS = 4_194_304


def shard_header(count):
    """The header of a shard of `count` tokens, bytes."""
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = SHARD_MAGIC, SHARD_VERSION, count
    return header.tobytes()


def write_shard(path, tokens):
    """Write the 1-D integer ids `tokens` (0 to 65535) to `path`; ValueError names the first id that does not fit."""
    tokens = np.asarray(tokens)
    wrong = np.flatnonzero((tokens < 0) | (tokens > 65535)) if tokens.dtype != np.uint16 else []
    if len(wrong):
        raise ValueError(f"{path}: token {wrong[0]} is {tokens[wrong[0]]}; shards hold ids from 0 to 65535")
    atomic_write(path, [shard_header(len(tokens)), np.ascontiguousarray(tokens, "<u2").data])


def shard_length(path):
    """Number of tokens in the shard at `path`, after its header and size are checked; ValueError says what is wrong."""
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(HEADER_BYTES), np.uint8)
    if len(header) < HEADER_BYTES:
        raise ValueError(f"{path}: {len(header)} bytes is no shard; the header alone has {HEADER_BYTES}")
    magic, version, count = (int(number) for number in header.view("<i4")[:3])
    if (magic, version) != (SHARD_MAGIC, SHARD_VERSION):
        raise ValueError(f"{path}: magic {magic} version {version} is no shard; expected {SHARD_MAGIC} version {SHARD_VERSION}")
    size = os.path.getsize(path)
    if count <= 0 or size != HEADER_BYTES + 2 * count:
        raise ValueError(f"{path}: {size} bytes, but a header of {count} tokens asks for {HEADER_BYTES + 2 * count} and at least one token")
    return count


def read_shard(path, vocab_size):
    """Read-only uint16 memory map (tokens,) of a checked shard; ValueError on a bad file or an id not below `vocab_size`."""
    count = shard_length(path)
    with open(path, "rb") as file:  # plain reads: checking must not map the whole file into this process
        file.seek(HEADER_BYTES)
        for start in range(0, count, CHECK_TOKENS):
            part = np.fromfile(file, "<u2", min(CHECK_TOKENS, count - start))
            if part.max() >= vocab_size:
                at = int(np.argmax(part >= vocab_size))
                raise ValueError(f"{path}: token {start + at} is {part[at]}, outside model.vocab_size={vocab_size}")
    return np.memmap(path, "<u2", "r", HEADER_BYTES, (count,))


def shard_files(data_path, split):
    """Sorted paths of the shards of `split` ("train" or "val") in the folder `data_path`; ValueError if there are none."""
    found = sorted(glob.glob(os.path.join(glob.escape(data_path), f"*_{split}_*.bin")))
    if not found:
        raise ValueError(f"{data_path}: no *_{split}_*.bin shards; make them with python -m trit.data.prepare --out {data_path}")
    return found
