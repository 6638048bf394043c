"""Peak memory of training on a 1 GB shard: `python -m benchmarks.shard_memory`.

Input: a synthetic shard of 500 million tokens in a temporary folder. Output: seconds to open it, batches a second, and the
peak resident memory of this process, mapped file pages included.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trit.config import CompressConfig, Config, EngramConfig, EvalConfig, ModelConfig, QuantConfig, TrackConfig, TrainConfig
from trit.data.loader import open_loader
from trit.data.shards import shard_header

TOKENS = 500_000_000
BATCHES = 500
CHUNK = 5_000_000


def make_shard(path):
    """Write TOKENS pseudo-random ids below 1024 piece by piece."""
    generator = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(shard_header(TOKENS))
        for _ in range(TOKENS // CHUNK):
            generator.integers(0, 1024, CHUNK, np.uint16).tofile(file)


def peak_megabytes():
    """Peak resident memory so far; the unit of ru_maxrss is kilobytes, on a Mac bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1_000_000 if sys.platform == "darwin" else 1000)


def train_on(folder):
    """Peak resident memory in MB of `train_gpt.py` with the demo model on the shard, 40 steps, in a process of its own."""
    settings = ["model.vocab_size=1024", f"data_path={folder}", f"out_path={folder}/run", "train.iterations=40", "train.compile=false"]
    command = [sys.executable, "train_gpt.py", "--config", "configs/demo.toml", *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).resolve().parent.parent)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1_000_000 if sys.platform == "darwin" else 1000)


def main():
    """Make the shard, open it, take the batches, train on it, print the figures."""
    train = TrainConfig(train_seq_len=1024, train_batch_tokens=524_288)
    cfg = Config(ModelConfig(), None, EngramConfig(), QuantConfig(), train, CompressConfig(), EvalConfig(), TrackConfig())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "synthetic_train_000000.bin"
        make_shard(path)
        print(f"shard {path.stat().st_size / 1e6:.0f} MB, peak before opening {peak_megabytes():.0f} MB")
        start = time.perf_counter()
        loader = open_loader(cfg, folder, seed=1)
        print(f"opened and checked in {time.perf_counter() - start:.2f} s, peak {peak_megabytes():.0f} MB")
        start = time.perf_counter()
        for _ in range(BATCHES):
            loader.next_batch()
        seconds = time.perf_counter() - start
        tokens = BATCHES * train.train_batch_tokens
        loader.close()
        print(f"training peak {train_on(folder):.0f} MB")
        print(
            f"{BATCHES} batches of {train.train_batch_tokens} tokens, {tokens / seconds / 1e6:.0f} M tokens/s, peak {peak_megabytes():.0f} MB"
        )


if __name__ == "__main__":
    main()
