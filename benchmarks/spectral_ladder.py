"""What each rule of writing the spectral model costs a step: python -m benchmarks.spectral_ladder [--rounds 20] [--batch 4] [key=value ...]

V0 convolves in complex128 and turns in polar coordinates; V1 the same in complex64; V2 is the model as it is, real pairs and Cartesian
turns, run step by step; V3 is V2 compiled. V4 and V5 filter by block products instead of FFT, as evaluation does. One set of weights, one
batch, forward and backward pass of a micro-batch; variants take turns, and the median of CPU seconds counts, on one thread unless
--threads says more. Prints losses too: they must agree. An optimiser step of several micro-batches takes as many of these and its update.
"""

import argparse
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch._dynamo.utils import counters

from trit.config_load import load
from trit.launch import keep_freed_memory
from trit.layers import split_step
from trit.models import spectral_lm
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.loss import training_loss

PLANES = split_step.turned


def complex_convolution(kind):
    """`complex_filter` as one would write it first: complex tensors, transform over the time axis where it lies."""

    def function(x, taps):
        half = x.shape[2] // 2
        size = x.shape[1] + taps.shape[1] - 1
        z = torch.complex(x[..., :half], x[..., half:]).to(kind)
        g = torch.complex(taps[:half], taps[half:]).to(kind)
        y = torch.fft.ifft(torch.fft.fft(z, size, dim=1) * torch.fft.fft(g, size).mT, dim=1)[:, : x.shape[1]]
        return torch.cat([y.real, y.imag], 2).to(x.dtype)

    return function


def polar(kind):
    """`turned` by magnitude and angle."""

    def function(ops, p, cfg, name, x, u):
        half = x.shape[2] // 2
        z = torch.complex(x[..., :half], x[..., half:]).to(kind)
        size = z.abs()
        z = torch.polar(size, z.angle() + split_step.turn_angle(ops, p, cfg, name, (size * size).to(x.dtype), u))
        return torch.cat([z.real, z.imag], 2).to(x.dtype)

    return function


def variant(name, cfg, weights, rows):
    """A function () -> (loss, gradients) of one of the rungs."""
    kind = {"V0": torch.complex128, "V1": torch.complex64}.get(name)
    ops = torch_ops
    if kind:
        ops = SimpleNamespace(**vars(torch_ops))
        ops.complex_filter = complex_convolution(kind)
    turned = polar(kind) if kind else PLANES

    def loss(p):
        return training_loss(ops, spectral_lm, cfg, p, rows[:, :-1], rows[:, 1:])[0]

    if name in ("V3", "V5"):
        loss = torch.compile(loss, fullgraph=True)

    def run():
        split_step.turned = turned
        value = loss(weights)
        return float(value.detach()), torch.autograd.grad(value, list(weights.values()))

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/spectral_1m6.toml")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--names", default="V0,V1,V2,V3,V4,V5")
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every training does
    names, runs, built = options.names.split(","), {}, {}
    for name in names:
        form = ["arch.fir_training=blocks"] if name in ("V4", "V5") else []
        cfg, _, _ = load(options.config, environ={}, overrides=[*overrides, *form])
        weights = {key: torch.from_numpy(x).requires_grad_() for key, x in init_params(spectral_lm.param_specs(cfg), 1).items()}
        shape = (options.batch, cfg.train.train_seq_len + 1)
        rows = torch.from_numpy(np.random.default_rng(0).integers(0, cfg.model.vocab_size, shape).astype(np.int32))
        runs[name] = variant(name, cfg, weights, rows)
        begin = time.perf_counter()
        built[name] = (*runs[name](), time.perf_counter() - begin)
        runs[name]()
    times = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    first, model = statistics.median(times[names[0]]), built["V2" if "V2" in names else names[0]]
    for name in names:
        loss, gradients, seconds = built[name]
        apart = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-9)) for a, b in zip(gradients, model[1]))
        middle = statistics.median(times[name])
        print(
            f"{name}  {middle * 1000:8.1f} ms  ratio to {names[0]} {middle / first:.2f}  best {min(times[name]) * 1000:.1f} ms  "
            f"first call {seconds:.1f} s  loss {loss:.6f}  gradients apart {apart:.1e}"
        )
    if {"V2", "V3"} <= set(names):
        print(
            f"compiled over eager (V3 / V2) {statistics.median(times['V3']) / statistics.median(times['V2']):.3f}, of the bests "
            f"{min(times['V3']) / min(times['V2']):.3f}; graphs {counters['stats']['unique_graphs']}, breaks {sum(counters['graph_break'].values())}"
        )


if __name__ == "__main__":
    main()
