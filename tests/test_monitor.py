"""The records of a run beside its losses: what they say on made-up steps, that they change nothing, that each can be left out, and that
readers of the file are not misled by them."""

import json
import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from model_fixtures import TINY, Records, largest_difference, random_tokens, start, tiny_config

from trit.config_load import ROOT
from trit.report.page.reading import curve_of
from trit.study.live import last_step
from trit.train import torch_backend
from trit.train.backend import Backend
from trit.train.monitor import (
    KINDS,
    SPIKE_MEAN,
    SPIKE_STEPS,
    band,
    monitored,
    monitored_kinds,
    usable_threads,
    with_dump,
    with_perf,
    with_spikes,
)
from trit.train.phases import Moment
from trit.train.plateau import LadderMoment, with_ladder
from trit.train.torch_compile import with_compile_report


def made_up(losses, norms=None, during=None):
    """A backend whose steps lose `losses` in turn; `during` is called in every step."""
    taken = [0]

    def step(*arguments):
        if during:
            during()
        taken[0] += 1
        number = taken[0] - 1
        return lambda: (losses[number], norms[number] if norms else 1.0)

    return Backend(step, None, None, dict, lambda flat: None, 0, 1)


def test_pace_tells_steps_from_what_is_between_them():
    cfg, log, now = tiny_config("unet", log_every=1, grad_accum_steps=2), Records(), {"wall": 0.0, "cpu": 0.0}

    def compute():
        now["wall"] += 0.2
        now["cpu"] += 0.3

    backend = with_perf(made_up([1.0] * 50, during=compute), cfg, log, 100, 2, lambda: now["wall"], lambda: now["cpu"])
    backend.step()()  # warm-up
    backend.restore({})
    now["wall"] += 77.0  # before the first step nobody waits for text
    backend.restore({})
    for _ in range(25):
        backend.step()()
        now["wall"] += 0.05
    assert [record["step"] for record in log.found] == [110, 120] and all(record["event"] == "perf" for record in log.found)
    for record, between in zip(log.found, (45.0, 50.0)):  # of the first ten steps only nine have one before them
        assert math.isclose(record["between_ms"], between) and math.isclose(record["step_ms"], 200.0) and record["steps"] == 10
        assert math.isclose(record["micro_ms"], 100.0)
    assert math.isclose(log.found[1]["utilisation"], 10 * 0.3 / (10 * 0.25 * 2)) and log.found[1]["band"] == "fair"
    assert [band(share) for share in (0.2, 0.5, 0.86)] == ["starved", "fair", "good"]


