"""Is a rotation or a low-rank correction worth its bytes? python -m benchmarks.storages --run RUN [--measure]

For every matrix of a run trained in floats: the harm (nats a token to second order, trit/compress/allocate.py) at equal bits stored
as it is and rotated inside its groups; and with the residual's best low-rank part in 8-bit factors, against the same bytes spent on
a finer step. With --measure the loss of held-out training text with all matrices at about --bits bits, plain and rotated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from trit.compress.allocate import Curve, choice_of, code_bits, hull, product
from trit.compress.quantize import dequantize
from trit.config import RunArgs
from trit.data.loader import calibration_tokens
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import loss_meter, statistics
from trit.train import torch_backend
from trit.train.checkpoint import load_checkpoint, trained_arrays


def root(moment):
    """(square root, inverse square root) of a positive definite matrix (I, I)."""
    values, vectors = np.linalg.eigh(moment + 0.01 * np.trace(moment) / len(moment) * np.eye(len(moment)))
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def corrected_harm(curve, value, rank):
    """Harm after adding to `value` (O, I) the residual's best part of a rank in the measure of harm, factors rounded to 8 bits."""
    rows = np.sqrt(curve.curvature.sum(1, keepdims=True) / np.trace(curve.moment)) + 1e-12
    whole, inverse = root(curve.moment)
    left, size, right = np.linalg.svd(rows * (curve.array - value) @ whole, full_matrices=False)
    factors = left[:, :rank] * np.sqrt(size[:rank]) / rows, (np.sqrt(size[:rank])[:, None] * right[:rank]) @ inverse
    steps = abs(factors[0]).max(0, keepdims=True) / 127, abs(factors[1]).max(1, keepdims=True) / 127
    first, second = (np.rint(factor / step) * step for factor, step in zip(factors, steps))
    change = value + first @ second - curve.array
    return 0.5 * product(curve, change, change)


def line_of(cfg, curve):
    """Hull of the matrix's choices, priced by the coder."""
    found = [choice_of(torch_ops, cfg, curve, "equal", 4.0 * 2 ** (-place / 2), dead) for place in range(13) for dead in (0.0, 0.12)]
    return hull([c._replace(bits=code_bits(cfg, c.spec, c.tensor, 1, (1,))[0]) for c in hull(found)])


def harm_at(line, bits):
    """Harm at a number of bits, between two choices log-linearly."""
    return float(np.exp(np.interp(bits, [c.bits for c in line], [np.log(c.harm + 1e-12) for c in line])))


def nearest(line, bits):
    return min(line, key=lambda c: abs(c.bits - bits))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a run trained with float storage")
    parser.add_argument("--tokens", type=int, default=32768, help="held-out training tokens to use")
    parser.add_argument("--bits", type=float, default=2.5, help="bits a weight of --measure")
    parser.add_argument("--measure", action="store_true", help="also measure losses")
    options = parser.parse_args()
    process = torch_backend.start_process()
    config, state, *_ = load_checkpoint(Path(options.run) / "checkpoint.npz")
    run = RunArgs(**json.loads((Path(options.run) / "run.json").read_text()))
    quant = replace(config.quant, rotate_matrices=True)
    config = replace(config, quant=quant, eval=type(config.eval)(), compress=replace(config.compress, allocate=True))
    arch, arrays = load_arch(config.model.name), trained_arrays(state)
    tokens = calibration_tokens(config, run.data_path)[-options.tokens :]
    moments, curvatures = statistics(torch_ops, torch_backend, arch, config, process, arrays, tokens)
    print(
        "| matrix | harm at 1.5 / 2.5 / 3.5 bits | rotated: ratio | rank 1 / 2 / 4 at 2.5 bits: ratio to a finer step |\n|---|---|---|---|"
    )
    worlds, ratios = {False: dict(arrays), True: dict(arrays)}, []
    for spec in arch.param_specs(config):
        if spec.group != "matrix":
            continue
        lines = {}
        for rotated in (False, True):
            moment = moments[spec.name].astype(np.float64)
            curve = Curve(spec._replace(rotate=rotated), arrays[spec.name], curvatures[spec.name].astype(np.float64), moment, ())
            lines[rotated] = line_of(config, curve)
            chosen = nearest(lines[rotated], options.bits * curve.array.size)
            worlds[rotated][spec.name] = dequantize(torch_ops, config, [chosen.spec], {spec.name: chosen.tensor})[spec.name]
        points = [harm_at(lines[False], bits * curve.array.size) for bits in (1.5, 2.5, 3.5)]
        turned = [harm_at(lines[True], bits * curve.array.size) / point for bits, point in zip((1.5, 2.5, 3.5), points)]
        plain = nearest(lines[False], 2.5 * curve.array.size)
        value = dequantize(torch_ops, config, [plain.spec], {spec.name: plain.tensor})[spec.name].astype(np.float64)
        low = [corrected_harm(curve, value, rank) / harm_at(lines[False], plain.bits + 8 * rank * sum(spec.shape)) for rank in (1, 2, 4)]
        ratios.append((turned, low))
        cells = [" / ".join(f"{x:.5f}" for x in points), *(" / ".join(f"{x:.2f}" for x in part) for part in (turned, low))]
        print(f"| {spec.name} | {' | '.join(cells)} |", flush=True)
    middle = [" / ".join(f"{x:.2f}" for x in np.exp(np.log(part).mean(0))) for part in (np.array(r) for r in zip(*ratios))]
    print(f"| geometric mean | | {' | '.join(middle)} |")
    if options.measure:
        loss = loss_meter(torch_ops, torch_backend, arch, config, process, tokens)
        print(
            f"held-out loss {loss(arrays):.5f}; matrices near {options.bits} bits {loss(worlds[False]):.5f}, rotated {loss(worlds[True]):.5f}"
        )


if __name__ == "__main__":
    main()
