"""What a training step costs under each gradient rule: python -m benchmarks.gradient_rules [--config FILE] [--steps 5] [key=value ...]

Each rule of `equilibrium` in a process of its own, on random tokens: the median of CPU milliseconds of a step after two first ones, peak memory of
the process above what it had before the first step, evaluations of the force in the last step (transposed products of the adjoint among
them), its worst residual and rho. Then rules again at other lengths of the relaxation: what goes back through all steps keeps them all.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

from trit.config_load import load
from trit.models import equilibrium
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.torch_backend import make_backend, start_process

RULES = ("bptt", "adjoint", "asym_ep", "asym_ep_tracked")


def measured(config, settings, steps):
    """{ms, mib, evaluations, residual, rho} of training steps of one configuration in this process."""
    torch.set_num_threads(1)
    cfg, _, _ = load(config, environ={}, overrides=settings)
    specs = equilibrium.param_specs(cfg)
    backend = make_backend(torch_ops, equilibrium, cfg, specs, init_params(specs, 1), start_process())
    shape = (2, cfg.train.train_batch_tokens // cfg.train.train_seq_len, cfg.train.train_seq_len)
    generator, times = np.random.default_rng(1), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps + 2):
        tokens = generator.integers(0, cfg.model.vocab_size, shape).astype(np.int32)
        begin = time.process_time()
        backend.step(tokens[0], tokens[1], 1.0, True, False)()
        times.append(time.process_time() - begin)
    peak, record = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, backend.state()["derived/relaxed"]
    return {
        "ms": statistics.median(times[2:]) * 1000,
        "mib": (peak - before) / 1024,
        "evaluations": int(record[5]),
        "residual": float(record[0]),
        "rho": float(record[3]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/equilibrium_xs.toml")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="measure the settings given, in this process, and print JSON")
    options, settings = parser.parse_known_args()
    if options.alone:
        print(json.dumps(measured(options.config, settings, options.steps)))
        return
    print(f"{'rule':<18}{'steps':>6}{'ms a step':>12}{'peak MiB':>10}{'evaluations':>13}{'residual':>10}{'rho':>10}")
    for rule, length in [*((rule, 60) for rule in RULES), ("bptt", 15), ("bptt", 150), ("adjoint", 150)]:
        given = [
            *settings,
            f"arch.gradient={rule}",
            f"arch.relax_steps={length}",
            f"arch.relax_rate={15 / length if length > 15 else 0.25}",
        ]
        call = [sys.executable, "-m", "benchmarks.gradient_rules", "--alone", "--config", options.config, "--steps", str(options.steps)]
        found = json.loads(subprocess.run([*call, *given], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(
            f"{rule:<18}{length:>6}{found['ms']:>12.0f}{found['mib']:>10.0f}{found['evaluations']:>13}{found['residual']:>10.1e}{found['rho']:>10.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
