"""Planning on the command line: in two seconds and without torch, the largest value that fits, a clear end where nothing does."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trit.compress.fit import UNITS, expected_total, fit
from trit.compress.live import with_prediction
from trit.compress.pack import real_entries
from trit.compress.plan import replaced
from trit.compress.plan_report import plan_report
from trit.compress.quantize import quantize
from trit.compress.sizes import predicted_bytes
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
    before = os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    # Seconds of a processor: the machine's own two are what a quiet one shows on the clock.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 2


def test_steps_predict_the_size_now_and_then():
    config, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=2", "engram.engram_buckets=64"])
    specs, lines, records = load_arch(config.model.name).param_specs(config), [], []
    arrays = init_params(specs, 0)

    class Lines:
        def line(self, text):
            lines.append(text)

        def metrics(self, **record):
            records.append(record)

    backend = Backend(lambda *batch: ("loss", "norm"), None, lambda: arrays, None, None, 0, 1)
    watched = with_prediction(backend, torch_ops, config, specs, Lines())
    assert [watched.step(np.zeros(1)) for _ in range(5)] == [("loss", "norm")] * 5
    assert len(lines) == 2 and lines[0].startswith("predicted size: ") and "bytes free" in lines[0]
    assert f"{records[0]['predicted_bytes']:,}" in lines[0] and records[0]["churn"] == {} and set(records[1]["churn"].values()) == {0.0}
    alone = predicted_bytes(torch_ops, config, specs, arrays)
    assert config.compress.code_bytes_reserve and records[0]["predicted_bytes"] == config.compress.code_bytes_reserve + alone
    other = with_prediction(backend._replace(rank=1), torch_ops, config, specs, Lines())
    assert [other.step(np.zeros(1)) for _ in range(3)] and len(lines) == 2
    tight, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=1", "track.cap_bytes=20000"])
    with_prediction(backend, torch_ops, tight, specs, Lines()).step()
    assert "OVER by" in lines[-1]
    off, _, _ = load(DEMO, environ={}, overrides=["compress.predict_every=0"])
    assert with_prediction(backend, torch_ops, off, specs, Lines()) is backend


def test_churn_is_the_share_of_trits_that_changed_since_the_last_look():
    config, _, _ = load(
        DEMO,
        environ={},
        overrides=["compress.predict_every=1", "engram.engram_buckets=64", "quant.bitnet_group_size=40", "train.compile=false"],
    )
    specs, records = load_arch("unet").param_specs(config), []
    arrays, names = init_params(specs, 0), [spec.name for spec in specs if spec.scheme == "ternary"]

    class Records:
        def line(self, text):
            pass

        def metrics(self, **record):
            records.append(record)

    watched = with_prediction(Backend(lambda: None, None, lambda: arrays, None, None, 0, 1), torch_ops, config, specs, Records())
    watched.step()
    arrays[names[0]] = -arrays[names[0]]
    watched.step()
    noughts, (spec,) = records[1]["noughts"], [spec for spec in specs if spec.name == names[0]]
    codes = quantize(torch_ops, config, [spec], {spec.name: torch_ops.from_numpy(arrays[spec.name])}, {})[spec.name].codes
    assert codes.size > arrays[spec.name].size and abs(noughts[spec.name] - (codes[real_entries(spec)] == 0).mean()) < 1e-6  # no padding
    assert set(noughts) == set(records[1]["churn"]) == set(names) and 0.2 < noughts[names[0]] < 0.5
    assert abs(records[1]["churn"][names[0]] - (1 - noughts[names[0]])) < 1e-5 and not any(records[1]["churn"][name] for name in names[1:])
