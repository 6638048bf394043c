"""The leaderboard says what the folders say: sorted, with its margins, and the committed one is the generated one."""

import json
from pathlib import Path

import pytest
from scipy import stats

from trit.report.leaderboard import leaderboard, main, margin

ROOT = Path(__file__).resolve().parent.parent


def write(root, track, name, scores, **more):
    """A record folder of some seeds."""
    folder = root / track / name
    folder.mkdir(parents=True)
    seeds = {str(seed): {"val_bpb": value} for seed, value in enumerate(scores)}
    said = {"name": name, "author": "a|b", "date": "2026-11-22", "val_bpb": sum(scores) / len(scores), "bytes_total": 12_345}
    (folder / "submission.json").write_text(json.dumps(said | {"seed_results": seeds} | more))
    return folder


def test_tracks_are_sorted_best_first_with_unknown_scores_last(tmp_path):
    write(tmp_path, "small", "worse", [1.3, 1.31, 1.32])
    best = write(tmp_path, "small", "better", [1.2])
    (best / "certificate.json").write_text(json.dumps({"summary": {"pass": 29, "fail": 0, "unknown": 1}}))
    (tmp_path / "small" / "lone").mkdir()
    (tmp_path / "small" / ".half.partial").mkdir()
    write(tmp_path, "large", "only", [1.0, 1.1])
    text = leaderboard(tmp_path)
    assert text.index("## large") < text.index("## small")
    rows = [line for line in text.splitlines() if "](small/" in line]
    assert ["better" in rows[0], "worse" in rows[1], "lone" in rows[2], len(rows)] == [True, True, True, 3]
    assert "1.2000 | - | 1 | 12,345 | [better](small/better) | a\\|b | 2026-11-22 | 29 pass, 1 unknown |" in rows[0]
    assert f"1.3100 | {margin([1.3, 1.31, 1.32]):.4f} | 3" in rows[1] and rows[1].split("|")[-3].strip() == "none"


def test_the_margin_is_students():
    values = [1.0, 1.1, 1.3, 1.2]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert margin(values) == pytest.approx((high - low) / 2)


def test_no_records_is_one_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SystemExit, match="no records below it; a record is"):
            main([str(path)])


def test_the_committed_leaderboard_is_the_generated_one():
    assert (ROOT / "records" / "README.md").read_text(encoding="utf-8") == leaderboard(ROOT / "records")
