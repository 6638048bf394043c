"""What a table of bigrams makes of a dataset: python -m benchmarks.bigram data/english_sp1024

Counts pairs of tokens in all training shards, adds one to every count, and prints nats a token and bits a byte on the validation text: the
mark that a language model has to pass before anything else is said of it.
"""

import argparse
import math

import numpy as np

from trit.data.byte_count import byte_table, token_bytes
from trit.data.manifest import resolve_tokenizer
from trit.data.shards import read_shard, shard_files

MOST_TOKENS = 65536  # a shard's ids have 16 bits
PART = 1 << 22


def bigram_loss(train, held, size):
    """Nats a token of `held` (tokens,) by a table of bigrams counted on `train`, a list of such arrays, one added to every count."""
    counts = np.ones(size * size, np.int64)
    for tokens in train:
        for start in range(0, len(tokens) - 1, PART):
            part = tokens[start : start + PART + 1].astype(np.int64)
            counts += np.bincount(part[:-1] * size + part[1:], minlength=size * size)
    table = counts.reshape(size, size)
    held = held.astype(np.int64)
    return -np.log((table / table.sum(1, keepdims=True))[held[:-1], held[1:]]).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of shards")
    options = parser.parse_args()
    train, held = ([read_shard(path, MOST_TOKENS) for path in shard_files(options.data, split)] for split in ("train", "val"))
    held = np.concatenate(held)
    size = 1 + max(int(tokens.max()) for tokens in [*train, held])
    loss = bigram_loss(train, held, size)
    table = byte_table(resolve_tokenizer(options.data), size)
    each = token_bytes(table, held[:-1], held[1:]).mean()
    print(f"{sum(map(len, train)):,} tokens of {size} kinds: {loss:.4f} nats a token, {loss / math.log(2) / each:.4f} bits a byte")


if __name__ == "__main__":
    main()
