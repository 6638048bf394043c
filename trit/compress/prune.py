"""Rows of the engram's tables that the artifact keeps: the larger a row and the oftener text reads it, the sooner (skc.md EN13).

Which rows those are is decided once, after training, on held-out training text: no validation token is ever counted. Kept rows stay
as training rounded them; the others are zeros, which a lookup adds nothing of.
"""

import math

import numpy as np

from trit.compress.layouts import ensure_packable
from trit.layers.engram import engram_rows

FEWEST_ROWS = 128  # rows of a table that stay whatever its share


def kept_counts(cfg):
    """Rows that the artifact keeps of each table, a list in the order of the tables: those of one n-gram order follow each other."""
    shares, rows = [float(part) for part in cfg.compress.engram_keep.split(",")], cfg.engram.engram_buckets
    tables = cfg.engram.engram_heads * cfg.engram.engram_orders
    wanted = [round(shares[table // cfg.engram.engram_heads % len(shares)] * rows) for table in range(tables)]
    return [max(count, min(FEWEST_ROWS, rows)) for count in wanted]


def map_bits(cfg):
    """Bits that the map of kept rows should take: its entropy. Reports only."""
    rows, total = cfg.engram.engram_buckets, 0.0
    for count in kept_counts(cfg):
        total += sum(part * math.log2(rows / part) for part in (count, rows - count) if part)
    return total


def row_hits(ops, cfg, tokens):
    """How often windows of the tokens (n,) read each row of all tables: float64 (rows,). No two windows share a token."""
    length, table_rows = cfg.train.train_seq_len, cfg.engram.engram_buckets * cfg.engram.engram_heads * cfg.engram.engram_orders
    hits = np.zeros(table_rows)
    for start in range(0, len(tokens) - length + 1, length):
        rows, masks = engram_rows(ops, cfg, ops.from_numpy(tokens[None, start : start + length]))
        rows = ops.to_numpy(rows)
        hits += np.bincount(rows[np.broadcast_to(ops.to_numpy(masks), rows.shape) > 0], minlength=table_rows)
    return hits


def kept_rows(ops, cfg, table, tokens):
    """Mask (rows,) of the rows of trained tables (rows, R) that stay: `kept_counts` of each table, those of the highest score
    a norm + (1 - a) hits, both as shares of the table's largest, with a = compress.engram_keep_norm_weight. `tokens` (n,) is training
    text that was never trained on: what is read there is what will be read again. Of equal scores the first row stays.
    """
    counts, weight, kept = kept_counts(cfg), cfg.compress.engram_keep_norm_weight, np.zeros(len(table), bool)
    norms, hits = np.sqrt((table.astype(np.float64) ** 2).sum(1)), row_hits(ops, cfg, tokens)
    rows = len(table) // len(counts)
    for number, count in enumerate(counts):
        part = slice(number * rows, (number + 1) * rows)
        norm, hit = (x[part] / max(x[part].max(), 1e-30) for x in (norms, hits))
        best = np.argsort(-(weight * norm + (1.0 - weight) * hit), kind="stable")[:count]
        kept[number * rows + best] = True
    return kept


def kept_map(cfg, filled):
    """Mask (rows,) of the rows that the artifact stores, of those that hold anything (rows,): these, and as many of the first others
    as make up `kept_counts`. It follows from the codes alone, so equal tensors give equal bytes. PackError where more rows hold anything.
    """
    counts = np.array(kept_counts(cfg))[:, None]
    filled = filled.reshape(len(counts), -1)
    held = filled.sum(1, keepdims=True)
    for table, (found, count) in enumerate(zip(held[:, 0], counts[:, 0])):
        ensure_packable(found <= count, f"table {table} of the engram holds {found} rows where compress.engram_keep leaves {count}")
    return (filled | (~filled & ((~filled).cumsum(1) <= counts - held))).reshape(-1)
