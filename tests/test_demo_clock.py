"""The benchmark of the demo's clock: what is trained how long, and that a stopped one goes on."""

import json

import pytest

from benchmarks import demo_clock


@pytest.fixture
def calls(monkeypatch):
    """Trainings are played: more time helps, but not at the rate 0.02. The list gets (seconds, held-out tokens, seed) of each."""
    made = []

    def measure(config, run, seed, held_out):
        made.append((config.train.max_wallclock_seconds, held_out, seed))
        gain = -0.001 if config.train.matrix_lr == 0.02 else 0.001
        bpb = 2.0 - gain * config.train.max_wallclock_seconds
        return {"bpb": bpb, "steps": 100, "epochs": 0.5, "train_seconds": 1.0, "model_bytes": 1000 + seed}

    monkeypatch.setattr(demo_clock, "measure", measure)
    monkeypatch.setattr(demo_clock.trit.train.run, "wall_clock", demo_clock.trit.train.run.wall_clock)  # that --clock replaces
    return made


def test_every_multiple_and_seed_is_trained_once_and_a_rise_is_told(calls, tmp_path, capsys):
    arguments = ["--seconds", "100", "--seeds", "1", "2", "--tokens", "512", "--log", str(tmp_path / "runs/clock.jsonl")]
    demo_clock.main([*arguments, "demo:", "high:train.matrix_lr=0.02"])
    assert sorted(calls) == sorted([(seconds, 512, seed) for seconds in (50.0, 100.0, 200.0) for seed in (1, 2)] * 2)
    output = capsys.readouterr().out
    assert "demo: 1 to 2 times: -0.1000; worse for 0 of 2 seeds" in output
    assert "high: 0.5 to 1 times: +0.0500; worse for 2 of 2 seeds" in output
    assert any(line.split() == ["demo", "2", "1.8000", "0.0000", "100", "0.50", "1002"] for line in output.splitlines())


def test_what_the_log_holds_is_not_done_again_and_other_settings_are(calls, tmp_path):
    log = tmp_path / "clock.jsonl"
    arguments = ["--seconds", "100", "--seeds", "1", "--times", "1", "--log", str(log)]
    demo_clock.main(arguments)
    demo_clock.main([*arguments, "other:"])
    assert len(calls) == 1 and len(log.read_text().splitlines()) == 1
    for change in (["other:train.matrix_lr=0.02"], ["--tokens", "64"], ["--clock", "cpu"], ["--base", "data_path=elsewhere"]):
        demo_clock.main([*arguments, *change])
    assert len(calls) == 5 and len({json.loads(line)["key"] for line in log.read_text().splitlines()}) == 5
