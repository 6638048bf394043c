"""EvalEngram: a hashed memory of what followed each context of the text that was scored, in tables of fixed size.

Where the model is unsure, the tokens of the matching rows are tilted: p'(v) = p(v) exp(d(v)) / Z, with Z = 1 + the sum over these few
tokens of p(v) (exp(d(v)) - 1), which is exact over the whole vocabulary. d(v) sums a weight for each order, learned online from
frozen scores. A row carries a tag of its context, so that another context in the same bucket is not taken for evidence.
"""

import numpy as np

from trit.eval.mixture import magnitude
from trit.layers.engram import mix_bits


class EvalEngram:
    """Tables for contexts of 1 .. `orders` tokens, each of `buckets` rows of `slots` (token, count) pairs: 8 bytes a pair, 4 a row.

    Positions whose entropy under the model is at most `entropy` nats are left alone. `rate`: gradient step (Adagrad). No context
    reaches back over the token `boundary` (-1: none does).
    """

    def __init__(self, orders, buckets, slots, entropy, rate, boundary):
        self.orders, self.buckets, self.slots, self.entropy, self.rate = orders, buckets, slots, entropy, rate
        self.boundary = boundary
        self.tags = np.zeros(orders * buckets, np.int32)
        self.tokens, self.counts = np.full((orders * buckets, slots), -1, np.int32), np.zeros((orders * buckets, slots), np.int32)
        self.weights, self.squares = np.zeros(orders * 36), np.full(orders * 36, 0.1)
        self.tail = np.full(orders, -1, np.int64)

    def start(self, token):
        """The first token of the text, which nobody scores."""
        self.tail[-1] = token

    def rows(self, before):
        """(rows, tags), each (orders, m), of the contexts that end at the last absorbed token and at each of `before` (m - 1,)."""
        history = np.concatenate([self.tail, before])
        place = np.arange(len(history))
        last = np.maximum.accumulate(np.where(history == self.boundary, place, -len(history)))
        count, key, rows, tags = len(before) + 1, 0, [], []
        for order in range(self.orders):
            past = history[len(history) - count - order : len(history) - order]
            key = mix_bits(key * 65599 + np.where((place - last)[-count:] < order, -1, past) + 2)
            rows.append((key >> 20 & 0xFFFFFFFFFFF) % self.buckets + order * self.buckets)
            tags.append((key & 0x7FFFFFF) + 1)
        return np.stack(rows), np.stack(tags)

    def probabilities(self, before, queries, rows):
        """Tilted probabilities (m, Q) of token ids `queries` (m, Q), where `rows` (m, V) are the model's log-probabilities, and a tape.
        The m positions are the last of those after what was absorbed and each of `before`."""
        buckets, tags = (x[:, -len(queries) :] for x in self.rows(before))
        match = (self.tags[buckets] == tags)[..., None]
        tokens = np.where(match, self.tokens[buckets], -1).transpose(1, 0, 2)  # (m, orders, slots)
        counts = np.where(match, self.counts[buckets], 0).transpose(1, 0, 2)
        others = counts.sum(-1, keepdims=True) - counts
        kinds = np.minimum(magnitude(counts), 5) * 6 + np.minimum(magnitude(others), 5) + 36 * np.arange(self.orders)[:, None]
        tokens, kinds = tokens.reshape(len(tokens), -1), kinds.reshape(len(tokens), -1)
        unsure = -np.einsum("mv,mv->m", np.exp(rows), rows)[:, None] > self.entropy
        given = np.where((tokens >= 0) & unsure, self.weights[kinds], 0.0)
        same = (tokens[:, :, None] == tokens[:, None]) & (tokens >= 0)[:, :, None]
        first = (same.argmax(-1) == np.arange(tokens.shape[1])) & (tokens >= 0)  # a token may follow several contexts: once in Z
        tilts = (same * given[:, None]).sum(-1)
        p = np.exp(np.take_along_axis(rows, np.maximum(tokens, 0), 1).astype(np.float64))
        total = 1.0 + (p * np.expm1(tilts) * first).sum(-1, keepdims=True)
        asked = ((queries[:, :, None] == tokens[:, None]) * (first * tilts)[:, None]).sum(-1)
        mixed = np.exp(np.take_along_axis(rows, queries, 1) + asked) / total
        surplus = np.where((tokens >= 0) & unsure, p * np.exp(tilts) / total - (tokens == queries[:, :1]), 0.0)
        return mixed, (buckets, tags, kinds, surplus)

    def learn(self, tape, scored):
        """One gradient step on the scores that `tape` belongs to, then remember `scored` (m,), the tokens that came."""
        buckets, tags, kinds, surplus = tape
        gradient = np.bincount(kinds.ravel(), surplus.ravel(), len(self.weights))
        self.squares += gradient**2
        self.weights -= self.rate * gradient / np.sqrt(self.squares)
        for rows, marks in zip(buckets, tags):
            self.remember(rows, marks, scored)
        self.tail = np.concatenate([self.tail, scored])[-self.orders :]

    def remember(self, rows, marks, tokens):
        """Count `tokens` (m,) in `rows` (m,), in their order. A row of another context starts anew; the rarest pair gives way."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        turn = np.arange(len(rows)) - np.searchsorted(ordered, ordered)  # how often the row occurs before
        for now in range(turn.max() + 1):
            at = order[turn == now]
            row, token = rows[at], tokens[at]
            new = row[self.tags[row] != marks[at]]
            self.tags[row], self.tokens[new], self.counts[new] = marks[at], -1, 0
            hits = self.tokens[row] == token[:, None]
            known = hits.any(-1)
            slot = np.where(known, hits.argmax(-1), self.counts[row].argmin(-1))
            self.counts[row, slot] = np.where(known, self.counts[row, slot] + 1, 1)
            self.tokens[row, slot] = token
