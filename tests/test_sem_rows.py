"""The rows that a study of sem reports and no gate holds: variances and steps to a loss, against numbers that were put in."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.sem_rows import rows_of, steps_to, text

STUDY = SimpleNamespace(variants=[SimpleNamespace(name=name) for name in ("first", "steady", "stuck", "absent")], seeds=[1, 2])


def write(folder, losses, norms, bpb, every=1):
    folder.mkdir(parents=True)
    lines = [{"step": i + 1, "train_loss": loss, "gradient_norm": norm} for i, (loss, norm) in enumerate(zip(losses, norms))]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(x) for x in [{"event": "start"}, *lines[every - 1 :: every]]) + "\n")
    (folder / "record.json").write_text(json.dumps({"bpb": bpb}))


def test_rows_are_the_ratios_that_were_put_in(tmp_path):
    """Half the noise is a quarter of the variance, whatever the slope; twice as fast is half the steps; a variant that takes two thirds as
    long for a step has three halves as many of them, and is there at a third of the time."""
    for seed in (1, 2):
        generator = np.random.default_rng(seed)
        noise = np.tile(generator.standard_normal(100), 6)
        for name, steps, speed, share, level in (("first", 400, 1, 1, 2.0), ("steady", 600, 2, 0.5, 4.0), ("stuck", 400, 0, 1, 2.0)):
            losses = 6 - 0.004 * speed * np.arange(steps) + 0.01 * share * noise[:steps]
            write(tmp_path / name / str(seed), losses, level + 0.1 * level * noise[:steps], 1.5 if name == "first" else 1.4)
    rows = {row["variant"]: row for row in rows_of(STUDY, tmp_path)}
    assert list(rows) == ["first", "steady", "stuck"] and all(row["seeds"] == 2 for row in rows.values())
    assert all(rows["first"][key] == 1 for key in ("loss_variance", "gradient_variance", "gradient_spread", "steps", "time"))
    found = rows["steady"]
    assert found["bpb"] == pytest.approx(1.4) and found["loss_variance"] == pytest.approx(0.25, rel=0.2)
    assert found["gradient_variance"] == pytest.approx(4, rel=1e-6) and found["gradient_spread"] == pytest.approx(1, rel=1e-6)
    assert found["steps"] == pytest.approx(0.5, abs=0.04) and found["time"] == pytest.approx(found["steps"] * 400 / 600)
    assert math.isinf(rows["stuck"]["steps"]) and text(list(rows.values())).splitlines()[-1].endswith("| - | - |")


def test_a_loss_is_reached_where_its_mean_is():
    losses = np.concatenate([np.full(50, 2.0), np.full(50, 1.0)])
    assert steps_to(losses, 1.01) == 70 and steps_to(losses, 1.51) == 60 and steps_to(losses, 0.9) == math.inf


def test_logs_with_gaps_and_studies_without_their_first_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no finished training of first"):
        rows_of(STUDY, tmp_path)
    write(tmp_path / "first" / "1", np.linspace(6, 2, 400), np.ones(400), 1.5, every=10)
    with pytest.raises(ValueError, match=r"train.log_every=1"):
        rows_of(STUDY, tmp_path)
