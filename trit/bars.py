"""Bars of what the counted program does too: its modules may not grow, so they are watched from outside, by wrapping what they are given.

Every function here is a context that yields a stand-in for what it takes, and that thing itself where no bar is shown: then training and
scoring are not touched at all. Where it is shown, a step costs some microseconds more, and its numbers pass through as they are.
"""

import contextlib
import itertools
import math
import time
from collections import deque
from types import SimpleNamespace

import trit.compress.entropy
import trit.submission
from trit.compress.calibrate import CALIBRATION_CANDIDATES
from trit.console import move, progress, shares, visible
from trit.eval.score import score_windows
from trit.train.schedule import training_progress

RECENT = 20  # steps that the speed shown is the mean of


@contextlib.contextmanager
def training(backend, cfg, step=0):
    """A `Backend` whose steps move a bar over the clock or the steps, whichever ends the run. `step` are those of a resumed run."""
    if backend.rank or not visible():
        yield backend
        return
    now, speeds = SimpleNamespace(step=step, seconds=None, tokens=0), deque(maxlen=RECENT)
    with shares("training") as bar:
        bar.set_postfix_str("warming up")

        def slowest(seconds):
            # The loop asks between any two steps, the warm-up never: so this is the training's clock.
            seconds = backend.slowest(seconds)
            if math.isfinite(seconds):
                if now.seconds is None:
                    bar.reset(1.0)
                    speeds.append((seconds, 0))
                    bar.n = bar.initial = bar.last_print_n = training_progress(cfg, step, seconds)
                    bar.set_postfix_str("")
                now.seconds = seconds
                move(bar, training_progress(cfg, now.step, seconds))
            return seconds

        def begin(inputs, *others):
            wait, counts = backend.step(inputs, *others), now.seconds is not None

            def finish():
                loss, norm = wait()
                if counts:
                    now.step, now.tokens = now.step + 1, now.tokens + inputs.size * backend.world
                    then, before = speeds[0]
                    speeds.append((now.seconds, now.tokens))
                    speed = f", {(now.tokens - before) / (now.seconds - then):,.0f} tokens/s" if now.seconds > then else ""
                    bar.set_postfix_str(f"step {now.step}, loss {loss:.4f}{speed}", refresh=False)
                return loss, norm

            return finish

        yield backend._replace(step=begin, slowest=slowest)


@contextlib.contextmanager
def scoring(library, cfg, positions, what="scoring"):
    """A stand-in for an array library's backend module whose evaluators move a bar over the scored tokens of a text."""
    if not visible():
        yield library
        return
    ends = list(itertools.accumulate(width - first for _, first, width in score_windows(cfg, positions)))
    with progress(what, positions, " tokens") as bar:

        def evaluator(*given):
            model, rows = library.evaluator(*given), itertools.count(1)

            def moving(function):
                def call(inputs, *others):
                    found = function(inputs, *others)
                    done = [next(rows) for _ in range(len(inputs))][-1]
                    move(bar, ends[min(done, len(ends)) - 1])
                    return found

                return call

            return model._replace(losses=moving(model.losses), rows=moving(model.rows))

        yield SimpleNamespace(**vars(library) | {"evaluator": evaluator})


class Stages:
    """One bar for work of several stages, each with its own name and share."""

    def __init__(self, bar):
        self.bar, self.name, self.done, self.begun = bar, "", 0.0, time.perf_counter()

    def stage(self, name):
        """Begin a stage unless it is under way."""
        if self.name != name:
            self.name, self.done, self.begun = name, 0.0, time.perf_counter()
            self.bar.set_description_str(name, refresh=False)
            self.bar.reset(1.0)

    def step(self, share, seconds=math.inf):
        """A share of a stage is done, which may also end after `seconds`."""
        self.done += share
        move(self.bar, max(self.done, (time.perf_counter() - self.begun) / seconds))


@contextlib.contextmanager
def stand_in(module, name, function):
    """Another function in the place of a module's, for the time of the context."""
    kept = getattr(module, name)
    setattr(module, name, function)
    try:
        yield kept
    finally:
        setattr(module, name, kept)


@contextlib.contextmanager
def compressing(library, cfg, specs):
    """A stand-in for an array library's backend module under which calibration, fitting of the temperature, allocation and packing of
    tensors of `specs` move one bar."""
    if not visible():
        yield library
        return
    evaluations, limit = cfg.compress.calibration_evals, cfg.compress.calibration_seconds
    sizes, ternary = [math.prod(spec.shape) for spec in specs], sum(spec.scheme == "ternary" for spec in specs)
    trained = cfg.quant.ternary_threshold, cfg.quant.ternary_scale == "least_squares"
    tried = min(evaluations, 1 + ternary * sum(choice != trained for choice in CALIBRATION_CANDIDATES))
    rows = max(cfg.compress.calibration_tokens // cfg.train.train_seq_len, 1)
    with shares("calibration") as bar:
        stages, allocating = Stages(bar), []

        def evaluator(*given):
            model, begun = library.evaluator(*given), []

            def losses(*asked):
                found = model.losses(*asked)
                if not begun:
                    stages.stage("measuring" if allocating else "calibration")
                    stages.step(1 / (min(evaluations, len(specs) + 2) if allocating else tried), limit)
                    begun.append(True)
                return found

            def every_row(*asked):
                stages.stage("temperature")
                stages.step(1 / rows)
                return model.rows(*asked)

            return model._replace(losses=losses, rows=every_row)

        def ladders(*given):
            allocating.append(True)
            stages.stage("storages")
            return kept_ladders(*given)

        def choices_of(ops, config, curve, *others):
            found = kept_choices(ops, config, curve, *others)
            stages.step(curve.array.size / sum(sizes))
            return found

        def best_mode(stream, *others):
            if not allocating:
                stages.stage("packing")
            found = kept_mode(stream, *others)
            if not allocating:
                stages.step(stream.count / sum(sizes))
            return found

        with (
            stand_in(trit.submission, "ladders", ladders) as kept_ladders,
            stand_in(trit.compress.allocate, "choices_of", choices_of) as kept_choices,
            stand_in(trit.compress.entropy, "best_mode", best_mode) as kept_mode,
        ):
            yield SimpleNamespace(**vars(library) | {"evaluator": evaluator})
