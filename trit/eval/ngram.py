"""Online n-gram memory: exact counts of every gram that was scored, in a trie with a bounded number of nodes.

A node is one gram. Its key is (node of the gram without its last token) * V + last token, so that no two grams share a node and
no hash collision is ever counted as evidence. All work is on whole arrays of positions.
"""

import numpy as np


class NgramMemory:
    """Grams of up to `order` + 1 tokens below `vocab_size`, in at most `capacity` nodes of 36 bytes. No context reaches back over
    the token `boundary` (-1: none does).

    For gram i: `count[i]` says how often it was seen, `total[i]` and `distinct[i]` how many tokens, and how many different ones,
    followed it, `recent[i]` which one did last, `when[i]` at which position. `ends[k]` is the last gram of k + 1 tokens, or -1.
    """

    def __init__(self, order, vocab_size, capacity, boundary):
        if capacity < 4 * vocab_size:
            raise ValueError(f"eval.ngram_nodes={capacity} is too small; at least 4 * vocab_size = {4 * vocab_size} nodes are needed")
        self.order, self.vocab_size, self.capacity, self.boundary = order, vocab_size, capacity, boundary
        self.key = np.zeros(capacity, np.int64)
        self.count, self.total, self.distinct, self.recent, self.when = (np.zeros(capacity, np.int32) for _ in range(5))
        self.slots = np.full(1 << (capacity - 1).bit_length() + 1, -1, np.int32)
        self.size, self.ends, self.clock = vocab_size, np.full(order, -1), 0

    def home(self, keys):
        """First slot to look for each key: middle bits of an odd multiple."""
        return keys * -7046029254386353131 >> 24 & len(self.slots) - 1

    def find(self, keys):
        """Nodes (n,) of int64 `keys` (n,), -1 where there is none or the key is negative. Four neighbouring slots are read at once."""
        found, todo = np.full(len(keys), -1), np.flatnonzero(keys >= 0)
        at = self.home(keys[todo])
        while len(todo):
            nodes = self.slots[at[:, None] + np.arange(4) & len(self.slots) - 1]
            taken = nodes >= 0
            same = (self.key[nodes] == keys[todo, None]) & taken
            hit, go_on = same.any(1), taken.all(1)
            found[todo[hit]] = nodes[same]
            go_on &= ~hit
            todo, at = todo[go_on], at[go_on] + 4
        return found

    def insert(self, keys, nodes):
        """Give `nodes` the different new `keys` (n,) and a slot each."""
        self.key[nodes] = keys
        todo, at = np.arange(len(keys)), self.home(keys)
        while len(todo):
            free = todo[self.slots[at[todo]] < 0]
            self.slots[at[free]] = nodes[free]  # where several want one slot, the last gets it and the others look on
            todo = todo[self.slots[at[todo]] != nodes[todo]]
            at[todo] = at[todo] + 1 & len(self.slots) - 1

    def walk(self, tokens):
        """(contexts, grams), nodes (order, m), of `tokens` (m,) that follow what was absorbed: of the 1 .. order tokens before each
        of them, and of these with it. -1 for what was never seen."""
        contexts, grams = np.full((2, self.order, len(tokens)), -1)
        contexts[:, 0], contexts[0, 1:] = self.ends, tokens[:-1]
        for length in range(self.order):
            if length:
                contexts[length, 1:] = self.inside(grams[length - 1], tokens)[:-1]
            grams[length] = self.find(np.where(contexts[length] < 0, -1, contexts[length] * self.vocab_size + tokens))
        return contexts, grams

    def inside(self, grams, tokens):
        """`grams` that end with `tokens`, as contexts: -1 where that is the boundary."""
        return grams if self.boundary < 0 else np.where(tokens == self.boundary, -1, grams)

    def absorb(self, tokens, walked=None):
        """Count `tokens` (m,), which follow what was absorbed before: grams across the seam too, each once. `walked` may be what
        `walk` found for them since."""
        if len(tokens) and self.size + self.order * len(tokens) > self.capacity:
            self.prune()
            walked = None
            if self.size + self.order * len(tokens) > self.capacity:  # a piece larger than half of the memory
                self.absorb(tokens[: len(tokens) // 2])
                return self.absorb(tokens[len(tokens) // 2 :])
        if not len(tokens):
            return
        contexts, grams = walked or self.walk(tokens)
        for length in range(self.order):
            # What was not found is new, for it to be found its context would have had to be.
            missing = np.flatnonzero((grams[length] < 0) & (contexts[length] >= 0))
            if len(missing):
                keys, back = np.unique(contexts[length, missing] * self.vocab_size + tokens[missing], return_inverse=True)
                self.insert(keys, np.arange(self.size, self.size + len(keys)))
                grams[length, missing] = self.size + back
                self.size += len(keys)
                np.add.at(self.distinct, keys // self.vocab_size, 1)
            following = self.inside(grams[length], tokens)
            if length + 1 < self.order:
                self.ends[length + 1], contexts[length + 1, 1:] = following[-1], following[:-1]
        self.ends[0], real = tokens[-1], contexts >= 0
        np.add.at(self.count, tokens, 1)
        np.add.at(self.count, grams[real], 1)
        np.add.at(self.total, contexts[real], 1)
        self.recent[contexts[real]] = np.broadcast_to(tokens, real.shape)[real]
        self.when[contexts[real]] = np.broadcast_to(self.clock + np.arange(len(tokens)), real.shape)[real]
        self.clock += len(tokens)

    def prune(self):
        """Forget the rarest grams, so that at most half of the capacity stays taken. No gram is rarer than its extensions, so what
        stays keeps its parent; what follows a gram is counted anew, which keeps shares of it normalised."""
        size, first = self.size, self.vocab_size
        at_least = np.cumsum(np.bincount(self.count[first:size])[::-1])[::-1]
        rare = np.flatnonzero(first + np.append(at_least, 0) <= self.capacity // 2)[0]
        keep = np.append(np.arange(first), first + np.flatnonzero(self.count[first:size] >= rare))
        renamed = np.full(size + 1, -1)  # the last entry: what -1 is called
        renamed[keep] = np.arange(len(keep))
        keys = renamed[self.key[keep[first:]] // first] * first + self.key[keep[first:]] % first
        for array in (self.count, self.recent, self.when):
            array[: len(keep)], array[len(keep) : size] = array[keep], 0
        self.total[:size], self.distinct[:size], self.slots[:] = 0, 0, -1
        self.size, self.ends = len(keep), renamed[self.ends]
        self.insert(keys, np.arange(first, len(keep)))
        np.add.at(self.total, keys // first, self.count[first : len(keep)])
        np.add.at(self.distinct, keys // first, 1)
