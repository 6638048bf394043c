"""What the data tests share: settings, a sample of pydocs, and small tokenizers trained on it once per session."""

import functools
import tempfile
from pathlib import Path

from trit.config import CompressConfig, Config, EngramConfig, EvalConfig, ModelConfig, QuantConfig, TrackConfig, TrainConfig
from trit.data.corpus import pydocs
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
