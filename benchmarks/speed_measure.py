"""Measuring training steps of any `Config` on this machine: phases, speed, memory, recompilations, host synchronisations.

Needs nothing of how a step is written but that it goes through torch.autograd and torch.distributed: what comes before a call of
autograd is the forward pass (rounding of the weights included), the call is the backward pass, what comes after the last one is the
optimiser, and calls of collectives are communication wherever they stand. On a GPU the borders are events on the stream, so that
measuring does not make the host wait.
"""

import contextlib
import gc
import statistics
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch._dynamo.utils import counters

from trit.data.loader import TokenLoader
from trit.ops import torch_ops
from trit.params import init_params
from trit.report.record import hardware
from trit.train.torch_backend import make_backend

PHASES = ("data", "forward", "backward", "optimiser", "communication")
COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "broadcast",
    "all_gather",
    "all_to_all_single",
)


class Measured(NamedTuple):
    """Milliseconds a step by phase and in all (medians), tokens a second over all ranks, peak memory and its growth over the steps in
    MiB (device memory on a GPU, else resident memory of the process), graphs compiled after the first steps, host waits a step."""

    phases: dict
    step_ms: float
    tokens_per_second: float
    peak_mib: float
    growth_mib: float
    recompilations: int
    syncs: float


def machine(process):
    """Name of the machine: GPU or processor, how many, and the threads of torch."""
    if process.device == "cpu":
        return f"{hardware(process)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{process.world} x {torch.cuda.get_device_name()}, torch {torch.__version__}"


def wait(device):
    """Let the device finish what was queued."""
    if device != "cpu":
        torch.cuda.synchronize()


def product_rate(device, dtype, size=0, seconds=1.0):
    """FLOP/s of one large square matrix product of `dtype`, the best of repeated tries within `seconds`: what MFU is a share of."""
    size = size or (8192 if device != "cpu" else 1536)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    a @ b
    while time.perf_counter() < end:
        wait(device)
        begin = time.perf_counter()
        for _ in range(4):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - begin) / 4)
    return 2.0 * size**3 / best


class Phases:
    """Borders of the phases of steps: `marks` holds (what begins, when) in order; None ends a step."""

    def __init__(self, device):
        self.device, self.marks, self.now = device, [], None

    def enter(self, phase):
        """From here on it is `phase`; returns what it was."""
        before, self.now = self.now, phase
        if self.device == "cpu":
            at = time.perf_counter()
        else:
            at = torch.cuda.Event(enable_timing=True)
            at.record()
        self.marks.append((phase, at))
        return before

    def within(self, function, phase, then=None):
        """`function` that counts as `phase`; afterwards it is `then`, or what it was before. So does waiting for what it only began."""

        def timed(*arguments, **named):
            if self.now is None:
                return function(*arguments, **named)
            before = self.enter(phase)
            result = function(*arguments, **named)
            self.enter(then or before)
            return SimpleNamespace(wait=self.within(result.wait, phase)) if hasattr(result, "wait") else result

        return timed

    @contextlib.contextmanager
    def watching(self):
        """Autograd and the collectives report to this object while the context lasts."""
        places = [(torch.autograd, name, "backward", "after") for name in ("grad", "backward")]
        if torch.distributed.is_available():
            places += [(torch.distributed, name, "communication", None) for name in COLLECTIVES]
        kept = [(module, name, getattr(module, name)) for module, name, _, _ in places]
        for module, name, phase, then in places:
            setattr(module, name, self.within(getattr(module, name), phase, then))
        try:
            yield self
        finally:
            for module, name, function in kept:
                setattr(module, name, function)

    def steps(self):
        """[{phase: milliseconds}] of the steps seen. What follows a backward pass is forward again if another one comes, else optimiser."""
        wait(self.device)
        found, spans = [], []
        for (phase, begin), (_, end) in zip(self.marks, self.marks[1:]):
            if phase:
                spans.append((phase, 1000 * (end - begin) if self.device == "cpu" else begin.elapsed_time(end)))
                continue
            found.append(sorted_phases(spans))
            spans = []
        return [*found, sorted_phases(spans)] if spans else found


def sorted_phases(spans):
    """{phase: milliseconds} of the (phase, milliseconds) of one step."""
    total = dict.fromkeys(PHASES, 0.0)
    last = max((index for index, (phase, _) in enumerate(spans) if phase == "backward"), default=-1)
    for index, (phase, ms) in enumerate(spans):
        total[("optimiser" if index > last else "forward") if phase == "after" else phase] += ms
    return total


def memory_mib(device, peak=False):
    """MiB held now (or at most so far): on a GPU by tensors, else resident in this process."""
    if device != "cpu":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS")) / 1024


def count_syncs(step, device, steps):
    """Times a step that the host waits for the device. Without a GPU: times a step that it reads a number out of a tensor, which waits
    there too."""
    if device == "cpu":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(steps):
                step()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense") / steps
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for _ in range(steps):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in found) / steps


def random_loader(config, process):
    """The trainer's own loader over random tokens in memory, for this rank."""
    train = config.train
    rows = train.train_batch_tokens // train.train_seq_len
    tokens = np.random.default_rng(0).integers(0, config.model.vocab_size, 8 * (rows + 1) * train.train_seq_len).astype(np.uint16)
    return TokenLoader([tokens], train.train_seq_len, rows, 0, process.rank, process.world)


def measure(config, arch, specs, process, steps, warm=3, more=0):
    """`Measured` over `steps` steps after `warm` ones, and `more` steps in which only memory is watched."""
    device = "cpu" if process.device == "cpu" else "cuda"
    torch._dynamo.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    backend = make_backend(torch_ops, arch, config, specs, init_params(specs, 0), process)
    loader = random_loader(config, process)
    phases = Phases(device)

    def step():
        phases.enter("data")
        inputs, targets = loader.next_batch()
        phases.enter("forward")
        backend.step(inputs, targets, 1.0, True, False)
        phases.enter(None)

    try:
        with phases.watching():
            for _ in range(warm):
                step()
            phases.marks.clear()
            graphs = counters["stats"]["unique_graphs"]
            wait(device)
            begin = time.perf_counter()
            for _ in range(steps):
                step()
            wait(device)
            seconds = time.perf_counter() - begin
            every = phases.steps()
        syncs = count_syncs(step, device, 2)
        gc.collect()
        held = memory_mib(device)
        for _ in range(more):
            step()
            phases.marks.clear()
        gc.collect()
        growth = memory_mib(device) - held
        recompilations = counters["stats"]["unique_graphs"] - graphs
    finally:
        loader.close()
    medians = {name: statistics.median(one[name] for one in every) for name in PHASES}
    # A device runs behind the host: there the mean over all steps is the time of one, its own clock's sum would leave gaps out.
    step_ms = 1000 * seconds / steps if device == "cuda" else statistics.median(sum(one.values()) for one in every)
    speed = config.train.train_batch_tokens / step_ms * 1000
    return Measured(medians, step_ms, speed, memory_mib(device, True), growth, recompilations, syncs)
