"""Training batches and evaluation text out of shards. Input: a data folder and `cfg`; output: int32 token arrays.

A window is train_seq_len + 1 tokens inside one shard. Each epoch visits every window once, in an order and at offsets drawn
from (seed, epoch), so a position, the number of batches consumed, is all the state there is. The last
calibration_tokens of the training split are never trained on.
"""

import collections
import concurrent.futures

import numpy as np

from trit.data.shards import read_shard, shard_files

PREFETCH_BATCHES = 4


class TokenLoader:
    """Endless batches of one rank from `shards` (list of 1-D token arrays), prepared ahead by a thread.

    All `world` ranks together take the windows in order, `rows` of them a step, and each rank its contiguous part, so
    the global batch does not depend on `world`. `position` is the number of batches the caller has taken: a loader made
    with it goes on with the same batches. Close it when done.
    """

    def __init__(self, shards, seq_len, rows, seed, rank=0, world=1, position=0):
        if rows <= 0 or rows % world or not 0 <= rank < world:
            raise ValueError(f"{rows} windows a step do not divide among {world} ranks, or rank {rank} is not one of them")
        self.shards = [shard for shard in shards if len(shard) > seq_len]
        if not self.shards:
            longest = max((len(shard) for shard in shards), default=0)
            raise ValueError(f"no training shard holds a window of train_seq_len+1={seq_len + 1} tokens; the longest has {longest}")
        # One window fewer than fits, where there are several, leaves room for another offset in each epoch.
        counts = [max(1, (len(shard) - 1) // seq_len - 1) for shard in self.shards]
        self.ends = np.cumsum(counts)
        self.slack = [len(shard) - count * seq_len for shard, count in zip(self.shards, counts)]
        self.seq_len, self.rows, self.seed = seq_len, rows, seed
        self.first, self.share = rank * (rows // world), rows // world
        self.position, self.epoch, self.order, self.offsets = position, -1, None, None  # the last three: the thread's own
        self.thread, self.ahead = concurrent.futures.ThreadPoolExecutor(1), collections.deque()

    def window(self, number):
        """Tokens (seq_len + 1,) of window `number` of the endless stream of all epochs."""
        epoch, number = divmod(number, int(self.ends[-1]))
        if epoch != self.epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self.offsets = [int(generator.integers(slack)) for slack in self.slack]
            self.order, self.epoch = generator.permutation(self.ends[-1]), epoch
        number = self.order[number]
        shard = int(np.searchsorted(self.ends, number, "right"))
        start = int(number - (self.ends[shard - 1] if shard else 0)) * self.seq_len + self.offsets[shard]
        return self.shards[shard][start : start + self.seq_len + 1]

    def batch(self, position):
        """(inputs, targets), int32 (rows of this rank, seq_len), of step `position`."""
        start = position * self.rows + self.first
        block = np.stack([self.window(start + row) for row in range(self.share)]).astype(np.int32)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])

    def next_batch(self):
        """The next (inputs, targets), int32 (rows, seq_len). Raises what the thread met, and RuntimeError after `close`."""
        while len(self.ahead) < PREFETCH_BATCHES:
            self.ahead.append(self.thread.submit(self.batch, self.position + len(self.ahead)))
        made = self.ahead[0].result()
        self.ahead.popleft()
        self.position += 1
        return made

    def close(self):
        """Stop the thread and wait for it; batches made ahead are dropped."""
        self.thread.shutdown(cancel_futures=True)
        self.ahead.clear()


class WindowLoader(TokenLoader):
    """A `TokenLoader` whose steps take as many windows as they are asked for. `position` is the number of windows that all ranks have
    taken, `taken[n]` what it was after n batches of this loader."""

    def __init__(self, shards, seq_len, rows, seed, rank=0, world=1, position=0):
        super().__init__(shards, seq_len, rows, seed, rank, world, position)
        self.rank, self.world, self.asked, self.taken = rank, world, 0, [position]

    def part(self, position, rows):
        """(inputs, targets), int32 (rows / world, seq_len): this rank's part of the `rows` windows from `position` on."""
        share = rows // self.world
        start = position + self.rank * share
        block = np.stack([self.window(start + row) for row in range(share)]).astype(np.int32)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:])

    def next_windows(self, rows):
        """The next (inputs, targets) when all ranks together take `rows` windows. What was made ahead for another number is dropped."""
        if rows != self.asked:
            for future in self.ahead:
                future.cancel()
            self.ahead.clear()
            self.asked = rows
        while len(self.ahead) < PREFETCH_BATCHES:
            self.ahead.append(self.thread.submit(self.part, self.position + len(self.ahead) * rows, rows))
        made = self.ahead[0].result()
        self.ahead.popleft()
        self.position += rows
        self.taken.append(self.position)
        return made


