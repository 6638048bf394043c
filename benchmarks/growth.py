"""How the cost of a token grows with the window: python -m benchmarks.growth [--lengths 128,256,512,1024] [--tokens 4096] NAME:key=value,... ...

Example: python -m benchmarks.growth unet: skc:model.name=skc,arch.layer_map=as,arch.skc_state_dim=64 spectral_lm:model.name=spectral_lm
A variant's name comes first, then settings over --config and the common ones after --base. A comma between two settings divides them; one
inside a value does not, as long as no = follows it. Every step has the same number of tokens, cut into windows of each length. Random
tokens, no data needed. Nothing is compiled unless a variant says train.compile=true: every variant at every length is minutes of it.

One round takes a training step (forward, backward, update) and an evaluation of as many tokens, without gradients, of every variant at
every length, in turn, so that a busy machine slows all alike. CPU seconds of this process count, on one thread unless --threads says more:
medians over the rounds. Printed are tokens a CPU second and the exponent a of seconds ~ length^a at equal tokens, by least squares on
logarithms: 0 is linear in the text, 1 is quadratic in the window. Below the table the same for the longest two lengths alone, where fixed
costs hide least.
"""

import argparse
import math
import re
import statistics
import time

import numpy as np
import torch

from trit.config_load import load
from trit.launch import keep_freed_memory
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params, parameter_count
from trit.train.torch_backend import evaluator, make_backend, start_process


def settings_of(text):
    """[key=value] of comma-separated settings, whose values may hold commas too."""
    return [item for item in re.split(r",(?=[\w.]+=)", text) if item]


def measured(preset, settings, length, tokens):
    """(function that takes a training step, function that evaluates as many tokens, number of weights) of a fresh model."""
    sizes = {"train_seq_len": length, "train_batch_tokens": tokens, "grad_accum_steps": 1}
    sizes = [f"train.{key}={value}" for key, value in sizes.items()] + [f"eval.eval_seq_len={length}", f"eval.eval_stride={length}"]
    sizes += [
        f"model.yarn_max_len={max(length, 256)}",
        "track.track=non_record_16mb",
        "eval.fit_temperature=false",
        "train.compile=false",
        *settings,
    ]
    config, _, _ = load(preset, environ={}, overrides=sizes)
    arch, process = load_arch(config.model.name), start_process()
    specs = arch.param_specs(config)
    arrays = init_params(specs, 0)
    backend = make_backend(torch_ops, arch, config, specs, arrays, process)
    judge = evaluator(torch_ops, arch, config, arrays, process)
    shape = (2, tokens // length, length)
    rows = np.random.default_rng(0).integers(0, config.model.vocab_size, shape).astype(np.int32)

    def step():
        backend.step(rows[0], rows[1], 1.0, True, False)()

    def evaluate():
        judge.losses(rows[0], rows[1])

    return step, evaluate, parameter_count(specs)


def growth_exponent(lengths, seconds):
    """a of seconds ~ length^a, by least squares on logarithms."""
    x, y = np.log(lengths), np.log(seconds)
    return float(np.polyfit(x, y, 1)[0])


def cpu_seconds(function):
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/unet.toml")
    parser.add_argument("--base", default="", help="settings of all variants, comma-separated")
    parser.add_argument("--lengths", default="128,256,512,1024", help="window lengths in tokens")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step, a multiple of every length")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("variants", nargs="+", metavar="NAME:key=value,...")
    options = parser.parse_args(arguments)
    lengths = [int(part) for part in options.lengths.split(",")]
    if len(lengths) < 2 or any(options.tokens % length for length in lengths):
        parser.error(f"--tokens {options.tokens} must be a multiple of every length, and --lengths {options.lengths} name two or more")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every training does
    runs, weights = {}, {}
    for variant in options.variants:
        name, _, text = variant.partition(":")
        for length in lengths:
            *runs[name, length], weights[name] = measured(
                options.config, settings_of(options.base) + settings_of(text), length, options.tokens
            )
            for run in runs[name, length]:
                run()
    times = {(*key, kind): [] for key in runs for kind in (0, 1)}
    for _ in range(options.rounds):
        for key, pair in runs.items():
            for kind, run in enumerate(pair):
                times[*key, kind].append(cpu_seconds(run))
    middle = {key: statistics.median(found) for key, found in times.items()}
    print(f"tokens a CPU second, {options.tokens} tokens a step, {options.rounds} rounds, {options.threads} threads")
    print(f"{'':<22}{'':<12}{'weights':>10}" + "".join(f"{length:>10}" for length in lengths) + f"{'exponent':>10}{'last two':>10}")
    for kind, word in enumerate(("training", "evaluation")):
        for name in dict.fromkeys(name for name, _ in runs):
            seconds = [middle[name, length, kind] for length in lengths]
            speeds = "".join(f"{options.tokens / each:>10,.0f}" for each in seconds)
            last = math.log(seconds[-1] / seconds[-2]) / math.log(lengths[-1] / lengths[-2])
            print(f"{name:<22}{word:<12}{weights[name]:>10,}{speeds}{growth_exponent(lengths, seconds):>10.2f}{last:>10.2f}")


if __name__ == "__main__":
    main()
