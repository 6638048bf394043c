"""Calibration on held-out training text: the dead zone and scale rule of every ternary tensor, accepted by measured loss.

The trained network knows only its rounded weights, so a candidate is judged by the loss it gives, never by its distance to the
latent weights (skc.md D2). Input moments order the search: the tensors whose output a candidate moves most are tried first.
"""

import time

import numpy as np

from trit.compress.quantize import dequantize, quantize

# On both sides of the trained half; a refitted scale or a threshold of 0.7 hardly ever helps (docs/LOG.md).
CALIBRATION_CANDIDATES = ((0.6, False), (0.4, False), (0.5, True))


def stored_arrays(ops, cfg, specs, p, calibration):
    """{name: float32 array} exactly as a reloaded artifact would hold the parameters `p` (arrays of the backend)."""
    return dequantize(ops, cfg, specs, quantize(ops, cfg, specs, p, calibration))


def output_change(ops, cfg, spec, p, stored, moments, choice):
    """Share by which `choice` moves the tensor's output: the mean squares of the inputs weigh the columns of the squared difference."""
    moved = stored_arrays(ops, cfg, [spec], p, {spec.name: choice})[spec.name] - stored[spec.name]
    weights = np.diagonal(moments[spec.name]) if spec.name in moments else np.ones(spec.shape[-1], np.float32)
    return float((moved**2 * weights).sum() / ((stored[spec.name] ** 2 * weights).sum() + 1e-12))


def calibrate(ops, cfg, specs, arrays, make_losses, observe_inputs, tokens, log):
    """{tensor name: (threshold, refit)} for the tensors where another choice than the trained one lowers the loss.

    `make_losses(arrays)` gives a function (inputs, targets) -> losses (B, T); `observe_inputs(arrays, inputs)` the second
    moments of every matrix's inputs; `tokens` (n,) is training text that was never trained on. A change must help on both halves of the text.
    Spends at most compress.calibration_evals evaluations and compress.calibration_seconds seconds.
    """
    begin, length = time.perf_counter(), cfg.train.train_seq_len
    rows = (len(tokens) - 1) // length
    if not cfg.compress.calibration_evals or rows < 2:
        return {}
    inputs, targets = (tokens[i : i + rows * length].reshape(rows, length).astype(np.int32) for i in (0, 1))
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    stored = stored_arrays(ops, cfg, specs, p, {})

    def halves(weights):
        losses = make_losses(weights)(inputs, targets).astype(np.float64)
        return losses[: rows // 2].mean(), losses[rows // 2 :].mean()

    moments = observe_inputs(stored, inputs[:4])
    ternary = [spec for spec in specs if spec.scheme == "ternary"]
    change = {spec.name: output_change(ops, cfg, spec, p, stored, moments, CALIBRATION_CANDIDATES[0]) for spec in ternary}
    best, chosen, spent = halves(stored), {}, 1
    start = best
    for candidate in CALIBRATION_CANDIDATES:
        for spec in sorted(ternary, key=lambda spec: -change[spec.name]):
            # An evaluation that would end after the limit is not begun: the mean one so far says how long it takes.
            late = (time.perf_counter() - begin) * (1.0 + 1.0 / spent) > cfg.compress.calibration_seconds
            if late or spent >= cfg.compress.calibration_evals:
                break
            if candidate == (cfg.quant.ternary_threshold, cfg.quant.ternary_scale == "least_squares"):
                continue
            trial = dict(stored)
            trial.update(stored_arrays(ops, cfg, [spec], p, {spec.name: candidate}))
            found, spent = halves(trial), spent + 1
            if found[0] < best[0] and found[1] < best[1]:
                best, stored = found, trial
                chosen[spec.name] = candidate
    log.line(
        f"calibration: {spent} evaluations in {time.perf_counter() - begin:.1f}s, {len(chosen)} of {len(ternary)} ternary tensors changed, "
        f"held-out training loss {sum(start) / 2:.5f} -> {sum(best) / 2:.5f}"
    )
    return chosen
