"""run.fit_clock: training ends earlier by what compression takes here, never later than the preset says, and a resumed run keeps its clock."""

import json
import re
from types import SimpleNamespace

import pytest
from model_fixtures import Records, tiny_config
from record_fixtures import TINY, run, session_text

import trit.fit_clock
from trit.launch import prepare_run
from trit.library import load_library


def with_room(monkeypatch, seconds, **settings):
    """(clock of a configuration where compression takes so many seconds, lines of the log)."""
    monkeypatch.setattr(trit.fit_clock, "compress_run", lambda *given: (None, b"", seconds))
    library, log = load_library("torch"), Records()
    config = tiny_config(**{"train_seconds": 300.0, "max_wallclock_seconds": 290.0, "calibration_evals": 0} | settings)
    return trit.fit_clock.with_room(
        library, config, library.backend.start_process(), {}, "data", log
    ).train.max_wallclock_seconds, log.lines


def test_what_compression_takes_is_left_twice_and_the_preset_is_the_most(monkeypatch):
    clock, lines = with_room(monkeypatch, 24.5)
    assert clock == 249.0 and lines == ["fit_clock: compression takes 24.5s here; training may take 249s of 300s"]
    assert with_room(monkeypatch, 0.5)[0] == 290.0
    assert with_room(monkeypatch, 0.5, max_wallclock_seconds=20.0)[0] == 20.0


def test_a_track_that_leaves_nothing_or_has_no_limit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"one compression took 149\.0s here, of track.train_seconds=300; nothing is left"):
        with_room(monkeypatch, 149.0)
    with pytest.raises(ValueError, match=r"run.fit_clock=true needs a limit to fit to: set track.train_seconds"):
        with_room(monkeypatch, 1.0, train_seconds=0.0, max_wallclock_seconds=0.0)


def test_a_run_measures_once_and_a_resumed_one_keeps_its_clock(tmp_path):
    """The real compression is timed, behind the firewall; the clock it leaves stands in config.json and is what resume=true compares with."""
    settings = [*TINY, f"data_path={session_text()}", f"out_path={tmp_path}", "fit_clock=true", "train.max_wallclock_seconds=299.9"]
    settings += ["compress.calibration_evals=0"]
    done = run("train_gpt.py", *settings)
    assert done.returncode == 0, done.stderr
    said = r"^fit_clock: compression takes ([\d.]+)s here; training may take ([\d.]+)s of 300s$"
    ((taken, left),) = re.findall(said, done.stdout, re.MULTILINE)
    assert abs(298.0 - 2.0 * float(taken) - float(left)) <= 0.11 and 0.0 < float(left) < 298.0
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_wallclock_seconds"] == float(left)
    again = run("train_gpt.py", *settings, "resume=true")
    assert again.returncode == 0 and not re.search(said, again.stdout, re.MULTILINE), again.stderr
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_wallclock_seconds"] == float(left)
    options = SimpleNamespace(config=None)
    with pytest.raises(ValueError, match="has other settings than this command"):
        prepare_run(options, [*settings, "resume=true", "train.iterations=13"], 1)
    with pytest.raises(ValueError, match="has other settings than this command"):
        prepare_run(options, [*settings, "resume=true", "fit_clock=false"], 1)