def test_a_gpu_has_no_utilisation_here_and_threads_are_what_may_be_used(monkeypatch):
    log = Records()
    backend = with_perf(made_up([1.0] * 10), tiny_config("unet", log_every=1), log, 0, 0)
    for _ in range(10):
        backend.step()()
    assert "utilisation" not in log.found[0] and log.found[0]["step_ms"] >= 0
    for asked, right in (("1", 1), ("", None), ("100000", None), ("0", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert usable_threads() == right or right is None and usable_threads() >= 1
    assert usable_threads() < 100_000


def climbed(losses, raised, first=0):
    """(spike records, lines) of steps that lose `losses`, with a rung raised before the steps `raised`, behind a warm-up step."""
    log = Records()
    backend, close = with_spikes(made_up([9.0, *losses]), log, first)
    backend.step(LadderMoment(False, 1, 0, 0.0, None, 1.0))()
    backend.restore({})
    for number in range(len(losses)):
        backend.step(LadderMoment(False, 1, number, 0.0, None, 0.25 * (1 + sum(number >= place for place in raised))))()
    close(), close()
    assert all(record.pop("event") == "spike" for record in log.found)
    return log.found, log.lines


def test_a_spike_is_measured_until_the_loss_is_as_low_again():
    losses = [3.0] * 20 + [2.0] * 10 + [5.0, 4.0, 3.0] + [1.9] * 40
    (found,), lines = climbed(losses, [30], first=100)
    sums = [sum(losses[30 + i - SPIKE_MEAN : 30 + i]) for i in range(SPIKE_MEAN, 43)]
    steps = SPIKE_MEAN + next(i for i, total in enumerate(sums) if total <= 2.0 * SPIKE_MEAN)
    assert found == {"step": 130, "rung": 0.5, "before": 2.0, "peak": 5.0, "steps": steps, "recovered": True} and not lines
    assert climbed(losses, [])[0] == []


def test_what_is_not_as_low_again_is_flagged():
    """Before the next raise, before the end, and in so many steps."""
    found, lines = climbed([2.0] * 20 + [2.5] * 20 + [2.55] * 10 + [math.nan] + [2.6] * 5, [20, 40])
    assert [(each["step"], each["peak"], each["steps"], each["recovered"]) for each in found] == [
        (20, 2.5, 20, False),
        (40, 2.6, 16, False),
    ]
    assert len(lines) == 2 and lines[0] == "ladder: 20 steps after its raise at step 20 the loss is not as low as before it"
    (found,), _ = climbed([2.0] * 20 + [2.5] * (SPIKE_STEPS + 50), [20])
    assert found["steps"] == SPIKE_STEPS and not found["recovered"]


def test_a_batch_that_gives_no_numbers_is_named():
    log, rows = Records(), [random_tokens(tiny_config(), 2, 9, seed) for seed in range(5)]
    backend = with_dump(made_up([1.0, 1.0, math.nan, 1.0, 3.0], [1.0, 1.0, math.inf, 1.0, math.nan]), log, 50)
    backend.step(rows[0], None)()
    backend.restore({})
    for each in rows[1:]:
        backend.step(each, None)()
    wanted = [(52, 51, None, rows[2]), (54, 53, 3.0, rows[4])]
    assert log.found == [
        {"event": "non_finite", "step": step, "batch": batch, "loss": loss, "tokens_crc32": zlib.crc32(tokens.tobytes())}
        for step, batch, loss, tokens in wanted
    ]
    assert log.lines[0] == "step 52 changed nothing: its gradients are not finite. Batch 51 of the run's order"


def test_records_change_nothing_and_can_be_left_out():
    """A climb of the ladder, monitored in full and not at all: the same weights, moments and losses."""
    cfg = tiny_config("spectral_lm", ladder="0.25,1", ladder_window=4, ladder_gain=0.9, log_every=1)
    states, events = [], []
    for kinds in (KINDS, ()):
        log = Records()
        with monitored(start(cfg), cfg, log, kinds, 0, "cpu") as watched:
            trained = with_ladder(cfg, watched, log)
            for number in range(30):
                rows = random_tokens(cfg, 4, 33, number)
                trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False, Moment(False, 1, number, number / 60))()
        states.append(trained.state())
        events.append({record["event"] for record in log.found})
    assert states[0].keys() == states[1].keys() and all(np.array_equal(x, states[1][name]) for name, x in states[0].items())
    assert events[0] - events[1] == {"perf", "spike"} and events[1] == {"cutoff_raise", "ladder"}
    other = start(cfg)._replace(rank=1)
    with monitored(other, cfg, Records(), KINDS, 0, "cpu") as watched:
        assert watched is other, "one rank speaks for all"
    assert monitored_kinds("none") == [] and monitored_kinds(",".join(KINDS)) == list(KINDS)
    with pytest.raises(ValueError, match="'speed' is no kind of record; choose from perf,spikes,non_finite,compile, or none"):
        monitored_kinds("perf,speed")


def test_a_compiled_run_reports_on_its_compiler_and_trains_alike(monkeypatch):
    """With a compiler that traces and generates no code: the counts are the same."""
    monkeypatch.setattr(
        torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    )
    cfg, log = tiny_config("unet", compile="true", yarn_max_len=64, num_layers=1), Records()
    torch._dynamo.reset()
    plain, reporting = start(cfg), with_compile_report(start(cfg), cfg, log)
    for each in (reporting, plain):  # graphs of the second are those of the first
        for length in (33, 33, 17, 17):
            rows = random_tokens(cfg, 4, length, length)
            each.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    assert largest_difference(plain.state(), reporting.state()) == 0.0
    first, again = log.found
    assert first["event"] == "compile" and (first["graphs"], first["breaks"]) == (2, 0)  # rounding, and the loss
    assert 0 < first["forward_seconds"] < first["first_step_seconds"] and first["loss_apart"] < 1e-5 and first["norm_apart"] < 1e-3
    assert again == {"event": "recompile", "call": 3, "graphs": 1} and not log.lines
    eager = start(tiny_config("unet"))
    assert with_compile_report(eager, tiny_config("unet"), log) is eager


def test_a_compiler_that_computes_something_else_is_reported(monkeypatch):
    """One whose graphs give other numbers when they run compiled."""

    def wrong(graph, inputs):
        return lambda *given: tuple(x * 1.5 if x.ndim == 0 else x for x in graph(*given))

    monkeypatch.setattr(torch_backend, "compiled", lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend=wrong))
    cfg, log = tiny_config("unet", compile="true", num_layers=1), Records()
    torch._dynamo.reset()
    rows = random_tokens(cfg, 4, 33)
    with_compile_report(start(cfg), cfg, log).step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    assert abs(log.found[0]["loss_apart"] - 0.5) < 1e-4 and "train.compile=false is the safe choice" in log.lines[0]


def test_an_entry_writes_the_records_and_readers_of_steps_pass_over_them(tmp_path, shard_folder):
    settings = TINY | {
        "iterations": 20,
        "log_every": 1,
        "data_path": shard_folder,
        "tokenizer_path": "byte260",
        "out_path": tmp_path / "run",
    }
    command = [sys.executable, str(ROOT / "train_gpt.py"), *(f"{key}={value}" for key, value in settings.items())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [record["step"] for record in found if record.get("event") == "perf"] == [10, 20]
    steps = [record for record in found if "event" not in record and "look" not in record]
    assert [step for step, *_ in curve_of("training", "", text).steps] == list(range(1, 21)) == [record["step"] for record in steps]
    assert all(np.isfinite(each[1:]).all() for each in curve_of("training", "", text).steps)
    assert last_step(tmp_path / "run" / "metrics.jsonl") == steps[-1]
    refused = subprocess.run([*command, "--monitor", "all"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert refused.returncode == 1 and "--monitor all: 'all' is no kind of record" in refused.stderr
