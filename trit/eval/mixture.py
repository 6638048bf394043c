"""Probabilities of a model mixed with those of the online n-gram memory: normalised by construction, weights learned online.

From the shortest context to the longest, p <- a * (share of the token among what followed the context) + b * [it followed last]
+ (1 - a - b) * p, starting from the model. Every term sums to one over the vocabulary, and (a, b) depend on the context alone: on
how often, how variedly and how long ago it was seen. One gradient step on frozen scores moves them (docs/LOG.md has the choice).
"""

import numpy as np

from trit.eval.ngram import NgramMemory

CONTEXT_KINDS = 144


def magnitude(x):
    """Bits of non-negative integers: 0 for 0, else floor(log2 x) + 1."""
    return np.frexp(x)[1]


class NgramMixture:
    """An `NgramMemory` with mixing weights for each order and kind of context, changed by gradient steps of size `rate` (Adagrad)."""

    def __init__(self, order, vocab_size, capacity, boundary, rate):
        self.memory, self.rate = NgramMemory(order, vocab_size, capacity, boundary), rate
        self.logits, self.squares = np.full((order * CONTEXT_KINDS, 2), -2.0), np.full((order * CONTEXT_KINDS, 2), 0.01)

    def blend(self, contexts, grams, queries, p):
        """Mixed probabilities (m,) of `queries` (m,) to which the model gives `p` (m,), after `contexts` (order, m); `grams` (order, m)
        are these with the queries. Also what `learn` needs: kinds (order, m), weights and parts (order, m, 2), p at every order."""
        memory = self.memory
        total = np.where(contexts < 0, 0, memory.total[contexts])
        age = np.clip(magnitude(memory.clock - memory.when[contexts]) // 4 - 1, 0, 3)
        kinds = np.minimum(magnitude(total), 8) * 16 + np.minimum(memory.distinct[contexts], 3) * 4 + age
        kinds += CONTEXT_KINDS * np.arange(memory.order)[:, None]
        odds = np.exp(self.logits[kinds]) * (total > 0)[..., None]
        weights = odds / (1.0 + odds.sum(-1, keepdims=True))
        shares = np.where(grams < 0, 0, memory.count[grams]) / np.maximum(total, 1)
        parts = np.stack([shares, memory.recent[contexts] == queries], -1)
        added, kept, steps = (weights * parts).sum(-1), 1.0 - weights.sum(-1), [p]
        for order in range(memory.order):
            steps.append(added[order] + kept[order] * steps[-1])
        return steps[-1], (kinds, weights, parts, np.stack(steps))

    def score(self, tokens, p):
        """Mixed probabilities (m,) of `tokens` (m,) that come next, to which the model gives `p` (m,), and a tape for `learn`."""
        walked = self.memory.walk(tokens)
        mixed, tape = self.blend(*walked, tokens, p)
        return mixed, (walked, *tape)

    def row(self, before, p):
        """Mixed probabilities (V,) of every token at the position after `before` (m,), which follow what was absorbed."""
        memory, every = self.memory, np.arange(self.memory.vocab_size)
        contexts = np.repeat(memory.walk(np.append(before, 0))[0][:, -1:], len(every), 1)
        grams = memory.find(np.where(contexts < 0, -1, contexts * memory.vocab_size + every).ravel())
        return self.blend(contexts, grams.reshape(contexts.shape), every, p)[0]

    def learn(self, tape, tokens):
        """Move the weights along the gradient of the scores that `tape` belongs to, then count `tokens` (m,), which were scored."""
        walked, kinds, weights, parts, steps = tape
        kept = 1.0 - weights.sum(-1)
        slopes = np.concatenate([kept[1:], -1.0 / steps[-1:]])[::-1].cumprod(0)[::-1]  # of the loss, by p after each order
        moves = slopes[..., None] * weights * (parts - steps[1:, :, None])
        for which in range(2):
            gradient = np.bincount(kinds.ravel(), moves[..., which].ravel(), len(self.logits))
            self.squares[:, which] += gradient**2
            self.logits[:, which] -= self.rate * gradient / np.sqrt(self.squares[:, which])
        self.memory.absorb(tokens, walked)
