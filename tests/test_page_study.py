"""The page of a study, the curves of logs, and how charts are laid out."""

import json
import math
import subprocess
import sys

import pytest
from page_fixtures import HOSTILE, losses, stands_alone
from record_fixtures import ROOT

from trit.report.page import reading, svg
from trit.report.page.__main__ import main


def test_curves_of_logs(tmp_path):
    log, metrics = losses(5.0, 20)
    whole, bare = reading.curve_of("x", log, metrics), reading.curve_of("x", log)
    assert [s[0] for s in whole.steps] == [s[0] for s in bare.steps] == list(range(5, 101, 5))
    assert bare.steps[3] == pytest.approx((20, 0.4, 5 / 3, 9020), rel=1e-4) and bare.scored == [(0.5, 2.5), (1.0, 2.25)]
    assert bare.predicted == [(step, 20000 - step) for step in (20, 40, 60, 80, 100)]
    assert [look["step"] for look in whole.looks] == [20, 40, 60, 80, 100]
    again = reading.curve_of("x", log + "step:5/100 train_loss:9.0000 train_time:100ms step_avg:20.00ms tok/s:5 left:1s\n")
    assert len(again.steps) == 20 and again.steps[0][2] == 9.0
    for seed in (1, 2):
        (tmp_path / f"train_seed{seed}.log").write_text(log)
    assert [curve.name for curve in reading.curves(tmp_path)] == ["seed 1", "seed 2"]


def write_results(folder):
    """Results of a study of two variants and two seeds in a folder; -> the study's file."""
    for name, bpb in (("first", 2.0), ("second", 1.9)):
        for seed in (1, 2):
            place = folder / name / str(seed)
            place.mkdir(parents=True)
            record = {"name": name, "seed": seed, "bpb": bpb + seed / 100, "steps": 100, "tokens_per_second": 900 + seed, "seconds": 2.0}
            (place / "record.json").write_text(
                json.dumps(record | {"bytes_total": 999 + 2 * seed, "cap_bytes": 1002, "settings": [HOSTILE]})
            )
            log, metrics = losses(4 + bpb, 10)
            (place / "train.log").write_text(log)
            (place / "metrics.jsonl").write_text(metrics)
    (folder / "tiny.toml").write_text("seeds = [1, 2]\n[variants]\nfirst = []\nsecond = ['train.matrix_lr=0.05']\n")
    return folder / "tiny.toml"


def test_a_study_has_its_page(tmp_path, capsys):
    path = write_results(tmp_path / "results")
    main([str(tmp_path / "results"), "--out", str(tmp_path / "study.html"), "--pictures", str(tmp_path / "pictures")])
    tags = stands_alone((tmp_path / "study.html").read_text())
    assert {a["id"] for tag, a in tags.seen if tag == "section"} == {"variants", "table", "curves", "trainings"}
    for words in (
        "2.0150",
        "1.9150",
        "-0.1000 ±",
        "(1 over the cap)",
        "train.matrix_lr=0.05",
        "best mean, of second",
        "Pooled standard deviation",
    ):
        assert words in tags.text, words
    assert (tmp_path / "pictures" / "study.png").stat().st_size > 5_000 and not capsys.readouterr().err
    path.unlink()
    main([str(tmp_path / "results"), "--out", str(tmp_path / "study.html")])
    assert "give --study FILE" in (tmp_path / "study.html").read_text()
    (tmp_path / "results" / "second" / "1" / "record.json").write_text('{"name": "second"}')
    main([str(tmp_path / "results"), "--out", str(tmp_path / "study.html")])
    assert "3 trainings" in (tmp_path / "study.html").read_text()


def test_axes_and_layout():
    assert svg.ticks(0, 10) == pytest.approx([0, 2.5, 5, 7.5, 10]) and svg.ticks(3, 3) == [3]
    assert [text for _, text in svg.marked(252_430.0, 252_460.0)] == ["252,430", "252,440", "252,450", "252,460"]
    assert svg.below([(0, 10), (1, 2), (2, 3)], 6) == [(0.5, 6), (1, 2), (2, 3)]
    assert len(svg.thinned([(i, i) for i in range(10_000)])) <= svg.MOST_POINTS
    blocks = [svg.Block(str(size), size, 0) for size in (1, 2, 3, 10)]
    placed = svg.laid(blocks, 0, 0, 32, 20)
    assert all(wide * high == pytest.approx(40 * block.size) for block, _, _, wide, high in placed)
    assert (
        svg.line_chart("x", [svg.Line("a", [(math.nan, 1.0)])], "x", "y") == ""
        and svg.dot_rows("x", [("a", [(0, math.nan, "dot")], "")], "x") == ""
    )


def test_the_command_is_there():
    done = subprocess.run([sys.executable, "-m", "trit.report.page", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "FOLDER" in done.stdout
