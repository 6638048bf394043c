"""From a training run to a verified record: calibrate, quantise, pack, reload, score, bundle, run alone, certify, file.

Validation text is not opened before the artifact's bytes are fixed and hashed.
"""

import hashlib
import lzma
import os
import time
from pathlib import Path
from typing import NamedTuple

import brotli
import numpy as np

from trit.bundle.bundle import bundle
from trit.bundle.verify import run_alone, verify
from trit.compress.plan import category_bytes, check_budget, size_table, sizes
from trit.compress.quantize import fake_quantize, quantize
from trit.data.loader import validation_tokens
from trit.data.manifest import MANIFEST_NAME, resolve_tokenizer
from trit.data.shards import shard_files
from trit.data.tokenizer import open_tokenizer
from trit.eval import certify
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
    """(calibration, artifact bytes, seconds) of trained arrays, from training text alone."""
    begin = time.perf_counter()
    arch, process = load_arch(config.model.name), start_process()
    calibration = find_calibration(torch_ops, arch, config, process, arrays, data_path, log)
    return calibration, make_artifact(torch_ops, arch, config, arrays, calibration), time.perf_counter() - begin


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
    place.mkdir(parents=True, exist_ok=True)
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


def seconds_trained(run_folder):
    """(steps, training seconds, text of train.log) of a finished run."""
    _, _, step, seconds, _ = load_checkpoint(run_folder / "checkpoint.npz")
    log = run_folder / "train.log"
    return step, seconds, log.read_text() if log.exists() else ""


def build(run_folder, run, shake, name, root, about, log):
    """Build, verify and file the run in `run_folder` -> `Built`. Raises ValueError or RuntimeError that say what to do.

    `run` is the run's RunArgs; `about` holds author, github_id and blurb; `root` is the records folder.
    """
    run_folder = Path(run_folder)
    config, state, steps, seconds, _ = load_checkpoint(run_folder / "checkpoint.npz")
    arch, process, arrays = load_arch(config.model.name), start_process(), trained_arrays(state)
    specs = arch.param_specs(config)
    calibration, artifact, calibration_seconds = compress_run(config, arrays, run.data_path, log)
    digest = hashlib.sha256(artifact).hexdigest()
    (run_folder / "artifact.trit").write_bytes(artifact)
    log.line(f"Serialized model: {len(artifact)} bytes sha256 {digest}")

    shaken, whole = (bundle(config, shake=flag) for flag in (True, False))
    counted = shaken if shake else whole
    verified = verify(counted)
    log.line(
        f"Code size: {len(counted.wrapped)} bytes (shaken {len(shaken.wrapped)}, unshaken {len(whole.wrapped)}, readable {len(counted.readable.encode())})"
    )
    check_budget(len(counted.wrapped), len(artifact), config.track.cap_bytes)
    rows = sizes(specs, quantize(torch_ops, config, specs, {n: torch_ops.from_numpy(a) for n, a in arrays.items()}, calibration), artifact)
    log.line(size_table(rows))

    tokenizer_path = resolve_tokenizer(run.data_path, run.tokenizer_path)
    tokens = validation_tokens(config, run.data_path)
    loaded = load_artifact(torch_ops, arch, config, artifact)
    score, losses = score_arrays(torch_ops, arch, config, process, loaded, run.data_path, run.tokenizer_path)
    log.line(f"final_ternary_roundtrip_exact val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f}")
    before, trained_losses = score_arrays(
        torch_ops, arch, config, process, trained_forward(config, arrays, calibration), run.data_path, run.tokenizer_path
    )
    alone, eval_seconds, done = run_counted_file(
        counted, artifact, run.data_path, tokenizer_path, run_folder / "alone", config.track.eval_seconds or 86400
    )
    comparison = other_compressors(validation_text(tokens, tokenizer_path))
    foreign = [path for path in done.opened or [] if "_train_" in path]
    train_seconds = seconds + calibration_seconds
    losses_of = evaluator(torch_ops, arch, config, loaded, process)
    checks = [
        certify.within_budget(len(counted.wrapped), len(artifact), config.track.cap_bytes),
        certify.same_losses("round trip", alone, trained_losses, "counted file alone against the quantised training forward"),
        certify.same_losses("package agrees", alone, losses, "counted file alone against the package on the reloaded artifact"),
        certify.scored_once(score, tokens),
        certify.byte_accounting(tokens, tokenizer_path, config.model.vocab_size),
        certify.prefix_replay(config, losses_of, tokens, config.model.vocab_size),
        certify.check("runs alone", done.returncode == 0, f"empty folder, python -I, {done.isolation}, exit {done.returncode}"),
        certify.check(
            "no training text at evaluation",
            not foreign,
            f"{len(done.opened or [])} files opened, training shards among them: {len(foreign)}",
        ),
        certify.check(
            "byte-compiles",
            True,
            f"python {', '.join(sorted(verified['pythons']))}; not installed here: {', '.join(verified['missing']) or 'none'}",
        ),
        certify.check("rebuild is identical", bundle(config, shake=shake).wrapped == counted.wrapped, f"sha256 {counted.sha256}"),
        certify.within_time("training time", train_seconds, config.track.train_seconds),
        certify.within_time("evaluation time", eval_seconds, config.track.eval_seconds),
    ]
    facts = {
        "score": score,
        "trained_bpb": before.bpb,
        "gap": float(np.abs(alone - trained_losses).max()),
        "steps": steps,
        "train_seconds": seconds,
        "calibration_seconds": calibration_seconds,
        "eval_seconds": eval_seconds,
        "bytes_code": len(counted.wrapped),
        "bytes_model": len(artifact),
        "bytes_tokenizer": 0 if tokenizer_path == "byte260" else os.path.getsize(tokenizer_path),
        "parameters": parameter_count(specs),
        "categories": category_bytes(rows),
        "hardware": record.hardware(process),
        "sha256_code": counted.sha256,
        "sha256_model": digest,
        "checks": checks,
    }
    submission = record.submission_json(config, run, facts, about["author"], about["github_id"], about["blurb"])
    submission["name"] = name
    failed = [item for item in checks if item.verdict != "pass"]
    if failed:
        return Built(None, submission, checks, comparison)
    files = {
        "train_gpt.py": counted.wrapped,
        "train_gpt_readable.py": counted.readable.encode(),
        "artifact.trit": artifact,
        "train.log": (run_folder / "train.log").read_bytes() + done.stdout.encode(),
        "requirements.txt": "".join(
            f"{p}=={v}\n" for p, v in record.versions().items() if p in ("torch", "numpy", "sentencepiece", "brotli")
        ).encode(),
    }
    if (Path(run.data_path) / MANIFEST_NAME).exists():
        files["manifest.json"] = Path(run.data_path) / MANIFEST_NAME
    if tokenizer_path != "byte260":
        files["tokenizer.model"] = tokenizer_path
    folder = record.new_folder(root, config.track.track, name)
    return Built(record.write_record(folder, config, submission, checks, comparison, files), submission, checks, comparison)
