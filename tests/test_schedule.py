"""The budget clock: schedule edges, stopping before the cap, Ctrl-C, skipped steps. A fake backend and a fake clock take no time."""

from types import SimpleNamespace

import numpy as np
import pytest
from model_fixtures import BACKENDS, load_arch, random_tokens, start, tiny_config

from trit.train.log import RunLog
from trit.train.loop import train, warm_up
from trit.train.run import run_training
from trit.train.schedule import learning_rate_factor, training_progress

TIMED = {"warmup_fraction": 0.1, "warmdown_fraction": 0.4, "min_lr": 0.1, "track": "non_record_16mb"}


class FakeClock:
    """Seconds that advance only when told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class FakeRun:
    """Backend, loader and log in one: every step takes `pace` seconds of a device, gradients are `norms` in turn, calls are recorded.
    From step `stop_at` on a rank wants to stop."""

    rank, world = 0, 1

    def __init__(self, pace=1.0, norms=(), interrupt_at=None, ahead=0, stop_at=None):
        self.clock, self.pace, self.norms, self.interrupt_at = FakeClock(), pace, list(norms), interrupt_at
        self.steps, self.saves, self.lines, self.ahead, self.stop_at, self.free_at = [], [], [], ahead, stop_at, 0.0

    def next_batch(self):
        return None, None

    def step(self, inputs, targets, factor, rounded, averaging):
        if self.interrupt_at is not None and len(self.steps) == self.interrupt_at:
            raise KeyboardInterrupt
        self.steps.append(SimpleNamespace(factor=factor, rounded=rounded, averaging=averaging))
        self.free_at = done_at = max(self.free_at, self.clock.now) + self.pace
        norm = self.norms.pop(0) if self.norms else 1.0

        def wait():
            self.clock.now = max(self.clock.now, done_at)
            return 2.0, norm

        return wait

    def slowest(self, seconds):
        return float("inf") if self.stop_at is not None and len(self.steps) >= self.stop_at else seconds

    def line(self, text):
        self.lines.append(text)

    def metrics(self, **record):
        pass

    def run(self, cfg, step=0, seconds=0.0):
        return train(cfg, self, self, self, lambda *state: self.saves.append(state), step, seconds, self.clock)


def test_progress_is_the_larger_share_and_never_exceeds_one():
    cfg = tiny_config(iterations=100, max_wallclock_seconds=50, track="non_record_16mb")
    assert training_progress(cfg, 0, 0.0) == 0.0
    assert training_progress(cfg, 10, 1.0) == 0.1
    assert training_progress(cfg, 10, 25.0) == 0.5
    assert training_progress(cfg, 1000, 0.0) == training_progress(cfg, 0, 1e9) == 1.0
    assert training_progress(tiny_config(iterations=100), 10, 1e9) == 0.1


def test_learning_rate_rises_stays_and_falls():
    cfg = tiny_config(**TIMED)
    points = {0.0: 0.01, 0.05: 0.5, 0.1: 1.0, 0.3: 1.0, 0.6: 1.0, 0.8: 0.55, 1.0: 0.1}
    for progress, factor in points.items():
        assert learning_rate_factor(cfg, progress) == pytest.approx(factor)
    grid = [learning_rate_factor(cfg, i / 1000) for i in range(1001)]
    assert max(abs(np.diff(grid))) < 0.011 and min(grid) > 0


@pytest.mark.parametrize("edges", [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_schedule_has_no_division_by_zero_at_its_edges(edges):
    cfg = tiny_config(warmup_fraction=edges[0], warmdown_fraction=edges[1])
    for progress in (0.0, 0.5, 1.0):
        assert 0.0 <= learning_rate_factor(cfg, progress) <= 1.0


def test_iterations_end_a_run_without_a_cap():
    fake = FakeRun(pace=1e6)
    result = fake.run(tiny_config(iterations=7))
    assert result.steps == len(fake.steps) == 7 and result.loss == 2.0 and result.skipped == 0


@pytest.mark.parametrize("log_every", [1, 7, 10, 1000])
@pytest.mark.parametrize("cap", [10.5, 10.0, 29.9])
@pytest.mark.parametrize("ahead", [0, 1])
def test_no_step_ends_after_the_cap(cap, log_every, ahead):
    """Also right after a log line, and where a device still computes a step when the next one is decided on."""
    fake = FakeRun(ahead=ahead)
    result = fake.run(tiny_config(iterations=1000, max_wallclock_seconds=cap, log_every=log_every))
    assert cap - 1.0 - 2.0 * ahead - 1e-6 <= result.seconds <= cap and result.steps == len(fake.steps)


def test_all_ranks_save_between_the_same_steps_when_one_is_asked_to_stop():
    fake = FakeRun(stop_at=4, ahead=1)
    with pytest.raises(KeyboardInterrupt):
        fake.run(tiny_config(iterations=10))
    assert [save[0] for save in fake.saves] == [4]


def test_a_resumed_run_knows_what_was_spent():
    fake = FakeRun()
    result = fake.run(tiny_config(iterations=1000, max_wallclock_seconds=20), step=500, seconds=15.0)
    assert result.steps == 505 and result.seconds == 20.0
    assert FakeRun().run(tiny_config(iterations=1000, max_wallclock_seconds=20), step=500, seconds=20.0).steps == 500


def test_all_ranks_stop_at_the_same_step():
    """Clocks of two ranks differ, but every decision rests on the time they share."""
    counts = []
    for own in (0.90, 1.0, 1.07):
        fake = FakeRun(pace=own)
        fake.slowest = lambda seconds, own=own: seconds / own
        counts.append(fake.run(tiny_config(iterations=1000, max_wallclock_seconds=25.3, log_every=10)).steps)
    assert len(set(counts)) == 1


def test_switches_follow_the_clock():
    cfg = tiny_config(iterations=10, full_precision_fraction=0.3, ema_start_fraction=0.6, ema_decay=0.9, **TIMED)
    fake = FakeRun()
    fake.run(cfg)
    assert [step.rounded for step in fake.steps] == [False] * 3 + [True] * 7
    assert [step.averaging for step in fake.steps] == [False] * 6 + [True] * 4
    assert [step.factor for step in fake.steps] == [learning_rate_factor(cfg, i / 10) for i in range(10)]


def test_ctrl_c_saves_and_passes_on():
    fake = FakeRun(interrupt_at=4)
    with pytest.raises(KeyboardInterrupt):
        fake.run(tiny_config(iterations=10))
    assert fake.saves == [(4, 4.0)]


def test_checkpoints_come_at_their_interval():
    fake = FakeRun()
    fake.run(tiny_config(iterations=10, checkpoint_every=4))
    assert fake.saves == [(4, 4.0), (8, 8.0)]


def test_skipped_steps_are_counted_and_three_in_a_row_raise():
    nan = float("nan")
    fake = FakeRun(norms=[1.0, nan, float("inf"), 1.0, nan, 1.0])
    assert fake.run(tiny_config(iterations=8)).skipped == 3
    with pytest.raises(FloatingPointError, match=r"not finite since step 2; lower train\.matrix_lr"):
        FakeRun(norms=[1.0, 1.0, nan, nan, nan]).run(tiny_config(iterations=8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_finite_gradients_leave_every_state_untouched(backend):
    cfg, poisoned = tiny_config(ema_decay=0.9), []

    def forward(ops, p, cfg, tokens):
        stream, auxiliary = load_arch("unet").forward(ops, p, cfg, tokens)
        return stream * float("nan") if poisoned else stream, auxiliary

    arch = SimpleNamespace(forward=forward, readout=load_arch("unet").readout, param_specs=load_arch("unet").param_specs)
    trained, rows = start(cfg, backend, arch=arch), random_tokens(cfg, 4, 33)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)
    before = trained.state()
    poisoned.append(True)
    assert not np.isfinite(trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)()[1])
    after = trained.state()
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)
    poisoned.clear()
    assert np.isfinite(trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)()[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_warm_up_leaves_no_trace(backend):
    cfg = tiny_config(warmup_steps=3, ema_decay=0.9, full_precision_fraction=0.1)
    trained, rows = start(cfg, backend), random_tokens(cfg, 4, 33)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, True)
    before = trained.state()
    warm_up(cfg, trained, 0)
    after = trained.state()
    assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)


def test_log_writes_lines_for_people_and_records_for_programs(tmp_path, shard_folder, capsys):
    cfg = tiny_config(iterations=20, log_every=10)
    log = RunLog(0, str(tmp_path))
    run_training(cfg, load_arch("unet").param_specs(cfg), start(cfg), shard_folder, 1, log, None, lambda *state: None)
    text = (tmp_path / "train.log").read_text()
    assert "step:10/20 train_loss:" in text and "step:20/20 train_loss:" in text and text == capsys.readouterr().out
    records = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 2 and '"step": 20' in records[1]
    RunLog(1, str(tmp_path)).line("not from rank 1")
    assert (tmp_path / "train.log").read_text() == text and not capsys.readouterr().out
    RunLog(0, str(tmp_path), keep=True).line("more")
    assert (tmp_path / "train.log").read_text() == text + "more\n"
