"""Where a relaxation stops having a rest, and what moves that wall: python -m benchmarks.wall [--steps 500] [--seeds 1,2,3] [--out FILE] NAME:key=value,...

Trains configs/equilibrium_xs.toml on characters of the embedded documentation (the 63 commonest and one for the rest), so that no data are
needed, with Adam and without rounding as in the specification (equilibrium.md A7). Of NAME:open,... texts that are not at rest, or whose
adjoint is not found, count like all others: the burst that gates are there to prevent. Some twenty times, and at the end, the
weights are probed on eight texts that no step sees: residuals after the deployed steps (worst token) and of the state that training solves for, loss
after the deployed steps, the longest step that all tokens bear, and, at the end, texts that are not at rest (residual 0.01) after 600 steps of
0.1, 1,200 of 0.05 and by Newton's method.

Prints for each the step of the first burst (a residual above 0.3 and a loss a nat above its best mean of twenty steps), that
best mean, the last, texts left out in all, and CPU milliseconds of a step. --out keeps a JSON line for each finished training; trainings
that are in that file are not run again. --marks 40,80,120 prints the loss at those steps, the mean of the ten up to there; --plot draws loss,
residual and critical step over the training. Example: python -m benchmarks.wall plain:arch.jacobian_penalty=0 kept:
"""

import argparse
import contextlib
import json
import math
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from trit.config_load import load
from trit.data.corpus import pydocs
from trit.dynamics.pictures import panels, saved, titled
from trit.layers import implicit
from trit.layers.equilibrium import capped, cell_tables, drive, own_force
from trit.layers.newton import newton
from trit.layers.relaxation import stepping
from trit.models import equilibrium
from trit.ops import torch_ops
from trit.params import init_params
from trit.report.page.pictures import PALETTE
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
TEXT, KEPT_BACK = 200_000, 20_000  # characters, and those of the end that no step sees
WARM_STEPS, MEAN, LOOKS = 30, 20, 20
BURST_RESIDUAL, BURST_LOSS = 0.3, 1.0
REST = 0.01


def characters():
    """int32 ids of the text's first characters."""
    text = "".join(pydocs())[:TEXT]
    common = {character: i + 1 for i, (character, _) in enumerate(Counter(text).most_common(63))}
    return np.array([common.get(character, 0) for character in text], np.int32)


def windows(ids, starts, length):
    """Rows of `length` + 1 ids."""
    return np.stack([ids[place : place + length + 1] for place in starts])


@contextlib.contextmanager
def gate_of_rho(value):
    """While it holds, an adjoint may be as bad as `value` times its tolerance."""
    before, implicit.RHO_GATE = implicit.RHO_GATE, value
    try:
        yield
    finally:
        implicit.RHO_GATE = before


def restless(cfg, arrays, tokens):
    """{solver: texts of `tokens` with a token whose residual is above REST} for weights {name: numpy array}."""
    p = capped(torch_ops, {name: torch.from_numpy(x) for name, x in arrays.items()}, cfg)
    tables, x, found = cell_tables(torch_ops, cfg, tokens), drive(torch_ops, p, cfg, tokens), {}

    def pull(own, past):
        return own_force(torch_ops, p, cfg, own, past, x, tables)

    for name, solve in (
        ("steps of 0.1", lambda: stepping(torch_ops, lambda z: pull(z, z), x, 0.1, 600, 1e-4)),
        ("steps of 0.05", lambda: stepping(torch_ops, lambda z: pull(z, z), x, 0.05, 1200, 1e-4)),
        ("newton", lambda: newton(torch_ops, pull, x, 1e-4)),
    ):
        worst = solve().residuals.max(1).values
        found[name] = int((~(worst <= REST)).sum())
    return found


