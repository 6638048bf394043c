"""What the scan of complex numbers is worth to `sem`: python -m benchmarks.sem_scan [--config FILE] [--rounds 3] [--give-back] [--scan-only] [--chunk 8] [key=value ...]

Prints CPU seconds of one thread, medians of rounds in which all take turns:
  the scan alone, four windows and 128 channels, forward and back, against a loop over the tokens' slices from one `unbind`; the loop of the
  published form, which indexes every token (so that each slice's gradient is as long as the text), is in the whole model only
  the way back alone as the text doubles from 128 to 1,024 tokens
  forward and back of the whole model as a training step has it, on one batch, with the scan and with the published loop in its place

Freed memory is kept between calls, as every training keeps it; --give-back leaves that to the C library: fresh pages for every array then
make the longer text look worse than it is.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from trit.config_load import load
from trit.launch import keep_freed_memory
from trit.models import sem
from trit.ops import complex_scan, torch_ops
from trit.params import init_params
from trit.train.loss import training_loss

SCAN = torch_ops.complex_scan


def states_of(parts, slices):
    """States (B, T, 2 C) one token after another from a function that cuts an array (B, T, C) into its times."""
    (ar, ai), (br, bi) = ([slices(part) for part in x.chunk(2, -1)] for x in parts)
    real, imaginary, states = torch.zeros_like(br[0]), torch.zeros_like(bi[0]), []
    for a, b, c, d in zip(ar, ai, br, bi, strict=True):
        real, imaginary = a * real - b * imaginary + c, a * imaginary + b * real + d
        states.append(torch.cat([real, imaginary], -1))
    return torch.stack(states, 1)


def unbind_loop(decays, inputs):
    """The loop over time as a model without complex dtypes has to write it; slices come from one `unbind`."""
    return states_of((decays, inputs), lambda x: x.unbind(1))


def indexed_loop(decays, inputs):
    """The published loop: every token is indexed by itself."""
    return states_of((decays, inputs), lambda x: [x[:, t] for t in range(x.shape[1])])


def medians(forms, rounds):
    """{name: median CPU seconds} over rounds in which all take turns, after one round that does not count."""
    times = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, run in forms.items():
            begin = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def scan_case(length):
    """(decays with moduli below 1, inputs), (4, length, 256)."""
    generator = torch.Generator().manual_seed(0)
    modulus = 1 - 10.0 ** (-0.3 - 3.7 * torch.rand((4, length, 128), generator=generator))
    angle = 6.0 * torch.rand(modulus.shape, generator=generator) - 3.0
    decays = torch.cat([modulus * angle.cos(), modulus * angle.sin()], -1)
    return [decays.requires_grad_(), torch.randn(decays.shape, generator=generator).requires_grad_()]


def both_ways(function, given):
    """A function () that runs `function` forward and back."""
    return lambda: torch.autograd.grad(function(*given).square().sum(), given)


def ways_back(lengths):
    """{length: function () that runs the way back alone}."""
    forms = {}
    for length in lengths:
        given = scan_case(length)
        found = SCAN(*given)
        forms[length] = lambda found=found, given=given: torch.autograd.grad(found, given, found, retain_graph=True)
    return forms


def model_forms(preset, overrides):
    """{name: function ()} of forward and back of the whole model with the scan and with the published loop."""
    cfg, _, _ = load(preset, environ={}, overrides=overrides)
    p = {name: torch.from_numpy(x).requires_grad_() for name, x in init_params(sem.param_specs(cfg), 1).items()}
    shape = (cfg.train.train_batch_tokens // cfg.train.train_seq_len, cfg.train.train_seq_len + 1)
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, cfg.model.vocab_size, shape).astype(np.int32))

    def form(scan):
        held = {}

        def run():
            torch_ops.complex_scan = scan
            try:
                with torch.no_grad():
                    held.update(sem.update_state(torch_ops, {**p, **held}, cfg))
                torch.autograd.grad(training_loss(torch_ops, sem, cfg, {**p, **held}, rows[:, :-1], rows[:, 1:])[0], list(p.values()))
            finally:
                torch_ops.complex_scan = SCAN

        return run

    return {"scan": form(SCAN), "indexed loop": form(indexed_loop)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sem_2m.toml", help="preset of the whole model")
    parser.add_argument("--rounds", type=int, default=3, help="of the whole model; the rest take five times as many")
    parser.add_argument("--give-back", action="store_true")
    parser.add_argument("--chunk", type=int, default=complex_scan.CHUNK, help="steps of a chunk of the scan")
    parser.add_argument("--scan-only", action="store_true", help="leave the whole model out")
    options, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    complex_scan.CHUNK = options.chunk
    if not options.give_back:
        keep_freed_memory()
    given = scan_case(512)
    found = medians({"scan": both_ways(SCAN, given), "unbind loop": both_ways(unbind_loop, given)}, 5 * options.rounds)
    print(
        f"scan {found['scan'] * 1000:.1f} ms, unbind loop {found['unbind loop'] * 1000:.1f} ms, ratio {found['scan'] / found['unbind loop']:.2f}"
    )
    back = medians(ways_back((128, 256, 512, 1024)), 5 * options.rounds)
    print("way back: " + ", ".join(f"{length} tokens {seconds * 1000:.2f} ms" for length, seconds in back.items()))
    print(
        "as the text doubles: " + ", ".join(f"to {length} x{back[length] / back[length // 2]:.2f}" for length in (256, 512, 1024)),
        flush=True,
    )
    if options.scan_only:
        return
    whole = medians(model_forms(options.config, overrides), options.rounds)
    print(
        f"model: scan {whole['scan']:.2f} s, indexed loop {whole['indexed loop']:.2f} s, ratio {whole['scan'] / whole['indexed loop']:.3f}"
    )


if __name__ == "__main__":
    main()
