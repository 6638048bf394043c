"""The live table of a study: what it shows of running and finished trainings, when it thinks that all will be done, and that it is quiet
where nobody watches."""

import io
import json
import os
import pty
import subprocess
import time

import pytest
from rich.console import Console
from test_study import command, write_study

from trit.config_load import ROOT
from trit.study.files import write_json
from trit.study.live import Clock, Lines, Table, progress, span
from trit.study.plan import read_study

STEP = {"step": 3, "train_loss": 3.25, "seconds": 30.0}


@pytest.fixture
def study(tmp_path):
    """(study, its folder) with two records of each of two variants but the last one's second, which trains at step 3 of 6."""
    text = "[variants]\nfirst = []\nsecond_with_a_long_name_that_an_80_column_terminal_has_no_room_for = []\n"
    made, out = read_study(write_study(tmp_path, "data", text)), tmp_path / "out"
    for variant, values in zip(made.variants, ([2.0, 2.02], [1.9])):
        for seed in made.seeds:
            folder = out / variant.name / str(seed)
            folder.mkdir(parents=True)
            job = {"preset": None, "settings": made.settings(variant), "name": variant.name, "seed": seed, "score": True}
            write_json(folder / "job.json", job)
            if seed <= len(values):
                write_json(folder / "record.json", {"name": variant.name, "seed": seed, "bpb": values[seed - 1]})
    (folder / "metrics.jsonl").write_text('{"step": 1}\n' + json.dumps(STEP) + '\n{"step": 4, "tr')
    return made, out, folder


def drawn(study, out, folder, width, height=30):
    """The table on a terminal of that size, as text."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    shown = Table(study, out, 1, io.StringIO(), console)
    shown.clock.begins(folder, 0.0)
    console.print(shown.drawn({folder: progress(folder)}, 2, 60.0))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_it_shows_running_trainings_finished_variants_and_the_end(study, width):
    text = drawn(*study, width)
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "3 of 6" in text and "3.2500" in text and "0:30" in text, "step, loss, and as long again as it took"
    assert "2.0100" in text and "0.0141" in text and "-0.1100" in text and "2 of 2" in text and "1 of 2" in text
    # Half of a training took 60 seconds: 60 more, then two of 120.
    assert "3 done, 1 running, 2 left, ends" in text and "(in 5:00)" in text


def test_more_variants_than_a_terminal_has_lines_are_cut_and_counted(tmp_path):
    names = [f"v{i}" for i in range(40)]
    path = write_study(tmp_path, "data", "[variants]\n" + "".join(f"{name} = []\n" for name in names), seeds=[1])
    study, out = read_study(path), tmp_path / "out"
    for i, name in enumerate(names):
        (out / name / "1").mkdir(parents=True)
        write_json(out / name / "1" / "record.json", {"name": name, "seed": 1, "bpb": 2.0 - i / 100})
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=20, color_system=None)
    console.print(Table(study, out, 0, io.StringIO(), console).drawn({}, 0, 0.0))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 20 and lines[2].startswith("v0 ") and lines[3].startswith("v39 "), "the first, then the best"
    assert any("more variants, worse than these" in line for line in lines)


def test_stages_and_files_of_a_killed_training(study):
    _, _, folder = study
    assert progress(folder).stage == "trains" and progress(folder).share == 0.5
    write_json(folder / "trained.json", {"steps": 6, "seconds": 60.0, "loss": 3.0})
    assert progress(folder).stage == "scores"
    later = time.time() + 10
    os.utime(folder / "job.json", (later, later))
    assert progress(folder).stage == "waits", "what was written before the job was asked for is of a training that was killed"


def test_the_end_is_told_from_what_trainings_took():
    clock = Clock()
    assert clock.left({}, 3, 0.0) != clock.left({}, 3, 0.0), "nothing tells yet"
    clock.begins("a", 0.0)
    clock.begins("b", 0.0)
    clock.ends("a", 100.0)
    clock.begins("c", 100.0)
    assert clock.left({"b": 0.5, "c": 0.1}, 1, 150.0) == pytest.approx((0 + 50 + 100) / 2)
    assert [span(7), span(760), span(11100)] == ["0:07", "12:40", "3:05:00"]


def test_without_a_terminal_there_are_lines_and_nothing_else(tmp_path, capsys):
    study, lines = read_study(write_study(tmp_path, "data")), io.StringIO()
    with Lines(study, tmp_path, 4, lines) as shown:
        shown.refresh({}, {})
        shown.ended(tmp_path, "first seed 1: done")
    assert lines.getvalue() == "first seed 1: done\n" and capsys.readouterr() == ("", "")


def test_a_terminal_gets_the_table_and_pipes_get_the_lines(tmp_path):
    """A study whose only training fails at once, so that no array library has much to do."""
    path = write_study(tmp_path, str(tmp_path / "nowhere"), "[variants]\nbroken = []\n", seeds=[1], score=False)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(path, tmp_path / "out"), cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux ends a terminal that nobody holds with an error
            break
        seen += part
    assert process.wait() == 1 and process.stdout.read() == b""
    assert b"tiny: 0 done" in seen and b"broken/1 failed" in seen and b"\x1b[" in seen
