"""The only training loop: budget clock, schedules, steps, progress lines, checkpoints. Knows nothing of arrays beyond numpy."""

import math
import time
from collections import deque
from typing import NamedTuple

import numpy as np

from trit.train.phases import Moment, all_phases, has_moments, has_phases, phase_at
from trit.train.schedule import learning_rate_factor, training_progress


class TrainResult(NamedTuple):
    """Steps done, training seconds on the budget's clock, last loss in nats, steps skipped for non-finite gradients."""

    steps: int
    seconds: float
    loss: float
    skipped: int


def warm_up(cfg, backend, seed):
    """Run steps on random tokens and put every state back, so that compilation and caches stay off the clock (contest.md 1.9)."""
    state = backend.state()
    rows = cfg.train.train_batch_tokens // backend.world // cfg.train.train_seq_len
    generator = np.random.default_rng(seed)
    if has_phases(cfg):
        for phase in all_phases(cfg) * cfg.train.warmup_steps:
            shape = (2, phase.tokens // backend.world // phase.length, phase.length)
            tokens = generator.integers(0, cfg.model.vocab_size, shape).astype(np.int32)
            for rounded in [True, False] if cfg.quant.full_precision_fraction else [True]:
                if has_moments(cfg):
                    backend.step(tokens[0], tokens[1], 1.0, rounded, False, Moment(phase.shallow, seed, 0, 0.0))()
                    if cfg.engram.write_every > 1:
                        backend.step(tokens[0], tokens[1], 1.0, rounded, False, Moment(phase.shallow, seed, 1, 0.0))()
                else:
                    backend.step(tokens[0], tokens[1], 1.0, rounded, False)()
        return backend.restore(state)
    for index in range(cfg.train.warmup_steps):
        tokens = generator.integers(0, cfg.model.vocab_size, (2, rows, cfg.train.train_seq_len)).astype(np.int32)
        backend.step(tokens[0], tokens[1], 1.0, index % 2 == 0 or not cfg.quant.full_precision_fraction, False)()
    backend.restore(state)


def progress_line(cfg, step, loss, seconds, tokens_per_second):
    """The contest's step line, then speed and the time that is left."""
    share = max(training_progress(cfg, step, seconds), 1e-9)
    return (
        f"step:{step}/{cfg.train.iterations} train_loss:{loss:.4f} train_time:{seconds * 1000:.0f}ms "
        f"step_avg:{seconds * 1000 / max(step, 1):.2f}ms tok/s:{tokens_per_second:.0f} left:{seconds * (1.0 / share - 1.0):.0f}s"
    )


def train(cfg, backend, loader, log, save, step, seconds, clock):
    """Train until the clock's budget or the iterations are spent -> TrainResult.

    Starts at `step` with `seconds` already on the clock. `save(step, seconds)` writes a checkpoint. `clock()` gives seconds.
    Ctrl-C saves and ends with KeyboardInterrupt. Three non-finite steps in a row raise FloatingPointError.
    """
    begin = clock() - seconds
    loss, skipped, bad, mark, mark_step = float("nan"), 0, 0, seconds, step
    first, first_step, under_way = seconds, step, deque()
    if has_phases(cfg):
        begun, pace, phase = step, 0.0, None

    def finish(done, wait):
        """Wait for step number `done`, judge it and, where it is time, report."""
        nonlocal loss, bad, skipped, mark, mark_step
        loss, norm = wait()
        bad = 0 if np.isfinite(norm) else bad + 1
        skipped += bad > 0
        if bad == 3:
            raise FloatingPointError(f"gradients are not finite since step {done - 3}; lower train.matrix_lr or train.scalar_lr")
        if done % cfg.train.log_every == 0:
            seconds = clock() - begin
            speed = (done - mark_step) * cfg.train.train_batch_tokens / max(seconds - mark, 1e-9)
            if cfg.train.batch_schedule:
                windows = loader.taken[done - begun] - loader.taken[mark_step - begun]
                speed = windows * cfg.train.train_seq_len / max(seconds - mark, 1e-9)
            mark, mark_step = seconds, done
            log.line(progress_line(cfg, done, loss, seconds, speed))
            log.metrics(step=done, train_loss=loss, seconds=seconds, tokens_per_second=speed, gradient_norm=norm, skipped=skipped)

    try:
        while True:
            seconds = backend.slowest(clock() - begin)
            if seconds == math.inf:
                raise KeyboardInterrupt  # a rank was asked to stop: all stop here, between the same two steps
            progress = training_progress(cfg, step, seconds)
            # A step that would end after the cap is not begun: the mean step so far says how long it and those under way take. Only
            # times that all ranks share enter, so that all of them stop together.
            finished = step - len(under_way)
            if has_phases(cfg):
                # The pace is that of the phase's own steps; until one of them is done, that of the phase before.
                if phase != phase_at(cfg, progress):
                    phase, first, first_step = phase_at(cfg, progress), seconds, finished
                pace = (seconds - first) / (finished - first_step) if finished > first_step else pace
            else:
                pace = (seconds - first) / (finished - first_step) if finished > first_step else 0.0
            late = cfg.train.max_wallclock_seconds and seconds + pace * (1 + 2 * backend.ahead) > cfg.train.max_wallclock_seconds
            if progress >= 1.0 or late:
                break
            if cfg.train.batch_schedule:
                inputs, targets = loader.next_windows(phase.tokens // cfg.train.train_seq_len)
            else:
                inputs, targets = loader.next_batch()
            if cfg.train.seq_schedule:
                # The same text cut shorter: no batch of another phase can be left over, and a position means what it always does.
                inputs, targets = inputs.reshape(-1, phase.length), targets.reshape(-1, phase.length)
            rounded = progress >= cfg.quant.full_precision_fraction
            averaging = progress >= cfg.train.ema_start_fraction
            if has_moments(cfg):
                moment = Moment(phase.shallow, loader.seed, step, progress)
                if cfg.train.carry:
                    moment = moment._replace(joined=loader.joined)
                wait = backend.step(inputs, targets, learning_rate_factor(cfg, progress), rounded, averaging, moment)
            else:
                wait = backend.step(inputs, targets, learning_rate_factor(cfg, progress), rounded, averaging)
            step += 1
            under_way.append((step, wait))
            if len(under_way) > backend.ahead:
                finish(*under_way.popleft())
            if cfg.train.checkpoint_every and step % cfg.train.checkpoint_every == 0:
                save(step, clock() - begin)
        while under_way:
            finish(*under_way.popleft())
    except KeyboardInterrupt:
        save(step, clock() - begin)
        raise
    seconds = clock() - begin
    reason = "stopping_early: wallclock_cap " if step < cfg.train.iterations else ""
    log.line(f"{reason}train_time:{seconds * 1000:.0f}ms step:{step}/{cfg.train.iterations}")
    return TrainResult(step, seconds, loss, skipped)


def wall_clock():
    """Seconds that never go back."""
    return time.perf_counter()
