"""What a run with train.compile says of its compiler: seconds, graphs, breaks, and that the first step is what it is eagerly. Beside the
counted program, not in it."""

import math
import time

import torch
from torch._dynamo.utils import compilation_time_metrics, counters

APART = 0.01  # share by which compiled and eager losses of a step may differ without a line about it
PHASES = {"forward_seconds": "_compile.compile_inner", "backward_seconds": "backward._backward_impl"}


def apart(found, wanted):
    """Difference of two numbers as a share of the second, None where one is not finite."""
    return abs(found - wanted) / max(abs(wanted), 1e-12) if math.isfinite(found) and math.isfinite(wanted) else None


def compiler_seconds():
    """Seconds that the compiler has taken in this process, of each phase."""
    return {name: sum(compilation_time_metrics.get(key, [])) for name, key in PHASES.items()}


def with_compile_report(backend, cfg, log):
    """`backend` whose first step runs eagerly, is undone, and runs again compiled: a `compile` record holds seconds, graphs, breaks and how
    far loss and gradient norm are apart. A later graph is a `recompile` record. With warmup_steps that first step is off the clock. All
    ranks do the same, for their steps wait for each other."""
    if not cfg.train.compile:
        return backend
    held = {"steps": 0, "graphs": 0}

    def graphs():
        return counters["stats"]["unique_graphs"]

    def first(arguments):
        kept, before, graphs_before, breaks = backend.state(), compiler_seconds(), graphs(), sum(counters["graph_break"].values())
        with torch.compiler.set_stance("force_eager"):
            eager = backend.step(*arguments)()
        backend.restore(kept)
        begin = time.perf_counter()
        found = backend.step(*arguments)()
        record = {"first_step_seconds": time.perf_counter() - begin}
        record |= {name: seconds - before[name] for name, seconds in compiler_seconds().items()}
        record |= {"graphs": graphs() - graphs_before, "breaks": sum(counters["graph_break"].values()) - breaks}
        record |= dict(zip(("loss_apart", "norm_apart"), map(apart, found, eager)))
        log.metrics(event="compile", **record)
        if record["loss_apart"] is None or record["loss_apart"] > APART:
            log.line(f"compiled, the first step has loss {found[0]:.4f}, eagerly {eager[0]:.4f}: train.compile=false is the safe choice")
        held["graphs"] = graphs()
        return found

    def step(*arguments):
        held["steps"] += 1
        if held["steps"] == 1:
            found = first(arguments)
            return lambda: found
        wait = backend.step(*arguments)
        if graphs() > held["graphs"]:
            log.metrics(event="recompile", call=held["steps"], graphs=graphs() - held["graphs"])
            held["graphs"] = graphs()
        return wait

    return backend._replace(step=step)
