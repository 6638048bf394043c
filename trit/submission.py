"""The counted program: train if there is no artifact, then reload the artifact's bytes, evaluate, and print.

With `eval.evaluation_only` a missing artifact is an error instead, and the bundler shakes training and packing away.

`train_gpt.py` and `build_submission.py` call the same functions, so the counted file and the package cannot drift apart. `library` is the
backend of the array library that `ops` speaks: trit/train/torch_backend.py or mlx_backend.py.
"""

import os
import time

import numpy as np

from trit.compress.allocate import allocate, ladders
from trit.compress.calibrate import calibrate, stored_arrays
from trit.compress.pack import pack, stored_specs, unpack
from trit.compress.prune import kept_rows
from trit.compress.quantize import dequantize, quantize
from trit.data.byte_count import byte_table
from trit.data.files import atomic_write
from trit.data.loader import calibration_tokens, validation_tokens
from trit.data.manifest import resolve_tokenizer
from trit.eval.score import score_tokens, summarise
from trit.eval.temperature import artifact_specs, fit_sharpness
from trit.params import init_params
from trit.train.log import Log
from trit.train.run import run_training

STATISTICS_WINDOWS = 256  # of held-out training text that an allocation takes gradients on


def train_weights(ops, library, arch, cfg, process, data_path, seed, log):
    """Train from the start, without checkpoints -> ({name: float32 array}, TrainResult)."""
    specs = arch.param_specs(cfg)
    backend = library.make_backend(ops, arch, cfg, specs, init_params(specs, seed), process)
    result = run_training(cfg, specs, backend, data_path, seed, log, None, lambda *state: None)
    return backend.export(), result


def find_calibration(ops, library, arch, cfg, process, arrays, data_path, log):
    """Calibration of trained `arrays` on the held-out slice of the training text. Which rows of the engram stay, and a fitted sharpness,
    are set in `arrays`. Every rank finds the same from the same text."""
    specs, tokens = artifact_specs(arch, cfg), calibration_tokens(cfg, data_path)
    if cfg.compress.engram_keep:
        kept = arrays["engram.kept"] = kept_rows(ops, cfg, arrays["engram.table"], tokens)
        log.line(f"pruning: {kept.sum()} of {len(kept)} rows of the engram stay")
    if cfg.eval.fit_temperature:
        arrays["sharpness"] = np.ones(1, np.float32)
    calibration = {}
    if cfg.compress.calibration_evals:
        calibration = calibrate(
            ops,
            cfg,
            specs,
            arrays,
            lambda weights: library.evaluator(ops, arch, cfg, weights, process).losses,
            lambda weights, inputs: library.observe(ops, arch, cfg, weights, inputs, process),
            tokens,
            log,
        )
    if cfg.eval.fit_temperature:
        stored = stored_arrays(ops, cfg, specs, {name: ops.from_numpy(array) for name, array in arrays.items()}, calibration)
        arrays["sharpness"] = fitted_sharpness(ops, library, arch, cfg, process, stored, tokens, log)
    return calibration


def fitted_sharpness(ops, library, arch, cfg, process, stored, tokens, log):
    """Sharpness (1,) that suits weights as they are stored, on held-out training tokens (n,)."""
    rows = library.evaluator(ops, arch, cfg, stored | {"sharpness": np.ones(1, np.float32)}, process).rows
    sharpness, before, after = fit_sharpness(rows, tokens, cfg.train.train_seq_len)
    log.line(f"temperature:{1 / sharpness:.4f} held-out training loss {before:.5f} -> {after:.5f}")
    return np.full(1, sharpness, np.float32)


def make_artifact(ops, arch, cfg, arrays, calibration):
    """Trained arrays, stored as the settings say -> the artifact's bytes."""
    specs = artifact_specs(arch, cfg)
    return pack(cfg, specs, quantize(ops, cfg, specs, {name: ops.from_numpy(array) for name, array in arrays.items()}, calibration))


def windows(cfg, tokens):
    """(inputs, targets) int32 (rows, train_seq_len) of held-out training tokens (n,)."""
    length = cfg.train.train_seq_len
    rows = (len(tokens) - 1) // length
    return [tokens[i : i + rows * length].reshape(rows, length).astype(np.int32) for i in (0, 1)]


def loss_meter(ops, library, arch, cfg, process, tokens):
    """Function from {name: array} to the loss in nats a token on held-out training tokens (n,)."""
    inputs, targets = windows(cfg, tokens)

    def mean_loss(weights):
        losses, size = library.evaluator(ops, arch, cfg, weights, process).losses, cfg.eval.eval_batch_seqs
        found = [losses(inputs[i : i + size], targets[i : i + size]) for i in range(0, len(inputs), size)]
        return float(np.concatenate(found).mean(dtype=np.float64))

    return mean_loss


