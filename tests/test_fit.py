"""Planning on the command line: in two seconds and without torch, the largest value that fits, a clear end where nothing does."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trit.compress.fit import UNITS, expected_total, fit
from trit.compress.live import with_prediction
from trit.compress.plan import replaced
from trit.compress.plan_report import plan_report
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.backend import Backend

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "configs" / "demo.toml")


@pytest.mark.parametrize("name", ["engram.engram_buckets", "model.model_dim", "model.num_layers", "model.embed_dim", "quant.embed_bits"])
@pytest.mark.parametrize("cap", [200_000, 400_000])
def test_the_largest_value_that_fits(name, cap):
    config, _, _ = load(DEMO, environ={})
    section, key = name.split(".")
    try:
        found = fit(config, name, 12_000, cap)
    except ValueError as fault:
        assert f"no value of {name} fits {cap:,} bytes" in str(fault)
        assert expected_total(config, 12_000) > cap
        return
    value = getattr(getattr(found, section), key)
    assert expected_total(found, 12_000) <= cap
    unit = UNITS.get(name, 1)
    assert value % unit == 0
    for larger in range(value + unit, value + 20 * unit, unit):
        with contextlib.suppress(ValueError):  # where it does not go with the other settings
            assert expected_total(replaced(config, name, larger), 12_000) > cap, larger


def test_what_is_no_size_is_not_fitted():
    config, _, _ = load(DEMO, environ={})
    for name in ("quant.int_clip", "model.name", "train.iterations", "model.value_residual"):
        with pytest.raises(ValueError, match="is not a size; fit model.model_dim"):
            fit(config, name, 0, 10**6)


def test_a_plan_says_whether_it_fits():
    text, fits, _ = plan_report(DEMO, [], "", {})
    assert fits and "bytes expected to stay free" in text and "embed" in text
    text, fits, _ = plan_report(DEMO, ["track.cap_bytes=100000"], "", {})
    assert not fits and "does not fit: expected size" in text and "saves about" in text
    text, fits, _ = plan_report(DEMO, ["track.cap_bytes=300000"], "engram_buckets", {})
    assert fits and "engram.engram_buckets=" in text.splitlines()[0] and "is the largest that fits" in text


def test_the_command_answers_at_once_for_a_model_of_the_contest():
    command = [sys.executable, "build_submission.py", "--plan", "--config", "configs/ternary_10x768.toml", "--fit", "embed_dim"]
    best = 99.0
    for _ in range(3):
        start = time.time()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        best = min(best, time.time() - start)
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    assert best < 2


def test_steps_predict_the_size_now_and_then():
    config, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=2", "engram.engram_buckets=64"])
    specs, lines = load_arch("unet").param_specs(config), []
    arrays = init_params(specs, 0)

    class Lines:
        def line(self, text):
            lines.append(text)

    backend = Backend(lambda *batch: ("loss", "norm"), None, lambda: arrays, None, None, 0, 1)
    watched = with_prediction(backend, torch_ops, config, specs, Lines())
    assert [watched.step(np.zeros(1)) for _ in range(5)] == [("loss", "norm")] * 5
    assert len(lines) == 2 and lines[0].startswith("predicted size: ") and "bytes free" in lines[0]
    other = with_prediction(backend._replace(rank=1), torch_ops, config, specs, Lines())
    assert [other.step(np.zeros(1)) for _ in range(3)] and len(lines) == 2
    tight, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=1", "track.cap_bytes=20000"])
    with_prediction(backend, torch_ops, tight, specs, Lines()).step()
    assert "OVER by" in lines[-1]
    off, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=0"])
    assert with_prediction(backend, torch_ops, off, specs, Lines()) is backend
