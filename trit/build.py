"""From a training run to a verified record: calibrate, quantise, pack, reload, score, bundle, run alone, certify, file.

Validation text is not opened before the artifact's bytes are fixed and hashed.
"""

import hashlib
import lzma
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import brotli
import numpy as np

from trit.bundle.bundle import bundle
from trit.bundle.verify import run_alone, verify
from trit.compress.pack import unpack
from trit.compress.plan import category_bytes, check_budget, size_table, sizes
from trit.compress.quantize import fake_quantize
from trit.data.loader import validation_tokens
from trit.data.manifest import MANIFEST_NAME, resolve_tokenizer
from trit.data.shards import shard_files
from trit.data.tokenizer import open_tokenizer
from trit.eval import certify
from trit.eval.score import Score
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import parameter_count
from trit.report import record
from trit.submission import find_calibration, load_artifact, make_artifact, score_arrays
from trit.train.checkpoint import load_checkpoint, trained_arrays
from trit.train.torch_backend import evaluator, start_process


class Built(NamedTuple):
    """What a build hands on: the record's folder (None where a check failed), submission facts, checks, [(compressor, bits per byte)]."""

    folder: Path
    submission: dict
    checks: list
    comparison: list


def compress_run(config, arrays, data_path, log):
    """(calibration, artifact bytes, seconds that read training text) of trained arrays."""
    begin = time.perf_counter()
    arch, process = load_arch(config.model.name), start_process()
    calibration = find_calibration(torch_ops, arch, config, process, arrays, data_path, log)
    seconds = time.perf_counter() - begin
    return calibration, make_artifact(torch_ops, arch, config, arrays, calibration), seconds


def trained_forward(config, arrays, calibration):
    """Weights as the quantised training forward sees them: {name: float32 array}."""
    p = {name: torch_ops.from_numpy(array) for name, array in arrays.items()}
    specs = load_arch(config.model.name).param_specs(config)
    return {name: torch_ops.to_numpy(x) for name, x in fake_quantize(torch_ops, config, specs, p, calibration).items()}


def validation_text(tokens, tokenizer_path):
    """The validation split as text: what other compressors are measured on."""
    tokenizer = open_tokenizer(tokenizer_path)
    return b"".join(tokenizer.decode(document[1:].tolist()).encode() for document in certify.split_documents(tokens))


def other_compressors(text):
    """[(name, bits per byte)] of general compressors on the same text."""
    xz, brotlied = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)), len(brotli.compress(text, quality=11))
    return [(name, record.bits_per_byte(size, len(text))) for name, size in (("xz -9e", xz), ("brotli -q 11", brotlied))]


def run_counted_file(built, artifact, data_path, tokenizer_path, folder, timeout):
    """Run the counted file alone on the artifact and the validation shards -> (losses float64, seconds, finished process)."""
    place = Path(folder)
    shutil.rmtree(place, ignore_errors=True)  # what an earlier build of the same run left
    place.mkdir(parents=True)
    packed = place / "artifact.trit"
    packed.write_bytes(artifact)
    files = {"artifact.trit": packed, **{f"data/{Path(path).name}": path for path in shard_files(data_path, "val")}}
    environ = {"DATA_PATH": "data", "LOSSES": "losses.f64", "TOKENIZER_PATH": tokenizer_path}
    if tokenizer_path != "byte260":
        files["tokenizer.model"], environ["TOKENIZER_PATH"] = tokenizer_path, "tokenizer.model"
    if (Path(data_path) / MANIFEST_NAME).exists():
        files[f"data/{MANIFEST_NAME}"] = Path(data_path) / MANIFEST_NAME
    if "OMP_NUM_THREADS" in os.environ:
        environ["OMP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
    begin = time.perf_counter()
    done = run_alone(built, files, environ=environ, timeout=timeout, folder=place / "alone")
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"the counted file failed when run alone (exit {done.returncode}):\n{done.stderr[-2000:]}")
    return np.fromfile(place / "alone" / "losses.f64"), seconds, done


class Scored(NamedTuple):
    """One artifact scored three ways: `losses` by the package, `trained_losses` in the quantised training forward (`trained_bpb`),
    `alone` by the counted file in `seconds` (`done` is its finished process)."""

    score: Score
    losses: np.ndarray
    trained_bpb: float
    trained_losses: np.ndarray
    alone: np.ndarray
    seconds: float
    done: object


def score_run(config, run, counted, artifact, loaded, forward, place, log):
    """`Scored` of an artifact, of the weights `loaded` from it and of the weights `forward` it was packed from. The counted file runs
    in the folder `place`."""
    arch, process = load_arch(config.model.name), start_process()
    score, losses = score_arrays(torch_ops, arch, config, process, loaded, run.data_path, run.tokenizer_path, log)
    log.line(f"final_ternary_roundtrip_exact val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f}")
    before, trained_losses = score_arrays(torch_ops, arch, config, process, forward, run.data_path, run.tokenizer_path, log)
    tokenizer_path = resolve_tokenizer(run.data_path, run.tokenizer_path)
    limit = config.track.eval_seconds or 86400
    alone, seconds, done = run_counted_file(counted, artifact, run.data_path, tokenizer_path, place, limit)
    return Scored(score, losses, before.bpb, trained_losses, alone, seconds, done)


