"""Phases of training: their schedules, the batches of each, nothing compiled on the clock, runs that resume in the middle of any."""

import contextlib

import numpy as np
import pytest
import torch
from model_fixtures import (
    BACKENDS,
    graphs_of_run,
    largest_difference,
    load_arch,
    logits_of,
    random_arrays,
    random_tokens,
    start,
    tiny_config,
)
from test_schedule import FakeRun

from trit.data.loader import TokenLoader, WindowLoader, open_loader
from trit.train import torch_backend
from trit.train.log import Log
from trit.train.loop import train, warm_up
from trit.train.phases import Phase, all_phases, has_phases, phase_at
from trit.train.run import run_training

ALL = {"seq_schedule": "8:0.2,16:0.5", "batch_schedule": "64:0.3", "recurrent_layers": "1", "recurrence_start": 0.7}


class PhasedRun(FakeRun):
    """A `FakeRun` that also hands out batches by size, numbered tokens, and keeps the shapes and moments of its steps. A token takes
    `pace` / 128 seconds."""

    def __init__(self, tokens=128, **named):
        super().__init__(**named)
        self.cost, self.seed, self.taken, self.seen = self.pace / 128, 5, [0], []
        self.rows = tokens // 32

    def next_batch(self):
        return self.next_windows(self.rows)

    def next_windows(self, rows):
        self.taken.append(self.taken[-1] + rows)
        tokens = np.arange(rows * 32, dtype=np.int32).reshape(rows, 32) + self.taken[-2] * 32
        return tokens, tokens + 1

    def step(self, inputs, targets, factor, rounded, averaging, moment=None):
        assert np.array_equal(targets, inputs + 1)
        self.seen.append((inputs.shape, moment.shallow if moment else None, inputs.ravel()[0]))
        self.pace = self.cost * inputs.size
        return super().step(inputs, targets, factor, rounded, averaging)


def test_a_phase_holds_until_its_share_of_the_clock():
    cfg = tiny_config(**ALL)
    wanted = {0.0: (8, 64, True), 0.199: (8, 64, True), 0.2: (16, 64, True), 0.3: (16, 128, True), 0.5: (32, 128, True)}
    wanted |= {0.7: (32, 128, False), 1.0: (32, 128, False)}
    for progress, phase in wanted.items():
        assert phase_at(cfg, progress) == Phase(*phase)
    found = all_phases(cfg)
    assert found == [Phase(*phase) for phase in dict.fromkeys(wanted.values())]
    assert {phase_at(cfg, i / 1000) for i in range(1001)} == set(found)
    assert not has_phases(tiny_config(recurrent_layers="1"))


@pytest.mark.parametrize("settings,message", [
    ({"seq_schedule": "64"}, "is no schedule; write value:share"),
    ({"seq_schedule": "8:0.1,"}, "is no schedule"),
    ({"seq_schedule": "8:0.1;16:0.2"}, "is no schedule"),
    ({"seq_schedule": "8:0.3,16:0.1"}, "must rise"),
    ({"seq_schedule": "8:1.0"}, "below 1"),
    ({"seq_schedule": "8:0"}, "above 0"),
    ({"seq_schedule": "8:nan"}, "must rise"),
    ({"seq_schedule": "12:0.1"}, "windows of 12 do not divide train.train_seq_len=32; possible: 2, 4, 8, 16"),
    ({"seq_schedule": "64:0.1"}, "do not divide"),
    ({"seq_schedule": "-8:0.1"}, "do not divide"),
    ({"batch_schedule": "48:0.1"}, r"48 tokens are no multiple of world_size\*grad_accum_steps\*train_seq_len = 32; nearest 32 or 64"),
    ({"batch_schedule": "0:0.1"}, "nearest 32"),
    ({"batch_schedule": "96:0.1", "grad_accum_steps": 2}, "= 64; nearest 64 or 128"),
    ({"seq_schedule": "8:0.1", "compile": "true", "warmup_steps": 0}, "would compile every phase on the clock"),
])  # fmt: skip
def test_impossible_schedules_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)


