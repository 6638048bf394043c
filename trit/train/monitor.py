"""What a run's log says beside losses: its pace and use of the processor, how it takes a raise of train.ladder, steps that were no numbers.

Beside the counted program, not in it: the records go to metrics.jsonl, each kind can be left out (--monitor), and a run computes the same
with them as without. Wrapping what the loop is given is all that it takes. A warm-up, whose traces are undone by a `restore`, is not
counted.
"""

import contextlib
import math
import os
import time
import zlib
from collections import deque

KINDS = ("perf", "spikes", "non_finite", "compile")
PERF_LINES = 10  # log lines from one record of the pace to the next
BUSY, STARVED = 0.85, 0.5  # shares of the processor
SPIKE_MEAN = 10  # losses whose mean is compared with that before a raise
SPIKE_STEPS = 1000  # in which it must be as low again


def monitored_kinds(text):
    """The kinds that --monitor names, comma-separated, or none; ValueError where one is unknown."""
    kinds = [] if text == "none" else text.split(",")
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"--monitor {text}: {kind!r} is no kind of record; choose from {','.join(KINDS)}, or none")
    return kinds


def usable_threads():
    """Threads that this process may compute with: OMP_NUM_THREADS, or the cores that it may run on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores) if asked.isdigit() and int(asked) else cores


def band(share):
    """A word for the share of its processor that a run uses."""
    return "good" if share > BUSY else "starved" if share < STARVED else "fair"


def with_perf(backend, cfg, log, first, threads, clock=time.perf_counter, used=time.process_time):
    """`backend` that records its pace: milliseconds between steps (text, and what else the loop does) and in them, of a step and of a
    micro-batch, and with `threads` the share of them that was used. `first` steps were done before."""
    every = PERF_LINES * cfg.train.log_every
    held = {}

    def begin():
        held.update(steps=0, outside=0.0, left=None, wall=clock(), cpu=used())

    def enter():
        if held["left"] is not None:
            held["outside"] += clock() - held["left"]

    def leave():
        held["left"] = clock()

    def report():
        wall, steps = clock() - held["wall"], every
        inside = (wall - held["outside"]) / steps
        record = {
            "between_ms": 1000 * held["outside"] / steps,
            "step_ms": 1000 * inside,
            "micro_ms": 1000 * inside / cfg.train.grad_accum_steps,
        }
        if threads:
            share = (used() - held["cpu"]) / (wall * threads)
            record |= {"utilisation": share, "threads": threads, "band": band(share)}
        log.metrics(event="perf", step=first + held["steps"], steps=steps, **record)
        held.update(outside=0.0, wall=clock(), cpu=used())

    def step(*arguments):
        enter()
        wait = backend.step(*arguments)
        leave()

        def finish():
            enter()
            found = wait()
            held["steps"] += 1
            if held["steps"] % every == 0:
                report()
            leave()
            return found

        return finish

    def restore(flat):
        backend.restore(flat)
        begin()

    begin()
    return backend._replace(step=step, restore=restore)


def with_spikes(backend, log, first):
    """(`backend` that records what every raise of the ladder did to the loss: mean before, peak, steps until the mean was as low again; a
    function that records the last one at the end). A raise not recovered from, before the next or the end or in SPIKE_STEPS, gets a line."""
    held = {}

    def begin():
        held.update(steps=0, rung=None, recent=deque(maxlen=SPIKE_MEAN), spike=None)

    def close():
        spike, held["spike"] = held["spike"], None
        if spike:
            log.metrics(event="spike", **spike)
            if not spike["recovered"]:
                log.line(f"ladder: {spike['steps']} steps after its raise at step {spike['step']} the loss is not as low as before it")

    def watch(loss):
        held["steps"] += 1
        held["recent"].append(loss)
        spike = held["spike"]
        if spike:
            spike["steps"] += 1
            spike["peak"] = max(spike["peak"], loss) if math.isfinite(loss) else spike["peak"]
            mean = sum(held["recent"]) / len(held["recent"])
            spike["recovered"] = len(held["recent"]) == SPIKE_MEAN and mean <= spike["before"]
            if spike["recovered"] or spike["steps"] == SPIKE_STEPS:
                close()

    def step(*arguments):
        rung = arguments[-1].rung
        if held["rung"] not in (None, rung) and held["recent"]:
            close()
            before = sum(held["recent"]) / len(held["recent"])
            held["spike"] = {"step": first + held["steps"], "rung": rung, "before": before, "peak": before, "steps": 0, "recovered": False}
            held["recent"].clear()
        held["rung"] = rung
        wait = backend.step(*arguments)

        def finish():
            loss, norm = wait()
            watch(loss)
            return loss, norm

        return finish

    def restore(flat):
        backend.restore(flat)
        begin()

    begin()
    return backend._replace(step=step, restore=restore), close


def with_dump(backend, log, first):
    """`backend` that says which batch gave gradients that are no finite numbers: the loader's number of it, which seed and order of the
    data fix, and a checksum of its tokens on this rank. The loop skips the step, and ends the run at the third in a row."""
    held = {"steps": 0}

    def step(inputs, *others):
        wait = backend.step(inputs, *others)

        def finish():
            loss, norm = wait()
            held["steps"] += 1
            if not math.isfinite(norm):
                number = first + held["steps"]
                log.line(f"step {number} changed nothing: its gradients are not finite. Batch {number - 1} of the run's order")
                found = loss if math.isfinite(loss) else None
                log.metrics(event="non_finite", step=number, batch=number - 1, loss=found, tokens_crc32=zlib.crc32(inputs.tobytes()))
            return loss, norm

        return finish

    def restore(flat):
        backend.restore(flat)
        held["steps"] = 0

    return backend._replace(step=step, restore=restore)


@contextlib.contextmanager
def monitored(backend, cfg, log, kinds, first, device):
    """`backend` with the `kinds` of records that were asked for, on rank 0; `first` steps of a resumed run were done before. A GPU's share
    is not known here, so that of the processor is left out beside one."""
    close = None
    if not backend.rank:
        if "perf" in kinds:
            backend = with_perf(backend, cfg, log, first, usable_threads() if device == "cpu" else 0)
        if "spikes" in kinds and cfg.train.ladder:
            backend, close = with_spikes(backend, log, first)
        if "non_finite" in kinds:
            backend = with_dump(backend, log, first)
    try:
        yield backend
    finally:
        if close:
            close()