class StreamLoader(TokenLoader):
    """A `TokenLoader` in which each row of a step goes on with the text of the same row a step before, for train.carry.

    A row reads `run` windows one after another (0: as many as share out an epoch), then another run, in an order drawn for each epoch:
    places far apart stay mixed. Rows do not change runs at the same step. The windows that make no run, fewer than one, come in another
    epoch. `position` says it all, as ever. `joined` (float32, of this rank's rows) says of the batch that was taken last which rows go on
    with their text of the one before: 1, else 0.
    """

    def __init__(self, shards, seq_len, rows, seed, rank=0, world=1, position=0, run=0):
        super().__init__(shards, seq_len, rows, seed, rank, world, position)
        self.windows, self.plans, self.joined = int(self.ends[-1]), {}, None
        if self.windows < rows:
            raise ValueError(
                f"train.carry reads {rows} texts at once, but the training split holds {self.windows} windows of {seq_len} tokens; "
                f"lower train.train_batch_tokens to at most {self.windows * seq_len}, or train.train_seq_len"
            )
        self.run = min(run or self.windows, self.windows // rows)

    def place(self, epoch, run, step):
        """(number of the window that is number `step` of an epoch's run, its shard, where it begins there)."""
        if epoch not in self.plans:
            generator = np.random.default_rng([self.seed, epoch, 3])
            offsets = [int(generator.integers(slack)) for slack in self.slack]
            self.plans[epoch] = offsets, int(generator.integers(self.windows)), generator.permutation(self.windows // self.run)
        offsets, first, order = self.plans[epoch]
        number = int(first + order[run] * self.run + step) % self.windows
        shard = int(np.searchsorted(self.ends, number, "right"))
        return number, shard, int(number - (self.ends[shard - 1] if shard else 0)) * self.seq_len + offsets[shard]

    def batch(self, position):
        """(inputs, targets), int32 (rows of this rank, seq_len), of step `position`, and what `joined` says of it."""
        block, joined = [], []
        for row in range(self.first, self.first + self.share):
            turn, step = divmod(position + row * self.run // self.rows, self.run)
            number, shard, start = self.place(*divmod(turn * self.rows + row, self.windows // self.run), step)
            block.append(self.shards[shard][start : start + self.seq_len + 1])
            joined.append(position > 0 and step > 0 and number not in (0, *self.ends))
        block = np.stack(block).astype(np.int32)
        return np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:]), np.array(joined, np.float32)

    def next_batch(self):
        inputs, targets, self.joined = super().next_batch()
        return inputs, targets


def open_train_split(cfg, data_path):
    """(training parts, calibration part): two lists of token arrays; the second holds the split's last calibration_tokens."""
    parts, held, missing = [], [], cfg.compress.calibration_tokens
    for path in reversed(shard_files(data_path, "train")):
        shard = read_shard(path, cfg.model.vocab_size)
        keep = max(len(shard) - missing, 0)
        parts.append(shard[:keep])
        held.append(shard[keep:])
        missing -= len(shard) - keep
    total = sum(map(len, parts)) + sum(map(len, held))
    if missing > 0 or max(map(len, parts)) <= cfg.train.train_seq_len:
        raise ValueError(
            f"{data_path}: {total} training tokens are too few for compress.calibration_tokens={cfg.compress.calibration_tokens}"
            f" and a window of train.train_seq_len={cfg.train.train_seq_len}; lower one of them"
        )
    return parts[::-1], held[::-1]


def open_loader(cfg, data_path, seed, rank=0, world=1, position=0):
    """The `TokenLoader` of one rank on the training shards in `data_path`: train_batch_tokens a step, all ranks together."""
    rows = cfg.train.train_batch_tokens // cfg.train.train_seq_len
    if cfg.train.batch_schedule:
        return WindowLoader(open_train_split(cfg, data_path)[0], cfg.train.train_seq_len, world, seed, rank, world, position)
    if cfg.train.carry:
        parts, run = open_train_split(cfg, data_path)[0], cfg.train.carry_windows
        return StreamLoader(parts, cfg.train.train_seq_len, rows, seed, rank, world, position, run)
    return TokenLoader(open_train_split(cfg, data_path)[0], cfg.train.train_seq_len, rows, seed, rank, world, position)


def calibration_tokens(cfg, data_path):
    """The training tokens that no batch contains, int32 (cfg.compress.calibration_tokens,)."""
    return np.concatenate(open_train_split(cfg, data_path)[1]).astype(np.int32)


def validation_tokens(cfg, data_path):
    """All tokens of the validation split in order, int32 (tokens,)."""
    shards = [read_shard(path, cfg.model.vocab_size) for path in shard_files(data_path, "val")]
    return np.concatenate(shards).astype(np.int32)