def certificate(config, shake, counted, verified, artifact, loaded, scored, tokens, tokenizer_path, train_seconds):
    """Every check of a build, as a list."""
    arch, opened = load_arch(config.model.name), scored.done.opened or []
    losses_of = evaluator(torch_ops, arch, config, loaded, start_process())
    foreign = [path for path in opened if "_train_" in path]
    pythons, missing = ", ".join(sorted(verified["pythons"])), ", ".join(verified["missing"]) or "none"
    return [
        certify.within_budget(len(counted.wrapped), len(artifact), config.track.cap_bytes),
        certify.same_losses("round trip", scored.alone, scored.trained_losses, "counted file alone against the quantised training forward"),
        certify.same_losses("package agrees", scored.alone, scored.losses, "counted file alone against the package on the same artifact"),
        certify.scored_once(scored.score, tokens),
        certify.byte_accounting(tokens, tokenizer_path, config.model.vocab_size),
        certify.prefix_replay(config, losses_of, tokens, config.model.vocab_size),
        certify.check("runs alone", scored.done.returncode == 0, f"empty folder, python -I, {scored.done.isolation}"),
        certify.check(
            "no training text at evaluation", opened and not foreign, f"{len(opened)} files opened, {len(foreign)} training shards"
        ),
        certify.check("byte-compiles", pythons, f"python {pythons}; not installed here: {missing}"),
        certify.check("rebuild is identical", bundle(config, shake=shake).wrapped == counted.wrapped, f"sha256 {counted.sha256}"),
        certify.within_time("training time", train_seconds, config.track.train_seconds),
        certify.within_time("evaluation time", scored.seconds, config.track.eval_seconds),
    ]


def record_files(run_folder, run, counted, artifact, tokenizer_path, output):
    """{name: bytes or path} of what a record holds beside its JSON files and README. `output` is what the counted file printed."""
    needed = ("torch", "numpy", "sentencepiece", "brotli")
    files = {
        "train_gpt.py": counted.wrapped,
        "train_gpt_readable.py": counted.readable.encode(),
        "artifact.trit": artifact,
        "train.log": (run_folder / "train.log").read_bytes() + output.encode(),
        "requirements.txt": "".join(
            f"{name}=={version.partition('+')[0]}\n" for name, version in record.versions().items() if name in needed
        ).encode(),
    }
    if (Path(run.data_path) / MANIFEST_NAME).exists():
        files["manifest.json"] = Path(run.data_path) / MANIFEST_NAME
    if tokenizer_path != "byte260":
        files["tokenizer.model"] = tokenizer_path
    return files


def build(run_folder, run, shake, name, root, about, log):
    """Build, verify and file the run in `run_folder` -> `Built`. Raises ValueError or RuntimeError that say what to do.

    `run` is the run's RunArgs; `about` holds author, github_id and blurb; `root` is the records folder.
    """
    run_folder = Path(run_folder)
    config, state, steps, seconds, _ = load_checkpoint(run_folder / "checkpoint.npz")
    specs, arrays = load_arch(config.model.name).param_specs(config), trained_arrays(state)
    calibration, artifact, calibration_seconds = compress_run(config, arrays, run.data_path, log)
    digest = hashlib.sha256(artifact).hexdigest()
    (run_folder / "artifact.trit").write_bytes(artifact)
    log.line(f"Serialized model: {len(artifact)} bytes sha256 {digest}")

    shaken, whole = (bundle(config, shake=flag) for flag in (True, False))
    counted = shaken if shake else whole
    verified = verify(counted)
    log.line(f"Code size: {len(counted.wrapped)} bytes (shaken {len(shaken.wrapped)}, unshaken {len(whole.wrapped)})")
    rows = sizes(specs, unpack(specs, artifact), artifact)
    log.line(size_table(rows))
    check_budget(len(counted.wrapped), len(artifact), config.track.cap_bytes)

    tokenizer_path, tokens = resolve_tokenizer(run.data_path, run.tokenizer_path), validation_tokens(config, run.data_path)
    loaded, forward = load_artifact(torch_ops, load_arch(config.model.name), config, artifact), trained_forward(config, arrays, calibration)
    scored = score_run(config, run, counted, artifact, loaded, forward, run_folder / "alone", log)
    train_seconds = seconds + calibration_seconds
    checks = certificate(config, shake, counted, verified, artifact, loaded, scored, tokens, tokenizer_path, train_seconds)
    facts = {
        "name": name,
        "score": scored.score,
        "trained_bpb": scored.trained_bpb,
        "gap": float(np.abs(scored.alone - scored.trained_losses).max()),
        "steps": steps,
        "train_seconds": seconds,
        "calibration_seconds": calibration_seconds,
        "eval_seconds": scored.seconds,
        "bytes_code": len(counted.wrapped),
        "bytes_model": len(artifact),
        "bytes_tokenizer": 0 if tokenizer_path == "byte260" else os.path.getsize(tokenizer_path),
        "categories": category_bytes(rows),
        "parameters": parameter_count(specs),
        "hardware": record.hardware(start_process()),
        "sha256_code": counted.sha256,
        "sha256_model": digest,
        "checks": checks,
        "data_path": run.data_path,
        **about,
    }
    submission = record.submission_json(config, run, facts)
    comparison = other_compressors(validation_text(tokens, tokenizer_path))
    if any(item.verdict != "pass" for item in checks):
        return Built(None, submission, checks, comparison)
    folder = record.new_folder(root, config.track.track, name)
    files = record_files(run_folder, run, counted, artifact, tokenizer_path, scored.done.stdout)
    return Built(record.write_record(folder, config, submission, checks, comparison, files), submission, checks, comparison)
