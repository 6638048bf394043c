"""What the data tests share: settings, a sample of pydocs, and small tokenizers trained on it once per session."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from trit.config import CompressConfig, Config, EngramConfig, EvalConfig, ModelConfig, QuantConfig, TrackConfig, TrainConfig
from trit.data.corpus import pydocs
from trit.data.shards import write_shard
from trit.data.tokenizer import find_spec, open_tokenizer, train_model

FOLDER = tempfile.TemporaryDirectory(prefix="trit_tests_")
HARD_TEXTS = [
    " lead",
    "  two spaces",
    "tail  ",
    "a\n    b\tc\r\n\n",
    "\n",
    " ",
    "x▁y ▁ ▁▁z▁",
    "nul\0z",
    "é１２３ ﬁ 😀 漢字",
    "\u200b zero\u2047 \u2585 width",
    "e\u0301 A\u030a",
    "1234567890 " * 3,
    "if x:\n\n\n        return  # two  spaces",
    "a",
]


def settings(vocab_size=512, seq_len=16, batch_tokens=64, calibration=32):
    """A `Config` whose data settings are the given ones."""
    return Config(
        ModelConfig(vocab_size=vocab_size),
        None,
        EngramConfig(),
        QuantConfig(),
        TrainConfig(train_seq_len=seq_len, train_batch_tokens=batch_tokens),
        CompressConfig(calibration_tokens=calibration),
        EvalConfig(),
        TrackConfig(),
    )


def write_shards(folder):
    """A data folder of byte260, made as `folder`: a repetitive text of 6,000 training and 700 validation tokens with ids below 64."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    words = [generator.integers(4, 64, 5) for _ in range(12)]
    for split, count in (("train", 1200), ("val", 140)):
        write_shard(folder / f"tiny_{split}_000000.bin", np.concatenate([words[i] for i in generator.integers(0, 12, count)]))
    return str(folder)


@functools.cache
def sample_documents():
    """Every fifth document of pydocs, about 400 kB."""
    return pydocs()[::5]


@functools.cache
def small_tokenizer(name):
    """A tokenizer of the family of specs entry `name` with 400 pieces, or byte260."""
    if name == "byte260":
        return open_tokenizer("byte260")
    path = Path(FOLDER.name) / f"{name}.model"
    path.write_bytes(train_model(find_spec(name) | {"vocab_size": 400}, sample_documents()[:40]))
    return open_tokenizer(path)
