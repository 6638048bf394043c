"""From a training run to a verified record: calibrate, quantise, pack, reload, score, bundle, run alone, certify, file.

Validation text cannot be opened before the artifact's bytes are fixed and hashed.
"""

import dataclasses
import lzma
import math
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import brotli
import numpy as np

from trit.bars import compressing, scoring
from trit.bundle.bundle import ALL_CODECS, QUICK_CODECS, bundle
from trit.bundle.verify import verify
from trit.compress.pack import stored_specs, unpack
from trit.compress.plan import check_budget
from trit.compress.quantize import fake_quantize
from trit.compress.sizes import category_bytes, size_table, sizes
from trit.config_load import with_overrides
from trit.console import CLOCK_FORMAT, progress
from trit.data.firewall import Firewall, validation_files
from trit.data.loader import validation_tokens
from trit.data.manifest import MANIFEST_NAME, resolve_tokenizer
from trit.data.tokenizer import open_tokenizer
from trit.eval.certify import certify
from trit.eval.score import Score
from trit.eval.temperature import artifact_specs
from trit.library import load_library
from trit.models import load_arch
from trit.params import parameter_count
from trit.proof.checks import check, decoded_documents, same_losses
from trit.proof.entry import read_entry
from trit.report import record
from trit.submission import compressed, find_calibration, load_artifact, score_arrays
from trit.train.checkpoint import load_checkpoint, trained_arrays

CODE_MARGIN = 48  # bytes by which a changed number in the settings may lengthen the counted file once it is compressed


class Built(NamedTuple):
    """What a build hands on: the record's folder (None where a check failed), submission facts, checks."""

    folder: Path
    submission: dict
    checks: list


def compress_run(library, config, arrays, data_path, log):
    """(weights that the artifact must give back, artifact bytes, seconds that read training text) of trained arrays."""
    begin = time.perf_counter()
    (_, ops, backend), arch = library, load_arch(config.model.name)
    process = backend.start_process()
    with compressing(backend, config, artifact_specs(arch, config)) as watched:
        calibration = find_calibration(ops, watched, arch, config, process, arrays, data_path, log)
        forward, artifact = compressed(ops, watched, arch, config, process, arrays, calibration, data_path, log)
    seconds = time.perf_counter() - begin
    return trained_forward(ops, config, arrays, calibration) if forward is None else forward, artifact, seconds


def allocation_config(library, config, shake):
    """`config` with the bytes that an allocation may fill, unless it names them: what the cap leaves beside the counted file itself. The
    number stands in that file, so room is left for its digits."""
    if not config.compress.allocate or config.compress.model_bytes_cap:
        return config
    left = config.track.cap_bytes - len(bundle(config, library=library.name, shake=shake).wrapped) - CODE_MARGIN
    return with_overrides(config, [f"compress.model_bytes_cap={left}"])


def trained_forward(ops, config, arrays, calibration):
    """Weights as the quantised training forward sees them: {name: float32 array}."""
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    specs = artifact_specs(load_arch(config.model.name), config)
    return {name: ops.to_numpy(x) for name, x in fake_quantize(ops, config, specs, p, calibration).items()}


def validation_text(tokens, tokenizer_path):
    """The validation split as text: what other compressors are measured on."""
    return b"".join(decoded_documents(tokens, open_tokenizer(tokenizer_path)))


def other_compressors(text):
    """[(name, bits per byte)] of general compressors on the same text."""
    xz, brotlied = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)), len(brotli.compress(text, quality=11))
    return [(name, record.bits_per_byte(size, len(text))) for name, size in (("xz -9e", xz), ("brotli -q 11", brotlied))]


class Scored(NamedTuple):
    """One artifact scored by the package: `losses` (float64) of its unpacked weights, `trained_losses` in the quantised training
    forward (`trained_bpb`)."""

    score: Score
    losses: np.ndarray
    trained_bpb: float
    trained_losses: np.ndarray


def score_run(library, config, run, loaded, forward, positions, log):
    """`Scored` of the weights `loaded` from an artifact and of the weights `forward` it was packed from, on a text of so many positions."""
    (_, ops, backend), arch = library, load_arch(config.model.name)
    process = backend.start_process()

    def scored(weights, what):
        with scoring(backend, config, positions, what) as watched:
            return score_arrays(ops, watched, arch, config, process, weights, run.data_path, run.tokenizer_path, log)

    score, losses = scored(loaded, "scoring")
    log.line(f"final_ternary_roundtrip_exact val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f}")
    if all(np.array_equal(loaded[name], forward[name]) for name in loaded):
        return Scored(score, losses, score.bpb, losses)  # the same weights bit for bit: scoring them again would tell nothing
    before, trained_losses = scored(forward, "scoring what was trained")
    return Scored(score, losses, before.bpb, trained_losses)


def certify_record(temporary, data_path, scored, describe, log):
    """Run and judge the counted file of a record that is being written -> (`Certificate`, its checks and those that only a build can
    make). `describe(seconds, gap, output)` writes the record's claims from the full run before they are judged; `gap` is the largest
    difference in nats from the quantised training forward."""

    def complete(result, losses):
        alone = np.zeros(0) if losses is None else losses
        same_length = alone.shape == scored.trained_losses.shape
        describe(result.seconds, float(np.abs(alone - scored.trained_losses).max()) if same_length else math.inf, result.stdout)
        return read_entry(temporary, data_path)

    certificate = certify(read_entry(temporary, data_path), say=log.line, complete=complete)
    alone = np.zeros(0) if certificate.losses is None else certificate.losses
    return certificate, [
        same_losses("round trip", alone, scored.trained_losses, "counted file alone against the quantised training forward"),
        same_losses("package agrees", alone, scored.losses, "counted file alone against the package on the same artifact"),
        *certificate.checks,
    ]


