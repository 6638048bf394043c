"""The benchmark that looks for the end of a relaxation's training."""

import json
import sys

import pytest

from benchmarks import wall
from trit.layers import implicit


def test_a_finished_training_is_kept_and_not_run_again(tmp_path, monkeypatch, capsys):
    """Two variants of one step; of the unguarded one no text is left out, though none is at rest after one evaluation."""
    monkeypatch.setattr(wall, "restless", lambda *_: {"newton": 0})
    short, out = "arch.free_solver=euler,arch.free_budget=1,arch.residual_gate=1e-6", tmp_path / "found.jsonl"
    arguments = ["wall", "--steps", "1", "--seeds", "1", "--marks", "1", "--out", str(out), f"guarded:{short}", f"free:open,{short}"]
    monkeypatch.setattr(sys, "argv", arguments)
    wall.main()
    guarded, free = (json.loads(line) for line in out.read_text().splitlines())
    assert guarded["left_out"] == 1.0 and free["left_out"] == 0.0 and len(free["losses"]) == 1 and implicit.RHO_GATE == 4.0
    assert "step 1:" in capsys.readouterr().out
    before = out.read_text()
    monkeypatch.setattr(sys, "argv", [*arguments, "--plot", str(tmp_path / "wall.png")])
    monkeypatch.setattr(wall, "train", lambda *_: pytest.fail("ran again"))
    wall.main()
    assert out.read_text() == before and (tmp_path / "wall.png").stat().st_size > 5000
