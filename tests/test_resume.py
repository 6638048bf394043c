"""A run that stopped goes on as if it had not: 60 steps equal 30, a checkpoint on disk, and 30 more, in every bit."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model_fixtures import BACKENDS, TINY, load_arch, start, tiny_config

from trit.train.checkpoint import load_checkpoint, save_checkpoint, trained_arrays
from trit.train.log import Log
from trit.train.run import run_training

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"ema_decay": 0.9, "ema_start_fraction": 0.2, "full_precision_fraction": 0.1, "engram_buckets": 64}


def equal(left, right):
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("backend,steps", [("torch", 60), ("mlx", 10)])
def test_a_whole_run_equals_two_halves(backend, steps, tmp_path, shard_folder):
    half = steps // 2
    cfg = tiny_config(iterations=steps, checkpoint_every=half, **SETTINGS)
    saved = {}

    def save(state, step, seconds, position):
        saved[step] = (state, step, seconds, position)
        save_checkpoint(tmp_path / f"{step}.npz", cfg, state, step, seconds, position)

    def run(resumed):
        trained = start(cfg, backend)
        assert run_training(cfg, load_arch("unet").param_specs(cfg), trained, shard_folder, 1, Log(1), resumed, save).steps == steps
        return trained.export()

    whole = run(None)
    assert sorted(saved) == [half, steps]
    last_state = saved[steps][0]
    config, *resumed = load_checkpoint(tmp_path / f"{half}.npz")
    assert config == cfg and resumed[1:] == [half, saved[half][2], half]
    equal(resumed[0], saved[half][0])
    equal(whole, run(resumed))
    equal(last_state, saved[steps][0])
    equal(trained_arrays(last_state), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_in_the_middle_of_a_step_loses_nothing(backend, shard_folder):
    """The step that was broken off is done again on the same batch."""
    cfg = tiny_config(iterations=12, **SETTINGS)
    specs = load_arch("unet").param_specs(cfg)
    saved, calls = [], []

    def interrupted(backend):
        def step(*arguments):
            calls.append(1)
            if len(calls) == 1 + cfg.train.warmup_steps + 7:
                raise KeyboardInterrupt
            return backend.step(*arguments)

        return backend._replace(step=step)

    straight = start(cfg, backend)
    run_training(cfg, specs, straight, shard_folder, 1, Log(1), None, lambda *state: None)
    with pytest.raises(KeyboardInterrupt):
        run_training(cfg, specs, interrupted(start(cfg, backend)), shard_folder, 1, Log(1), None, lambda *state: saved.append(state))
    assert saved[-1][1] == saved[-1][3] == 7
    broken = start(cfg, backend)
    run_training(cfg, specs, broken, shard_folder, 1, Log(1), saved[-1], lambda *state: None)
    equal(straight.state(), broken.state())


def test_a_run_moves_from_torch_to_mlx_and_ends_alike(shard_folder):
    cfg = tiny_config(iterations=12, checkpoint_every=6, full_precision_fraction=0.9)
    specs = load_arch("unet").param_specs(cfg)
    saved = []
    run_training(cfg, specs, start(cfg, "torch"), shard_folder, 1, Log(1), None, lambda *state: saved.append(state))
    moved = start(cfg, "mlx")
    run_training(cfg, specs, moved, shard_folder, 1, Log(1), saved[0], lambda *state: None)
    ended = moved.export()
    for name, array in trained_arrays(saved[-1][0]).items():
        assert np.abs(ended[name] - array).max() < 5e-3, name


def test_the_clock_is_inside_the_checkpoint(shard_folder):
    cfg = tiny_config(iterations=1000, max_wallclock_seconds=100.0)
    specs = load_arch("unet").param_specs(cfg)
    trained = start(cfg)
    state, ends = trained.state(), []
    result = run_training(cfg, specs, trained, shard_folder, 1, Log(1), (state, 40, 100.0, 40), lambda *end: ends.append(end))
    assert result.steps == 40 and result.seconds >= 100.0
    assert ends[0][1:] == (40, result.seconds, 40)
    equal(ends[0][0], state)


def test_damaged_and_missing_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*; train first"):
        load_checkpoint(tmp_path / "none.npz")
    path = tmp_path / "some.npz"
    save_checkpoint(path, tiny_config(), start(tiny_config()).state(), 1, 2.0, 1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        load_checkpoint(path)
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.parametrize("entry", ["train_gpt.py", "train_gpt_mlx.py"])
def test_entries_train_resume_and_refuse_other_settings(entry, tmp_path, shard_folder):
    """Both entries write the same files; the second resume meets another configuration and says so."""

    def launch(*extra):
        settings = TINY | {
            "iterations": 10,
            "log_every": 5,
            "data_path": shard_folder,
            "tokenizer_path": "byte260",
            "out_path": tmp_path / "run",
        }
        command = [sys.executable, str(ROOT / entry)] + [f"{key}={value}" for key, value in settings.items()] + list(extra)
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)

    first = launch()
    assert first.returncode == 0, first.stderr
    assert "step:10/10" in first.stdout
    assert {"config.json", "train.log", "metrics.jsonl", "checkpoint.npz"} <= {path.name for path in (tmp_path / "run").iterdir()}
    config, state, step, *_ = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert step == 10 and all(np.isfinite(array).all() for array in trained_arrays(state).values())
    other = launch("resume=true", "iterations=11")
    assert other.returncode == 1 and re.search(r"error: .*checkpoint\.npz has other settings", other.stderr)