def record_files(library, run, counted, artifact, tokenizer_path):
    """{name: bytes or path} of what a record holds beside its claims."""
    needed = (library.name, "numpy", "sentencepiece", "brotli")
    files = {
        "train_gpt.py": counted.wrapped,
        "train_gpt_readable.py": counted.readable.encode(),
        "artifact.trit": artifact,
        "requirements.txt": "".join(
            f"{name}=={version.partition('+')[0]}\n" for name, version in record.versions().items() if name in needed
        ).encode(),
    }
    if (Path(run.data_path) / MANIFEST_NAME).exists():
        files["manifest.json"] = Path(run.data_path) / MANIFEST_NAME
    if tokenizer_path != "byte260":
        files["tokenizer.model"] = tokenizer_path
    return files


def built_config(trained, overrides):
    """The settings of a build: those of training, except for `key=value` strings of the sections that training does not read."""
    config = with_overrides(trained, overrides)
    for section in dataclasses.fields(config):
        if section.name not in ("eval", "compress") and getattr(config, section.name) != getattr(trained, section.name):
            raise ValueError(
                f"{section.name}.* was fixed by training; a build may change eval.* and compress.* only, train again for others"
            )
    return config


def build(run_folder, run, overrides, shake, name, root, about, log, codecs=ALL_CODECS, library="torch"):
    """Build, certify and file the run in `run_folder` -> `Built`. Raises ValueError or RuntimeError that say what to do.

    `run` is the run's RunArgs; `overrides` are `key=value` strings; `about` holds author, github_id and blurb; `root` is the records
    folder; `codecs` are the ways to pack the counted file, `library` is the one that it computes with: "torch" or "mlx", whichever of
    the two trained the run.
    """
    with Firewall(validation_files(run.data_path)) as firewall:
        return build_behind(firewall, load_library(library), Path(run_folder), run, overrides, shake, name, root, about, log, codecs)


def build_behind(firewall, library, run_folder, run, overrides, shake, name, root, about, log, codecs):
    """`build` with validation text unreadable until `firewall` is released with the artifact."""
    config, state, steps, seconds, _ = load_checkpoint(run_folder / "checkpoint.npz")
    config = built_config(config, overrides)
    config = allocation_config(library, config, shake)
    arrays = trained_arrays(state)
    forward, artifact, calibration_seconds = compress_run(library, config, arrays, run.data_path, log)
    specs = stored_specs(config, artifact_specs(load_arch(config.model.name), config), artifact)
    digest = firewall.release(artifact)
    (run_folder / "artifact.trit").write_bytes(artifact)
    log.line(f"Serialized model: {len(artifact)} bytes sha256 {digest}")

    shaken, whole = (
        bundle(config, library=library.name, codecs=codecs),
        bundle(config, library=library.name, shake=False, codecs=QUICK_CODECS),
    )
    counted = shaken if shake else whole
    verify(counted)
    log.line(f"Code size: {len(counted.wrapped)} bytes (shaken {len(shaken.wrapped)}, unshaken {len(whole.wrapped)})")
    rows = sizes(config, specs, unpack(config, specs, artifact), artifact)
    log.line(size_table(rows))
    check_budget(len(counted.wrapped), len(artifact), config.track.cap_bytes)

    tokenizer_path, tokens = resolve_tokenizer(run.data_path, run.tokenizer_path), validation_tokens(config, run.data_path)
    loaded = load_artifact(library.ops, load_arch(config.model.name), config, artifact)
    scored = score_run(library, config, run, loaded, forward, len(tokens) - 1, log)
    with progress("other compressors", bar_format=CLOCK_FORMAT):
        comparison = other_compressors(validation_text(tokens, tokenizer_path))
    facts = {
        "name": name,
        "score": scored.score,
        "trained_bpb": scored.trained_bpb,
        "steps": steps,
        "train_seconds": seconds,
        "calibration_seconds": calibration_seconds,
        "bytes_code": len(counted.wrapped),
        "bytes_model": len(artifact),
        "bytes_tokenizer": 0 if tokenizer_path == "byte260" else os.path.getsize(tokenizer_path),
        "categories": category_bytes(rows),
        "parameters": parameter_count(specs),
        "hardware": record.hardware(library.backend.start_process()),
        "library": library.name,
        "comparison": comparison,
        "sha256_code": counted.sha256,
        "sha256_model": digest,
        "data_path": run.data_path,
        **about,
    }
    folder = record.new_folder(root, config.track.track, name)
    temporary = record.start_record(folder, config, record_files(library, run, counted, artifact, tokenizer_path))

    def describe(eval_seconds, gap, output):
        submission = record.submission_json(config, run, facts | {"eval_seconds": eval_seconds, "gap": gap})
        record.write_claims(temporary, submission, {"train.log": (run_folder / "train.log").read_bytes() + output.encode()})

    try:
        certificate, checks = certify_record(temporary, run.data_path, scored, describe, log)
    except BaseException:
        shutil.rmtree(temporary)  # stopped half way: half a record is none
        raise
    checks.append(check("validation text unread before the artifact", *firewall.summary()))
    made_by = certificate.made_by | {"firewall": firewall.evidence()}
    return Built(*record.file_record(temporary, folder, checks, made_by), checks)
