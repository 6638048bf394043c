"""Finds validation documents among the training shards. Tools only. Input: shard paths; output: counts and examples.

A document is BOS and what follows up to the next BOS; it may straddle shards. Both splits are read in pieces and documents are
compared by 64-bit hashes; what the hashes say is then confirmed token by token, so that no accusation rests on a collision.
"""

from typing import NamedTuple

import numpy as np

from trit.console import counted
from trit.data.shards import HEADER_BYTES, shard_length
from trit.data.token_ids import BOS_ID

PIECE_TOKENS = 1 << 20
SHORT_TOKENS = 32
EXAMPLES = 5


class SharedDocument(NamedTuple):
    """A validation document that is a training document too: both numbers count from 0, `tokens` leaves out BOS."""

    validation: int
    training: int
    tokens: int
    first_ids: tuple


class SharedDocuments(NamedTuple):
    """How many documents each split has, how many of each are in the other, `short` of those with fewer than 32 tokens; examples.

    `shared` and `short` count validation documents, `copies` training documents. Empty documents are not compared.
    """

    validation: int
    training: int
    shared: int
    short: int
    copies: int
    examples: tuple

    def summary(self):
        """(whether no document is shared; a sentence of evidence)."""
        named = "".join(
            f"; validation document {e.validation} is training document {e.training} ({e.tokens} tokens)" for e in self.examples
        )
        return self.shared == 0, (
            f"{self.shared} of {self.validation} validation documents are among {self.training} training documents "
            f"({self.copies} copies there; {self.short} of the shared have fewer than {SHORT_TOKENS} tokens){named}"
        )


class TokenStream:
    """The tokens of consecutive shards as one stream (`length` tokens), read from disk where they are asked for."""

    def __init__(self, paths):
        self.paths = [str(path) for path in paths]
        lengths = [shard_length(path) for path in self.paths]
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.length = int(self.ends[-1]) if lengths else 0

    def read(self, start, stop):
        """Tokens `start` to `stop` (as a slice), uint16; plain reads, so that memory does not grow with the shards."""
        parts = []
        for shard in range(int(np.searchsorted(self.ends, start, "right")), len(self.paths)):
            first = int(self.ends[shard - 1]) if shard else 0
            begin, count = max(start - first, 0), min(stop, int(self.ends[shard])) - max(start, first)
            if count <= 0:
                break
            parts.append(np.fromfile(self.paths[shard], "<u2", count, offset=HEADER_BYTES + 2 * begin))
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)


def powers_of(base, count):
    """uint64 (count,): 1, base, base^2, ... modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)


class DocumentHasher:
    """Hashes documents as the sum of value[token_i] * base^i modulo 2^64, which does not depend on where pieces are cut."""

    def __init__(self, piece_tokens):
        generator = np.random.default_rng(20240520)
        self.values = generator.integers(0, 2**64, 65536, np.uint64)
        self.base = int(generator.integers(0, 2**62)) * 4 + 3  # odd: it has an inverse
        self.piece = piece_tokens
        self.powers, self.inverses = powers_of(self.base, piece_tokens), powers_of(pow(self.base, -1, 2**64), piece_tokens)

    def documents(self, stream):
        """Yield (starts int64, lengths int64, hashes uint64) of the documents that end in each piece; the BOS is in none of them.

        Tokens before the first BOS, if any, are a document too.
        """
        start, length, total = 0, 0, 0  # the document that the last piece left open
        for begin in range(0, stream.length, self.piece):
            tokens = stream.read(begin, min(begin + self.piece, stream.length))
            marks = np.flatnonzero(tokens == BOS_ID)
            terms = self.values[tokens] * self.powers[: len(tokens)]
            terms[marks] = 0
            head = int(marks[0]) if len(marks) else len(tokens)
            total = (total + int(terms[:head].sum()) * pow(self.base, length, 2**64)) % 2**64
            length += head
            if not len(marks):
                continue
            counts = np.diff(np.append(marks, len(tokens))) - 1
            # Powers count from the piece's start, hashes from the document's. A mark at the very end starts an empty sum.
            sums = np.add.reduceat(terms, marks) * self.inverses[np.minimum(marks + 1, self.piece - 1)]
            found = np.append(start, marks[:-1] + begin + 1), np.append(length, counts[:-1]), np.append(np.uint64(total), sums[:-1])
            skip = int(found[1][0] == 0 and begin + head == 0)  # nothing before the first BOS
            yield tuple(column[skip:] for column in found)
            start, length, total = begin + int(marks[-1]) + 1, int(counts[-1]), int(sums[-1])
        if stream.length:
            yield np.array([start]), np.array([length]), np.array([total], np.uint64)


class Group(NamedTuple):
    """Equal validation documents: where the first lies in the stream, its length, and the numbers of all."""

    start: int
    length: int
    numbers: list


def same_tokens(first, start, second, at, length):
    """Whether `length` tokens of one stream from `start` equal those of another from `at`, read in pieces."""
    for done in range(0, length, PIECE_TOKENS):
        stop = min(done + PIECE_TOKENS, length)
        if not np.array_equal(first.read(start + done, start + stop), second.read(at + done, at + stop)):
            return False
    return True


def group_documents(hasher, stream):
    """({hash: [Group, ...]} of the documents of a stream that are not empty, number of all documents)."""
    groups, number = {}, 0
    for columns in hasher.documents(stream):
        for start, length, key in zip(*(column.tolist() for column in columns), strict=True):
            known = groups.setdefault(key, []) if length else []
            equal = [group for group in known if group.length == length and same_tokens(stream, group.start, stream, start, length)]
            if equal:
                equal[0].numbers.append(number)
            else:
                known.append(Group(start, length, [number]))
            number += 1
    return groups, number


def shared_documents(train_paths, val_paths, piece_tokens=PIECE_TOKENS):
    """`SharedDocuments` of the shards of both splits, each a list of paths in order. Memory: some arrays of `piece_tokens` numbers
    of 8 bytes, and a few hundred bytes a validation document. ValueError on a bad shard."""
    train, val, hasher = TokenStream(train_paths), TokenStream(val_paths), DocumentHasher(piece_tokens)
    groups, validation = group_documents(hasher, val)
    keys = np.array(sorted(groups), np.uint64)
    training, copies, found = 0, 0, {}
    pieces = hasher.documents(train)
    for starts, lengths, hashes in counted(pieces, "comparing documents", -(-train.length // piece_tokens), " pieces"):
        known = keys[np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)] == hashes if len(keys) else np.zeros(len(hashes), bool)
        for i in np.flatnonzero(known & (lengths > 0)).tolist():
            start, length = int(starts[i]), int(lengths[i])
            for group in groups[int(hashes[i])]:
                if group.length == length and same_tokens(val, group.start, train, start, length):
                    found.setdefault(group.numbers[0], (group, training + i))
                    copies += 1
        training += len(starts)
    hits = [found[number] for number in sorted(found)]
    examples = [
        SharedDocument(group.numbers[0], at, group.length, tuple(val.read(group.start, group.start + min(group.length, 8)).tolist()))
        for group, at in sorted(hits, key=lambda hit: -hit[0].length)[:EXAMPLES]
    ]
    shared, short = (sum(len(g.numbers) for g, _ in hits if g.length < limit) for limit in (np.inf, SHORT_TOKENS))
    return SharedDocuments(validation, training, shared, short, copies, tuple(examples))