def train(name, settings, seed, steps, ids):
    """What one training shows, for a JSON line."""
    unguarded = "open" in settings
    settings = [item for item in settings if item != "open"] + (["arch.residual_gate=1e30"] if unguarded else [])
    cfg, _, _ = load(ROOT / "configs/equilibrium_xs.toml", environ={}, overrides=[*BASE, *settings])
    specs = equilibrium.param_specs(cfg)
    backend = make_backend(torch_ops, equilibrium, cfg, specs, init_params(specs, seed), start_process())
    generator, length = np.random.default_rng(seed), cfg.train.train_seq_len
    held = torch.from_numpy(windows(ids, len(ids) - KEPT_BACK + np.arange(8) * 2000, length)[:, :-1])
    rows, losses, burst, best, out, looks, used = cfg.train.train_batch_tokens // length, [], None, math.inf, 0, [], 0.0
    for step in range(steps):
        batch = windows(ids, generator.integers(0, len(ids) - KEPT_BACK - length - 1, rows), length)
        begin = time.process_time()
        with gate_of_rho(math.inf if unguarded else implicit.RHO_GATE):
            loss, _ = backend.step(batch[:, :-1], batch[:, 1:], min(1.0, (step + 1) / WARM_STEPS), True, False)()
        used += time.process_time() - begin
        losses.append(loss)
        record = {key[8:]: x for key, x in backend.state().items() if key.startswith("derived/")}
        worst, left_out = float(record["relaxed"][0]), int(record["relaxed"][4])
        out += left_out
        if burst is None and step >= MEAN and not worst <= BURST_RESIDUAL and not loss <= best + BURST_LOSS:
            burst = step
        if burst is None and step >= MEAN:
            best = min(best, statistics.mean(losses[-MEAN:]))
        if (step + 1) % max(steps // LOOKS, 1) == 0 or step == steps - 1:
            seen = equilibrium.probe(torch_ops, {key: torch.from_numpy(x) for key, x in backend.export().items()}, cfg, held)
            look = {"step": step + 1, "loss": loss, "worst": worst, "left_out": left_out}
            look |= {key: seen[key] for key in ("g_deployed_token", "g_free_token", "critical_step", "loss_gap")}
            look["penalty"] = float(record["homeostat"][0]) if "homeostat" in record else 0.0
            looks.append(look)
            said = f"loss {loss:.3f} worst residual {worst:.1e} left out {left_out} penalty {look['penalty']:.3f} critical step"
            print(f"{name} seed {seed} step {step + 1}: {said} {look['critical_step']:.3f}", flush=True)
    return {
        "name": name,
        "seed": seed,
        "steps": steps,
        "burst": burst,
        "best": best,
        "last": statistics.mean(losses[-MEAN:]),
        "left_out": out / (steps * rows),
        "ms": used / steps * 1000,
        "restless": restless(cfg, backend.export(), held),
        "looks": looks,
        "losses": losses,
    }


def draw(path, rows):
    """A line a training, a colour a variant: loss, worst residual of the step's batch, longest step that all held-out tokens bear."""
    pyplot, figure, axes = panels(3)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for row in rows:
        colour, first = PALETTE[names.index(row["name"])], row is next(other for other in rows if other["name"] == row["name"])
        steps = [look["step"] for look in row["looks"]]
        for axis, key in zip(axes, ("loss", "worst", "critical_step")):
            values = [look[key] for look in row["looks"]]
            axis.plot(steps, values, color=colour, linewidth=1.3, alpha=0.8, label=row["name"] if first and key == "loss" else None)
    axes[1].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    for axis, title, up in zip(axes, ("loss of the step", "worst token of the step", "longest stable step"), ("nats", "|F(z)| / |z|", "")):
        titled(axis, title, "training step", up)
    saved(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--marks", default="", help="steps, divided by commas")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    parser.add_argument("--plot", type=Path, help="picture of what the file or this run holds")
    parser.add_argument("variants", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ids, found = characters(), []
    if options.out and options.out.exists():
        found = [json.loads(line) for line in options.out.read_text().splitlines()]
    for seed in map(int, options.seeds.split(",")):
        for variant in options.variants:
            name, _, settings = variant.partition(":")
            if any((row["name"], row["seed"], row["steps"]) == (name, seed, options.steps) for row in found):
                continue
            found.append(train(name, [item for item in settings.split(",") if item], seed, options.steps, ids))
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
    for row in found:
        burst, out = row["burst"] if row["burst"] is not None else "none", f"left out {row['left_out']:.3f}"
        print(
            f"{row['name']:<16} seed {row['seed']}  burst {burst:>5}  best {row['best']:.3f}  last {row['last']:.3f}  {out}  {row['ms']:.0f} ms"
            f"  critical step {row['looks'][-1]['critical_step']:.3f}  not at rest of 8: {row['restless']}"
        )
        marks = [int(mark) for mark in options.marks.split(",") if mark]
        if marks:
            print("    " + ", ".join(f"step {mark}: {statistics.mean(row['losses'][max(mark - 10, 0) : mark]):.4f}" for mark in marks))
    if options.plot:
        draw(options.plot, found)


if __name__ == "__main__":
    main()