def statistics(ops, library, arch, cfg, process, weights, tokens):
    """(second moments of the matrices' inputs, curvature of every weight) on held-out training tokens (n,)."""
    inputs, targets = (x[:STATISTICS_WINDOWS] for x in windows(cfg, tokens))
    moments = library.observe(ops, arch, cfg, weights, inputs[: max(STATISTICS_WINDOWS // 4, 1)], process)
    return moments, library.squared_gradients(ops, arch, cfg, weights, inputs, targets, process)


def allocated(ops, library, arch, cfg, process, tensors, data_path, log):
    """(specs as stored, {name: QuantTensor}) of tensors as trained, in compress.model_bytes_cap bytes: bits where they lower the loss
    of the held-out slice of the training text most. A fitted sharpness is fitted again."""
    specs, tokens = artifact_specs(arch, cfg), calibration_tokens(cfg, data_path)
    cap = cfg.compress.model_bytes_cap or cfg.track.cap_bytes - cfg.compress.code_bytes_reserve
    moments, curvatures = statistics(ops, library, arch, cfg, process, dequantize(ops, cfg, specs, tensors), tokens)
    begin = time.perf_counter()
    made = ladders(ops, cfg, specs, tensors, moments, curvatures)
    log.line(f"allocation: {sum(map(len, made.hulls))} storages of {len(specs)} tensors in {time.perf_counter() - begin:.1f}s")
    specs, tensors = allocate(ops, cfg, made, loss_meter(ops, library, arch, cfg, process, tokens), cap, log)
    if cfg.eval.fit_temperature:
        stored = dequantize(ops, cfg, specs, tensors)
        sharpness = ops.from_numpy(fitted_sharpness(ops, library, arch, cfg, process, stored, tokens, log))
        again = tensors | quantize(ops, cfg, [specs[-1]], {"sharpness": sharpness}, {})
        if len(pack(cfg, specs, again)) <= cap:
            tensors = again
    return specs, tensors


def compressed(ops, library, arch, cfg, process, arrays, calibration, data_path, log):
    """({name: float32 array} that the artifact must give back bit for bit or None, the artifact's bytes) of trained arrays. None where
    every tensor is stored as it was trained: then the quantised training forward says what it must give back."""
    if cfg.compress.allocate:
        specs = artifact_specs(arch, cfg)
        kept = quantize(ops, cfg, specs, {name: ops.from_numpy(array) for name, array in arrays.items()}, calibration)
        specs, tensors = allocated(ops, library, arch, cfg, process, kept, data_path, log)
        return dequantize(ops, cfg, specs, tensors), pack(cfg, specs, tensors)
    return None, make_artifact(ops, arch, cfg, arrays, calibration)


def load_artifact(ops, arch, cfg, data):
    """The artifact's bytes -> {name: float32 array}."""
    specs = stored_specs(cfg, artifact_specs(arch, cfg), data)
    return dequantize(ops, cfg, specs, unpack(cfg, specs, data))


def score_rows(ops, library, arch, cfg, process, arrays, data_path, tokenizer_path, log, rows_at):
    """(Score, losses float64 (positions,), log-probability rows at the positions `rows_at`) of weights, used as they are, on the
    validation split."""
    tokens = validation_tokens(cfg, data_path)
    table = byte_table(resolve_tokenizer(data_path, tokenizer_path), cfg.model.vocab_size)
    losses, counts, rows = score_tokens(ops, arch, cfg, library.evaluator(ops, arch, cfg, arrays, process), tokens, log, rows_at)
    return summarise(losses, counts, tokens, table), losses, rows


def score_arrays(ops, library, arch, cfg, process, arrays, data_path, tokenizer_path, log):
    """`score_rows` without rows."""
    return score_rows(ops, library, arch, cfg, process, arrays, data_path, tokenizer_path, log, ())[:2]


def main(cfg, ops, arch, library):
    """The counted file's program. Environment: DATA_PATH, TOKENIZER_PATH, SEED, ARTIFACT (default artifact.trit), LOSSES (a file
    for the float64 losses), ROWS (a file for the float64 log-probability rows at the positions that ROWS_AT lists)."""
    process, log = library.start_process(), Log(int(os.environ.get("RANK", 0)))
    data_path, tokenizer = os.environ.get("DATA_PATH", "data"), os.environ.get("TOKENIZER_PATH", "")
    artifact = os.environ.get("ARTIFACT", "artifact.trit")
    if not cfg.eval.evaluation_only and not os.path.exists(artifact):
        seed = int(os.environ.get("SEED", 1337))
        arrays, _ = train_weights(ops, library, arch, cfg, process, data_path, seed, log)
        calibration = find_calibration(ops, library, arch, cfg, process, arrays, data_path, log)
        _, data = compressed(ops, library, arch, cfg, process, arrays, calibration, data_path, log)
        if process.rank == 0:
            atomic_write(artifact, data)
        library.total_over_ranks(0.0, process)
    with open(artifact, "rb") as file:
        data = file.read()
    log.line(f"Serialized model: {len(data)} bytes")
    begin = time.perf_counter()
    rows_at = [int(position) for position in os.environ.get("ROWS_AT", "").split(",") if position]
    loaded = load_artifact(ops, arch, cfg, data)
    score, losses, rows = score_rows(ops, library, arch, cfg, process, loaded, data_path, tokenizer, log, rows_at)
    spent = (time.perf_counter() - begin) * 1000
    log.line(
        f"final_ternary_roundtrip_exact val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f} tokens:{score.tokens} bytes:{score.bytes} "
        f"stride:{cfg.eval.eval_stride} eval_time:{spent:.0f}ms"
    )
    if os.environ.get("LOSSES") and process.rank == 0:
        atomic_write(os.environ["LOSSES"], losses.tobytes())
    if os.environ.get("ROWS") and process.rank == 0:
        atomic_write(os.environ["ROWS"], rows.tobytes())
