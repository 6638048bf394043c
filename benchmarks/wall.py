"""Where a relaxation stops having a rest, and what moves that wall: python -m benchmarks.wall [--steps 500] [--seeds 3] NAME:key=value,...

Trains configs/equilibrium_xs.toml on characters of the embedded documentation (the 63 commonest and one for the rest), so that no data are
needed, with Adam and without rounding as in the specification (equilibrium.md A7). Prints for every name and seed, some twenty times, the loss
of the step, the residual of its worst token, texts left out and the weight of the penalty; then for each the step of the first burst (a
residual above 0.3 and a loss a nat above its best mean of twenty steps), that best mean, the last, and CPU milliseconds of a step.
Example: python -m benchmarks.wall plain:arch.jacobian_penalty=0 kept:
"""

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from trit.config_load import load
from trit.data.corpus import pydocs
from trit.models import equilibrium
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.torch_backend import make_backend, start_process

ROOT = Path(__file__).resolve().parent.parent
BASE = [
    "model.vocab_size=64",
    "quant.matrix_scheme=fp16",
    "quant.embed_bits=16",
    "arch.cell_optimizer=adam",
    "train.max_wallclock_seconds=0",
]
BASE += ["train.embed_lr=0.003", "train.adam_wd=0.01"]
TEXT = 200_000
WARM_STEPS, MEAN = 30, 20
BURST_RESIDUAL, BURST_LOSS = 0.3, 1.0


def characters():
    """int32 ids of the text's first characters."""
    text = "".join(pydocs())[:TEXT]
    common = {character: i + 1 for i, (character, _) in enumerate(Counter(text).most_common(63))}
    return np.array([common.get(character, 0) for character in text], np.int32)


def train(name, settings, ids, seed, steps):
    """(step of the first burst or None, best mean loss before it, last mean loss, CPU milliseconds of a step) of one training."""
    cfg, _, _ = load(ROOT / "configs/equilibrium_xs.toml", environ={}, overrides=[*BASE, *settings])
    specs = equilibrium.param_specs(cfg)
    backend = make_backend(torch_ops, equilibrium, cfg, specs, init_params(specs, seed), start_process())
    generator, length = np.random.default_rng(seed), cfg.train.train_seq_len
    rows, losses, burst, best, begin = cfg.train.train_batch_tokens // length, [], None, float("inf"), time.process_time()
    for step in range(steps):
        at = generator.integers(0, len(ids) - length - 1, rows)
        batch = np.stack([ids[place : place + length + 1] for place in at])
        loss, _ = backend.step(batch[:, :-1], batch[:, 1:], min(1.0, (step + 1) / WARM_STEPS), True, False)()
        losses.append(loss)
        record = {key[8:]: x for key, x in backend.state().items() if key.startswith("derived/")}
        worst, out = float(record["relaxed"][0]), int(record["relaxed"][4])
        if burst is None and step >= MEAN and not worst <= BURST_RESIDUAL and not loss <= best + BURST_LOSS:
            burst = step
        if burst is None and step >= MEAN:
            best = min(best, statistics.mean(losses[-MEAN:]))
        if step % max(steps // 20, 1) == 0 or step == steps - 1:
            weight = float(record["homeostat"][0]) if "homeostat" in record else 0.0
            print(
                f"{name} seed {seed} step {step}: loss {loss:.3f} worst residual {worst:.1e} left out {out} penalty {weight:.3f}",
                flush=True,
            )
    return burst, best, statistics.mean(losses[-MEAN:]), (time.process_time() - begin) / steps * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("variants", nargs="+")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ids, found = characters(), {}
    for seed in range(1, options.seeds + 1):
        for variant in options.variants:
            name, _, settings = variant.partition(":")
            found.setdefault(name, []).append(train(name, [item for item in settings.split(",") if item], ids, seed, options.steps))
    for name, rows in found.items():
        for seed, (burst, best, last, milliseconds) in enumerate(rows, 1):
            print(
                f"{name:<16} seed {seed}  burst {burst if burst is not None else 'none':>5}  best {best:.3f}  last {last:.3f}  {milliseconds:.0f} ms"
            )
        print(
            f"{name:<16} median   best {statistics.median(row[1] for row in rows):.3f}  last {statistics.median(row[2] for row in rows):.3f}"
        )


if __name__ == "__main__":
    main()
