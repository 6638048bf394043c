"""What the tests of whole records share: settings of a tiny run, the scripts as a user starts them, and a text to run them on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from store import copy, stored

from trit.bundle.alone import run_alone
from trit.bundle.bundle import bundle
from trit.data.prepare import prepare
from trit.data.tokenizer import find_spec
from trit.library import load_library
from trit.models import load_arch
from trit.submission import find_calibration, load_artifact, make_artifact, score_rows, train_weights
from trit.train.log import Log

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "model.vocab_size=260", "model.num_layers=3", "model.model_dim=32", "model.num_heads=2", "model.num_kv_heads=1", "model.embed_dim=16",
    "model.mlp_mult=1", "model.yarn_max_len=64", "engram.engram_buckets=64", "engram.engram_row_dim=8", "model.xsa_layers=1", "model.partial_rope_dims=8",
    "train.train_seq_len=32", "train.train_batch_tokens=256", "train.iterations=12", "train.log_every=4", "eval.eval_seq_len=32",
    "eval.eval_stride=16", "compress.calibration_tokens=512", "compress.calibration_evals=3", "track.cap_bytes=100000",
    "quant.bitnet_group_size=24", "compress.code_bytes_reserve=12000",
]  # fmt: skip


def run(script, *arguments):
    """A top-level script in a process of its own, as a user would start it."""
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


def text_shards(folder):
    """A folder of byte260 shards, made in `folder` from a small text of words in any order."""
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "and",
        "naïve",
        "people",
        "count",
        "each",
        "byte",
        "twice",
        "in",
        "the",
        "night",
    ]
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 3)):
        lines = [json.dumps({"text": " ".join(generator.choice(words, 80))}) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    splits = {split: str(folder / f"{split}.jsonl") for split in ("train", "val")}
    prepare(splits, str(folder / "shards"), find_spec("byte260"), say=lambda *_: None)
    return folder / "shards"


def tiny_run():
    """The folder of a tiny trained run, on the text of the session."""

    def make(folder):
        done = run("train_gpt.py", *TINY, f"data_path={session_text()}", f"out_path={folder}", "run_id=tiny")
        assert done.returncode == 0, done.stderr

    return stored("tiny", make, TINY)


def tiny_record():
    """The record that was built and certified of `tiny_run`, in the folder of its track."""

    def make(folder):
        trained = copy(tiny_run(), folder.with_name("run"))  # a build leaves its packed forms in the run's folder
        done = run("build_submission.py", "--run", trained, "--dce", "--quick-start", "--records", folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert Path(done.stdout.strip().splitlines()[-1]).parent == folder / "demo_cpu_256kb"

    (found,) = (stored("tiny_record", make, TINY) / "demo_cpu_256kb").iterdir()
    return found


def session_text():
    """A data folder of byte260 that a record can be built on."""
    return stored("text", text_shards) / "shards"


def counted_and_package(cfg, shards, folder, library="torch"):
    """(losses of the counted file of `cfg`, trained and scored alone in `folder`; those of the package; its number of steps)."""
    environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260", "LOSSES": "losses", "OMP_NUM_THREADS": "1", "SEED": "3"}
    done = run_alone(bundle(cfg, library=library, codecs=("brotli",)), {"data": shards}, environ=environ, folder=folder / "alone")
    assert done.returncode == 0, done.stderr
    (_, ops, backend), arch, log = load_library(library), load_arch(cfg.model.name), Log(rank=1)
    given = ops, backend, arch, cfg, backend.start_process()
    arrays, result = train_weights(*given, shards, 3, log)
    calibration = find_calibration(*given, arrays, shards, log)
    loaded = load_artifact(ops, arch, cfg, make_artifact(ops, arch, cfg, arrays, calibration))
    losses = score_rows(*given, loaded, shards, "byte260", log, ())[1]
    return np.fromfile(folder / "alone" / "losses"), losses, result.steps