@pytest.mark.parametrize("ahead", [0, 1])
def test_every_step_has_the_shape_of_its_phase_on_the_clock(ahead):
    """Ten seconds of budget: a step of 64 tokens takes half a second, one of 128 a second. No batch is left over from another phase
    and no token is skipped."""
    cfg = tiny_config(**ALL | {"iterations": 1000, "max_wallclock_seconds": 10})
    run = PhasedRun(ahead=ahead)
    result = run.run(cfg)
    assert result.seconds <= 10.0
    shapes = [shape for shape, _, _ in run.seen]
    assert shapes[:3] == [(8, 8)] * 3 and set(shapes) == {(8, 8), (4, 16), (8, 16), (4, 32)}
    ends = np.cumsum([np.prod(shape) for shape in shapes])
    assert [first for _, _, first in run.seen] == [0, *ends[:-1]]
    if ahead == 0:
        begins = [0, *np.cumsum([np.prod(shape) / 128 for shape in shapes])[:-1]]
        for (shape, shallow, _), begin in zip(run.seen, begins):
            phase = phase_at(cfg, begin / 10)
            assert shape == (phase.tokens // phase.length, phase.length) and shallow == phase.shallow


def test_the_pace_is_that_of_the_phase():
    """Steps get eight times longer at 50 %: judged by the mean of all steps, one more would begin and end behind the cap."""
    cfg = tiny_config(batch_schedule="32:0.5", iterations=1000, max_wallclock_seconds=10, train_batch_tokens=256)
    run = PhasedRun()
    result = run.run(cfg)
    assert result.seconds == 9.0 and run.seen[-1][0] == (8, 32)


def test_speed_counts_the_tokens_that_were_taken():
    cfg = tiny_config(batch_schedule="32:0.5", iterations=20, log_every=1)
    run, speeds = PhasedRun(), []
    run.metrics = lambda **record: speeds.append(record["tokens_per_second"])
    run.run(cfg)
    assert np.allclose(speeds, 128.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_warm_up_takes_every_phase_and_changes_nothing(backend):
    cfg = tiny_config(**ALL | {"full_precision_fraction": 0.1, "warmup_steps": 1, "ema_decay": 0.9, "ema_start_fraction": 0.0})
    trained, seen = start(cfg, backend), set()
    before = trained.state()

    def step(inputs, targets, factor, rounded, averaging, moment):
        seen.add((Phase(inputs.shape[1], inputs.size, moment.shallow), rounded))
        return trained.step(inputs, targets, factor, rounded, averaging, moment)

    warm_up(cfg, trained._replace(step=step), 1)
    assert seen == {(phase, rounded) for phase in all_phases(cfg) for rounded in (True, False)}
    assert largest_difference(before, trained.state()) == 0


def test_nothing_compiles_on_the_clock(monkeypatch, shard_folder):
    """Eleven phases, more than the compiler takes of one function unasked. What traces is what counts, so its code need not be made."""
    monkeypatch.setattr(torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="eager"))
    many = {
        "seq_schedule": "2:0.1,4:0.2,8:0.3,16:0.4",
        "batch_schedule": "32:0.05,64:0.15,96:0.25,128:0.35,160:0.45",
        "recurrence_start": 0.6,
    }
    chance = {"noise": 0.1, "drop_path": 0.2}
    cfg = tiny_config(num_layers=1, recurrent_layers="0", compile="true", iterations=30, train_batch_tokens=192, **many, **chance)
    graphs = graphs_of_run(cfg, shard_folder)
    warm = len(all_phases(cfg)) * cfg.train.warmup_steps
    assert len(all_phases(cfg)) == 11 and len(graphs) == warm + 30
    assert graphs[warm - 1] >= graphs[0] + 10 and len(set(graphs[warm - 1 :])) == 1


def reached(cfg, backend, folder, stop, resumed=None):
    """(backend, last saved) of a run that is interrupted in its step number `stop`, or ends."""
    trained, saved, left = start(cfg, backend), [], [stop]

    def step(*arguments):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return trained.step(*arguments)

    warm = cfg.train.warmup_steps * len(all_phases(cfg))
    left[0] += warm
    with contextlib.suppress(KeyboardInterrupt):
        run_training(
            cfg, load_arch("unet").param_specs(cfg), trained._replace(step=step), folder, 1, Log(1), resumed, lambda *s: saved.append(s)
        )
    return trained, saved[-1]


@pytest.mark.parametrize("backend,stops", [("torch", range(10)), ("mlx", (1, 4))])
def test_a_run_resumes_bit_for_bit_in_the_middle_of_any_phase(backend, stops, shard_folder):
    cfg = tiny_config(iterations=10, noise=0.1, drop_path=0.2, **ALL)
    straight, end = reached(cfg, backend, shard_folder, 1000)
    taken = [phase_at(cfg, step / 10).tokens // 32 for step in range(10)]
    assert end[1] == 10 and end[3] == sum(taken)
    for stop in stops:
        _, saved = reached(cfg, backend, shard_folder, stop)
        assert saved[1] == stop and saved[3] == sum(taken[:stop])
        resumed, _ = reached(cfg, backend, shard_folder, 1000, saved)
        assert largest_difference(straight.state(), resumed.state()) == 0


def texts():
    return [np.arange(a, b, dtype=np.uint16) for a, b in ((0, 333), (333, 350), (350, 700))]


def taken_windows(sizes, rank=0, world=1, position=0):
    loader = WindowLoader(texts(), 16, world, 3, rank, world, position)
    try:
        return [loader.next_windows(rows) for rows in sizes], loader.taken
    finally:
        loader.close()


def test_steps_of_any_size_take_one_stream_in_order():
    """Also when the number changes while batches of the old one are made ahead, and over the end of an epoch."""
    sizes = [2, 2, 4, 8, 8, 8, 2, 4, 8, 8, 2]
    found, taken = taken_windows(sizes)
    whole = TokenLoader(texts(), 16, 1, 3)
    singles = [whole.next_batch() for _ in range(sum(sizes))]
    whole.close()
    assert taken == [0, *np.cumsum(sizes)]
    for part in (0, 1):
        assert np.array_equal(np.concatenate([batch[part] for batch in found]), np.concatenate([batch[part] for batch in singles]))
    assert [len(batch[0]) for batch in found] == sizes
    ranks = [taken_windows(sizes, rank, 2)[0] for rank in range(2)]
    for number, batch in enumerate(found):
        assert np.array_equal(np.concatenate([rank[number][0] for rank in ranks]), batch[0])
    again, _ = taken_windows(sizes[4:], position=taken[4])
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(again, found[4:], strict=True))


def test_settings_choose_the_loader(shard_folder):
    for extra, kind in (({}, TokenLoader), ({"seq_schedule": "8:0.5"}, TokenLoader), ({"batch_schedule": "64:0.5"}, WindowLoader)):
        loader = open_loader(tiny_config(**extra), shard_folder, 1)
        loader.close()
        assert type(loader) is kind


@pytest.mark.parametrize("backend", BACKENDS)
def test_short_windows_have_the_positions_of_long_ones(backend):
    """Rotary frequencies come from train_seq_len, whatever the window: a short one is the start of a long one."""
    cfg = tiny_config(seq_schedule="8:0.5")
    arrays, tokens = random_arrays(load_arch("unet").param_specs(cfg)), random_tokens(cfg, 2, 32)
    assert np.abs(logits_of(cfg, arrays, tokens, backend)[:, :8] - logits_of(cfg, arrays, tokens[:, :8], backend)).max() <= 2e-5


def test_windows_of_a_curriculum_are_cut_from_those_without_it(shard_folder):
    """The same tokens a step in the same order, and with it the same step where nothing is seen across the cut: each token alone."""
    seen = {}
    for schedule in ("", "8:0.5"):
        cfg = tiny_config(iterations=4, seq_schedule=schedule)
        loader, run = open_loader(cfg, shard_folder, 1), PhasedRun()
        seen[schedule] = []

        def step(inputs, targets, *rest, taken=seen[schedule], run=run):
            taken.append(inputs)
            return FakeRun.step(run, inputs, targets, *rest)

        run.step = step
        train(cfg, run, loader, run, lambda *state: None, 0, 0.0, run.clock)
        loader.close()
    assert [batch.shape for batch in seen["8:0.5"]] == [(16, 8)] * 2 + [(4, 32)] * 2
    assert all(np.array_equal(a.ravel(), b.ravel()) for a, b in zip(*seen.values(), strict=True))
