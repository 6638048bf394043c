"""How text uses the hashed tables of the engram: which rows it reads, how often n-grams meet in one. In: tokens. Out: `Table` rows."""

from typing import NamedTuple

import numpy as np

from trit.data.shards import read_shard, shard_files
from trit.layers.engram import engram_rows

MOST_TOKENS = 1 << 21  # of a split, from its beginning
WINDOWS = 64  # hashed at once


class Table(NamedTuple):
    """One table of the engram: `order` tokens an n-gram, `rows` of the table; for the training and the validation text the share of rows
    read; `grams` distinct n-grams of the training text and the share of them that meets another in its row; `known` is the share of the
    validation text's reads whose n-gram stands in the training text, `met` of reads whose row does."""

    order: int
    head: int
    rows: int
    train: float
    val: float
    grams: int
    crowded: float
    known: float
    met: float


def split_windows(cfg, data, split):
    """(windows (W, L) uint16 of a split from its beginning, its number of tokens, whether that is all of it)."""
    parts = [read_shard(path, cfg.model.vocab_size) for path in shard_files(str(data), split)]
    total, left, taken = sum(map(len, parts)), MOST_TOKENS, []
    for part in parts:
        taken.append(part[:left])
        left -= len(taken[-1])
    tokens, length = np.concatenate(taken), cfg.train.train_seq_len
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length), count * length, left > 0 or total == MOST_TOKENS


def table_rows(ops, cfg, windows):
    """(rows (W, L, N) of each table from 0, whether they are read (W, L, N))."""
    rows, masks = [], []
    for start in range(0, len(windows), WINDOWS):
        found, mask = (ops.to_numpy(x) for x in engram_rows(ops, cfg, ops.from_numpy(windows[start : start + WINDOWS].astype(np.int32))))
        rows.append((found % cfg.engram.engram_buckets).astype(np.int32))
        masks.append(np.broadcast_to(mask > 0, found.shape))
    return np.concatenate(rows), np.concatenate(masks)


def gram_numbers(windows, tokens):
    """int64 (W, L) number of the n-gram of so many tokens that ends at each position, equal where the n-grams are equal; what stands before
    a window is none."""
    ids = windows.astype(np.int64) + 1
    found, past = ids, ids
    for _ in range(tokens - 1):
        past = np.pad(past, ((0, 0), (1, 0)))[:, :-1]
        found = np.unique(found * (ids.max() + 1) + past, return_inverse=True)[1].reshape(ids.shape)
    return found


def engram_tables(ops, cfg, data):
    """([Table], words on the text that was read) of a folder of shards. ValueError where the shards are not there or of another model."""
    (train, seen, whole), (val, read, _) = (split_windows(cfg, data, split) for split in ("train", "val"))
    if not len(train) or not len(val):
        raise ValueError(f"{data}: a split is shorter than one window")
    windows = np.concatenate([train, val])
    rows, masks = table_rows(ops, cfg, windows)
    found, is_train = [], np.arange(len(windows)) < len(train)
    for order in range(cfg.engram.engram_orders):
        grams = gram_numbers(windows, order + 2)
        for head in range(cfg.engram.engram_heads):
            table = order * cfg.engram.engram_heads + head
            mask, row, buckets = masks[:, :, table], rows[:, :, table], cfg.engram.engram_buckets
            ours, theirs = mask & is_train[:, None], mask & ~is_train[:, None]
            touched, read_rows = (np.bincount(row[part], minlength=buckets) > 0 for part in (ours, theirs))
            distinct, first = np.unique(grams[ours], return_index=True)
            homes = row[ours][first]
            crowd = np.bincount(homes, minlength=buckets)
            seen_grams = np.zeros(grams.max() + 1, bool)
            seen_grams[distinct] = True
            found.append(
                Table(
                    order + 2,
                    head + 1,
                    buckets,
                    float(touched.mean()),
                    float(read_rows.mean()),
                    len(distinct),
                    float((crowd[homes] > 1).mean()),
                    float(seen_grams[grams[theirs]].mean()),
                    float(touched[row[theirs]].mean()),
                )
            )
    text = f"{'all' if whole else 'the first'} {seen:,} tokens of the training text in whole windows, {read:,} of the validation text"
    return found, text
