"""The controller of train.ladder: each rung lasts until the loss stands still, then the next begins with the learning rate at its peak.

It stands around a backend's steps, reads what they lost and keeps its state with theirs, so that a resumed run goes on as it would have.
A mean over few noisy losses says nothing: where the fall that would count is less than twice the error of the two means, the window grows.
"""

import math
from typing import NamedTuple

import numpy as np

from trit.train.schedule import learning_rate_factor

LONGEST_WINDOW = 1000  # steps; after so many it is decided anyway
RUNG_LAST_RATE = 0.1  # share of the peak that the cosine of a rung leads to; that of the last rung leads to train.min_lr


class LadderMoment(NamedTuple):
    """A `Moment` (trit/train/phases.py) that also says the rung's value."""

    shallow: bool
    seed: int
    step: int
    progress: float
    joined: object
    rung: float


def rung_factor(cfg, progress, origin, last):
    """Share of the peak learning rate at a share of the clock, of a rung that began at `origin`: the usual rise at the very start, then a
    cosine over all that is left, so that it is the peak where a rung begins."""
    if progress < cfg.train.warmup_fraction:
        return learning_rate_factor(cfg, progress)
    low, share = cfg.train.min_lr if last else RUNG_LAST_RATE, (progress - origin) / (1.0 - origin) if origin < 1.0 else 0.0
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * share))


def judged(losses, gain):
    """(whether the losses of a window stand still, their mean in the first half, in the second, deviation of one, whether noise hides it).
    The deviation is that of differences of neighbours, which a slow fall hardly moves."""
    losses = np.array(losses)
    before, after = (float(half.mean()) for half in np.split(losses, 2))
    sigma = float(np.diff(losses).std()) / math.sqrt(2.0)
    return before - after < gain * before, before, after, sigma, gain * before <= 2.0 * sigma * math.sqrt(4.0 / len(losses))


def with_ladder(cfg, backend, log):
    """`backend` whose steps climb train.ladder."""
    rungs = [float(part) for part in cfg.train.ladder.split(",")]
    held = {"stage": 0, "origin": cfg.train.warmup_fraction, "window": cfg.train.ladder_window, "due": 0, "losses": []}

    def raise_rung(stage, moment, factor):
        seen = held["losses"][-held["window"] :]
        log.line(f"ladder: {rungs[held['stage']]:g} -> {rungs[stage]:g} at step {moment.step}")
        about = dict(zip(("m1", "m2", "sigma"), judged(seen, cfg.train.ladder_gain)[1:4])) if len(seen) == held["window"] else {}
        log.metrics(event="cutoff_raise", step=moment.step, before=rungs[held["stage"]], after=rungs[stage], rate_before=factor, **about)
        held.update(stage=stage, origin=max(moment.progress, cfg.train.warmup_fraction), window=cfg.train.ladder_window, due=0, losses=[])

    def watch(loss, step):
        """Take in a loss, and judge where a window is full."""
        if held["due"] or held["stage"] == len(rungs) - 1 or not math.isfinite(loss):
            return
        held["losses"].append(loss)
        if len(held["losses"]) < held["window"]:
            return
        still, before, after, sigma, hidden = judged(held["losses"], cfg.train.ladder_gain)
        if hidden and held["window"] < LONGEST_WINDOW:
            held["window"] = min(2 * held["window"], LONGEST_WINDOW)
            log.metrics(event="cutoff_deferred", step=step, m1=before, m2=after, sigma=sigma, window=held["window"])
        elif still:
            held["due"] = 1
        else:
            held["losses"] = []

    def step(inputs, targets, factor, rounded, averaging, moment):
        last = len(rungs) - 1
        if held["stage"] < last and (held["due"] or moment.progress >= cfg.train.ladder_end):
            before = rung_factor(cfg, moment.progress, held["origin"], False)
            raise_rung(last if moment.progress >= cfg.train.ladder_end else held["stage"] + 1, moment, before)
        factor = rung_factor(cfg, moment.progress, held["origin"], held["stage"] == last)
        if moment.step % cfg.train.log_every == 0:
            log.metrics(event="ladder", step=moment.step, rung=rungs[held["stage"]], rate=factor)
        wait = backend.step(inputs, targets, factor, rounded, averaging, LadderMoment(*moment, rungs[held["stage"]]))

        def finish():
            loss, norm = wait()
            watch(loss, moment.step)
            return loss, norm

        return finish

    def state():
        numbers = np.array([held["stage"], held["origin"], held["window"], held["due"]], np.float64)
        return backend.state() | {"ladder": numbers, "ladder_losses": np.array(held["losses"], np.float64)}

    def restore(flat):
        stage, origin, window, due = flat["ladder"].tolist()
        held.update(stage=int(stage), origin=origin, window=int(window), due=int(due), losses=flat["ladder_losses"].tolist())
        backend.restore(flat)

    return backend._replace(step=step, state=state, restore=restore)
