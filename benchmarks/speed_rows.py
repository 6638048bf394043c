"""The table of this trainer's own speed over shapes and window lengths, on a processor or a GPU."""

import concurrent.futures
import multiprocessing

import torch

from benchmarks.speed import build, flops_per_token, shape_settings
from benchmarks.speed_measure import PHASES, machine, measure, product_rate
from trit.launch import keep_freed_memory
from trit.params import parameter_count
from trit.train.torch_backend import start_process

COLUMNS = {
    "shape": ("shape", "s"),
    "parameters": ("parameters", ",d"),
    "length": ("T", "d"),
    "tokens": ("tokens a step", ",d"),
    "step_ms": ("ms a step", ".1f"),
    **{phase: (phase, ".1f") for phase in PHASES},
    "tokens_per_second": ("tokens/s", ",.0f"),
    "mfu": ("MFU", ".1%"),
    "peak_mib": ("peak MiB", ".0f"),
    "growth_mib": ("growth MiB", ".1f"),
    "recompilations": ("recompiled", "d"),
    "syncs": ("host waits a step", ".1f"),
}


def measured_row(name, length, tokens, settings, threads, steps, more, keep=True):
    """(machine, one row of `COLUMNS`) of a shape; MFU is a share of the matrix rate of train.compute_dtype measured just before.
    Freed memory is kept as the trainer keeps it, or not."""
    if keep:
        keep_freed_memory()
    process = start_process()
    if process.device == "cpu" and threads:
        torch.set_num_threads(threads)
    tokens = -(-max(tokens, length * process.world) // (length * process.world)) * length * process.world
    config, arch, specs = build(shape_settings(name, length, tokens) + settings, process.world)
    rate = product_rate(process.device, getattr(torch, config.train.compute_dtype))
    found = measure(config, arch, specs, process, steps, more=more)
    row = {"shape": name, "parameters": parameter_count(specs), "length": length, "tokens": tokens, **found._asdict(), **found.phases}
    row["product_rate"] = rate
    row["mfu"] = flops_per_token(config, specs) * found.tokens_per_second / (rate * process.world)
    return machine(process), row


def measured_rows(rows, tokens, settings, threads, steps, more, say, alone=True, keep=True):
    """(machine, rows): each in a process of its own where `alone`, so that peak memory is its own (a GPU counts it anew anyway)."""
    name, found = "", []
    for shape, length in rows:
        arguments = shape, length, tokens, settings, threads, steps, more, keep
        if alone:
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                name, row = pool.submit(measured_row, *arguments).result()
        else:
            name, row = measured_row(*arguments)
        say(f"  {shape} T={length}: {row['step_ms']:.1f} ms a step, {row['tokens_per_second']:,.0f} tokens/s, MFU {row['mfu']:.1%}")
        found.append(row)
    return name, found
