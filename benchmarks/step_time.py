"""Time of a training step under different settings, in alternating rounds: python benchmarks/step_time.py [--config FILE] NAME:key=value,... ...

Example: python benchmarks/step_time.py eager:train.compile=false compiled:train.compile=true
Random tokens, no data needed. Prints the median wall-clock milliseconds of a step for each name and the ratio to the first.
"""

import argparse
import statistics
import time

import numpy as np

from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.torch_backend import make_backend, start_process


def stepper(preset, settings):
    """A function that runs one step of a fresh model on random tokens -> seconds."""
    config, _, _ = load(preset, environ={}, overrides=settings)
    arch = load_arch(config.model.name)
    specs = arch.param_specs(config)
    backend = make_backend(torch_ops, arch, config, specs, init_params(specs, 0), start_process())
    rows = config.train.train_batch_tokens // config.train.train_seq_len
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, rows, config.train.train_seq_len)).astype(np.int32)

    def step():
        begin = time.perf_counter()
        backend.step(tokens[0], tokens[1], 1.0, True, False)()
        return time.perf_counter() - begin

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=5, help="steps of one variant in a round")
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()
    steps = {}
    for variant in options.variants:
        name, _, settings = variant.partition(":")
        steps[name] = stepper(options.config, [item for item in settings.split(",") if item])
        steps[name](), steps[name]()
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(statistics.median(step() for _ in range(options.steps)))
    first = statistics.median(next(iter(times.values())))
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:<24}{middle * 1000:8.1f} ms   ratio {middle / first:.3f}   best {min(values) * 1000:.1f} ms")


if __name__ == "__main__":
    main()
