"""Allocated bits against the same bits everywhere, at equal bytes: python -m benchmarks.allocate --run RUN [--json FILE]

For each uniform width (ternary, 2, 3 .. bits in every matrix, the embedding and the engram; the best of five clips for every tensor,
error feedback in matrices) the packed bytes and the validation bits per byte in plain chunks, then the allocator's with that many
bytes as its cap. Every choice is made on held-out training text; validation text gives the last columns only.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from trit.compress.allocate import Choice, allocate, arrays_of, ladders, packed_size, product
from trit.compress.gptq import rounded, spec_groups
from trit.compress.quantize import QuantTensor, dequantize, group_counts, quantize, stored_scale
from trit.config import RunArgs
from trit.data.loader import calibration_tokens
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import on_grid
from trit.submission import loss_meter, score_arrays, statistics
from trit.train import torch_backend
from trit.train.checkpoint import load_checkpoint, trained_arrays
from trit.train.log import Log

CLIPS = (1.5, 2.0, 2.5, 3.0, 4.0)


def uniform_choice(cfg, curve, kept, bits):
    """The tensor on `bits` bits with a scale for each group's RMS, best of the clips (1 bit is ternary); scalars stay as they are."""
    spec = curve.spec
    if spec.group == "scalar":
        return Choice(spec, kept, 0.0, 0.0, 0.0, 0.0, "kept")
    top = 1 if bits == 1 else 2 ** (bits - 1) - 1
    groups, found = spec_groups(torch_ops, spec, curve.array), []
    power = np.sqrt((groups.astype(np.float64) ** 2).sum(1, keepdims=True) / np.resize(group_counts(spec), (len(groups), 1)))
    for clip in CLIPS if bits > 1 else (0.8, 1.0, 1.25, 1.5, 2.0):
        stored = on_grid(spec, bits, spec.group_size, clip)
        scales = torch_ops.to_numpy(stored_scale(torch_ops, cfg, torch_ops.from_numpy((power * clip / top).astype(np.float32))))
        codes = rounded(torch_ops, stored, curve.array, scales, top, 0.0, curve.moment)
        tensor = QuantTensor(codes.astype(np.int8), scales.astype(np.float16))
        change = dequantize(torch_ops, cfg, [stored], {spec.name: tensor})[spec.name] - curve.array
        found.append(Choice(stored, tensor, 0.0, 0.5 * product(curve, change, change), clip, 0.0, "size"))
    return min(found, key=lambda choice: choice.harm)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a training run")
    parser.add_argument("--widths", default="1,2,3,4,5,6", help="uniform widths; 1 is ternary")
    parser.add_argument("--shares", default="", help="caps as shares of the bytes as trained, for example 0.95,0.9")
    parser.add_argument("--tokens", type=int, default=0, help="held-out training tokens to use; 0 takes compress.calibration_tokens")
    parser.add_argument("--json", help="file for one JSON line a row")
    options = parser.parse_args()
    log, process = Log(), torch_backend.start_process()
    config, state, *_ = load_checkpoint(Path(options.run) / "checkpoint.npz")
    run = RunArgs(**json.loads((Path(options.run) / "run.json").read_text()))
    config = replace(
        config,
        eval=replace(type(config.eval)(), eval_stride=config.eval.eval_seq_len),
        compress=replace(config.compress, allocate=True, calibration_seconds=1e9, calibration_evals=48),
    )
    arch = load_arch(config.model.name)
    specs, arrays = arch.param_specs(config), trained_arrays(state)
    tokens = calibration_tokens(config, run.data_path)[-options.tokens :]
    kept = quantize(torch_ops, config, specs, {name: torch_ops.from_numpy(array) for name, array in arrays.items()}, {})
    values = dequantize(torch_ops, config, specs, kept)
    mean_loss = loss_meter(torch_ops, torch_backend, arch, config, process, tokens)
    moments, curvatures = statistics(torch_ops, torch_backend, arch, config, process, values, tokens)
    begin = time.perf_counter()
    made = ladders(torch_ops, config, specs, kept, moments, curvatures)
    log.line(f"{sum(map(len, made.hulls))} storages of {len(specs)} tensors in {time.perf_counter() - begin:.0f}s")

    def score(weights):
        return score_arrays(torch_ops, torch_backend, arch, config, process, weights, run.data_path, run.tokenizer_path, Log(rank=1))[0].bpb

    def row(name, cap, size, weights, seconds):
        rows.append(
            {
                "run": run.run_id,
                "storage": name,
                "cap": cap,
                "bytes": size,
                "held_out_nats": round(mean_loss(weights), 5),
                "bpb": round(score(weights), 5),
                "seconds": round(seconds, 1),
            }
        )
        log.line(json.dumps(rows[-1]))
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")

    rows = []
    start = packed_size(config, [Choice(spec, kept[spec.name], 0.0, 0.0, 0.0, 0.0, "kept") for spec in specs])
    row("as trained", 0, start, values, 0.0)

    def allocated_row(name, cap):
        begin = time.perf_counter()
        stored, tensors = allocate(torch_ops, config, made, mean_loss, cap, log)
        found = [Choice(spec, tensors[spec.name], 0.0, 0.0, 0.0, 0.0, "") for spec in stored]
        row(name, cap, packed_size(config, found), arrays_of(torch_ops, config, found), time.perf_counter() - begin)

    for share in filter(None, options.shares.split(",")):
        allocated_row(f"allocated, {share} of the bytes as trained", int(float(share) * start))
    first = len(rows)
    for bits in map(int, filter(None, options.widths.split(","))):
        begin = time.perf_counter()
        chosen = [uniform_choice(config, curve, kept[curve.spec.name], bits) for curve in made.curves]
        size = packed_size(config, chosen)
        name = "ternary" if bits == 1 else f"{bits} bits"
        row(name, 0, size, arrays_of(torch_ops, config, chosen), time.perf_counter() - begin)
        allocated_row(f"allocated, cap of {name}", size)
    for found in rows[:first]:
        log.line(f"| {found['storage']} | {found['bytes']:,} | {found['bpb']:.4f} |")
    print("| cap | uniform bytes | uniform bits per byte | allocated bytes | allocated bits per byte | change |\n|---|---|---|---|---|---|")
    for uniform, found in zip(rows[first::2], rows[first + 1 :: 2]):
        assert found["bytes"] <= uniform["bytes"] and math.isfinite(found["bpb"])
        change = found["bpb"] / uniform["bpb"] - 1
        print(
            f"| {uniform['storage']} | {uniform['bytes']:,} | {uniform['bpb']:.4f} | {found['bytes']:,} | {found['bpb']:.4f} | {change:+.2%} |"
        )
    print(f"as trained: {rows[0]['bytes']:,} bytes, {rows[0]['bpb']:.4f} bits per byte")


if __name__ == "__main__":
    main()
