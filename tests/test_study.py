"""Studies: what a file may say, equal bytes, trainings that resume, and the statistics of what they found."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_fixtures import write_shards
from model_fixtures import TINY

from trit.config_load import ROOT, load
from trit.report.statistics import compare, corrected, mean_and_deviation, pooled_deviation
from trit.study import fill
from trit.study.files import write_json
from trit.study.fill import FILLED_SHARE, expected_total, filled
from trit.study.plan import read_study
from trit.study.pool import prepare
from trit.study.report import draw, records_of, table

SETTINGS = TINY | {"vocab_size": 260, "iterations": 6, "eval_stride": 32, "calibration_evals": 0, "tokenizer_path": "byte260"}


def write_study(folder, data, text="[variants]\nfirst = []\nsecond = ['train.matrix_lr=0.05']\n", **keys):
    """A study file of tiny trainings; `keys` stand above its variants."""
    base = [f"{key}={value}" for key, value in (SETTINGS | {"data_path": data}).items()]
    lines = [f"{key} = {json.dumps(value)}" for key, value in ({"base": base, "seeds": [1, 2]} | keys).items()]
    (folder / "tiny.toml").write_text("\n".join(lines) + "\n" + text)
    return folder / "tiny.toml"


def command(study, out, *arguments):
    """The command line of a study, as a list."""
    return [sys.executable, "-m", "trit.study", str(study), "--out", str(out), *arguments]


def run(study, out, *arguments):
    return subprocess.run(command(study, out, *arguments), cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "text,keys,message",
    [
        ("[variants]\nfirst = 3\n", {}, "must be a list"),
        ("[variants]\nfirst = {changes = []}\n", {}, "did you mean 'change'"),
        ("[variants]\n'a/b' = []\n", {}, "names a folder"),
        ("[variants]\nfirst = ['train.matrix_lt=1']\n", {}, "variant first: unknown setting 'train.matrix_lt'; did you mean"),
        ("", {}, "a study compares at least one"),
        ("[variants]\nfirst = []\n", {"clocks": "wall"}, "did you mean 'clock'"),
        ("[variants]\nfirst = []\n", {"clock": "sun"}, "must be 'cpu' or 'wall'"),
        ("[variants]\nfirst = []\n", {"seeds": [1, 1]}, "all different"),
        ("[variants]\nfirst = []\n", {"steps": -1}, "must be 0"),
        ("[variants]\nfirst = []\n", {"gpus": -1}, "must be 0"),
        ("[variants]\nfirst = []\n", {"gpus": 2}, 'needs clock = "wall"'),
        ("[variants]\nfirst = []\n", {"gpus": 3, "clock": "wall"}, "variant first: .*train_batch_tokens"),
        ("[variants]\nfirst = []\n", {"seeds": 3}, "is not of type list"),
        ("[variants", {}, "tiny.toml"),
    ],
)
def test_mistakes_in_a_study_file_are_named_before_anything_runs(tmp_path, text, keys, message):
    with pytest.raises(ValueError, match=message):
        read_study(write_study(tmp_path, "data", text, **keys))


def test_a_grid_is_every_combination(tmp_path):
    text = "[variants]\nfirst = []\n[grid]\n'train.matrix_lr' = [0.01, 0.02]\n'model.num_layers' = [1, 2, 3]\n"
    study = read_study(write_study(tmp_path, "data", text))
    assert len(study.variants) == 7 and study.variants[1].name == "matrix_lr-0p01_num_layers-1"
    assert {variant.change for variant in study.variants[1:]} >= {("train.matrix_lr=0.02", "model.num_layers=3")}


def test_every_study_of_the_repository_is_valid():
    found = [read_study(path) for path in sorted((ROOT / "configs" / "studies").glob("*.toml"))]
    assert len(found) >= 7 and all(study.variants for study in found)


@pytest.mark.slow
def test_the_size_setting_grows_until_the_cap_is_filled(tmp_path):
    text = "[variants]\nfirst = []\nwide = ['model.model_dim=64']\nfixed = {change = [], fill = ''}\n"
    path = write_study(tmp_path, "data", text, fill="engram.engram_buckets", fill_step=16)
    path.write_text(path.read_text().replace('"track=non_record_16mb"', '"track=non_record_16mb", "track.cap_bytes=80000"'))
    study = read_study(path)
    buckets = []
    for variant in study.variants[:2]:
        settings, code, expected = filled(study, variant)
        config = load(None, {}, settings)[0]
        buckets.append(config.engram.engram_buckets)
        assert code > 8_000 and expected <= FILLED_SHARE * 80_000
        more = expected_total(None, [*settings, f"engram.engram_buckets={buckets[-1] + 16}"], code)[0]
        assert more > FILLED_SHARE * 80_000
    assert buckets[0] > buckets[1] > 0
    assert filled(study, study.variants[2])[0] == study.settings(study.variants[2])


def test_a_filled_variant_leaves_room_for_the_planners_error(tmp_path, monkeypatch):
    """Each step of the size weighs 160 bytes here, and the program 1,000."""
    text = "[variants]\nfirst = []\n"
    study = read_study(write_study(tmp_path, "data", text, fill="engram.engram_buckets", fill_step=16))
    monkeypatch.setattr(fill, "counted_code", lambda config: 1000)
    monkeypatch.setattr(fill, "expected_total", lambda preset, settings, code: (code + 10 * int(settings[-1].partition("=")[2]), 80_000))
    settings, code, total = filled(study, study.variants[0])
    assert code == 1000 and settings[-1].startswith("engram.engram_buckets=")
    assert total <= FILLED_SHARE * 80_000 < total + 160


# Ends a study and its trainings with SIGKILL around the writing of one file, KILL="before|after its/path", and notes in STARTS which
# trainings began and when.
DEADLY = """import os, signal, sys, time
if "trit.study.job" in sys.orig_argv:
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{sys.orig_argv[-1]} {time.time_ns()}\\n")
moment, _, name = os.environ.get("KILL", "").partition(" ")
replace = os.replace
def deadly(source, target):
    meant = name and str(target).endswith(name)
    if meant and moment == "before":
        os.killpg(0, signal.SIGKILL)
    replace(source, target)
    if meant:
        os.killpg(0, signal.SIGKILL)
os.replace = deadly
"""
MOMENTS = (
    "before second/plan.json",
    "after first/1/job.json",
    "before first/1/record.json",
    "after first/1/record.json",
    "before second/2/record.json",
)


def without_clock(record):
    """What two trainings of the same steps share."""
    return {key: value for key, value in record.items() if key not in ("seconds", "tokens_per_second", "eval_seconds")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """(study file, its text, folder of results, finished command) of a study that ran to its end undisturbed, with scores and a picture."""
    root = tmp_path_factory.mktemp("calm")
    text = write_shards(root / "data")
    study, out = write_study(root, text), root / "out"
    return study, text, out, run(study, out, "--jobs", "2", "--plot", str(root / "tiny.png"))


def test_a_study_killed_at_any_moment_resumes_with_nothing_lost_or_repeated(tmp_path, calm):
    """What the trainings are worth is equal to the last bit, and so are the bytes of their artifacts."""
    undisturbed, shard_folder, ended, _ = calm
    study, out = write_study(tmp_path, shard_folder), tmp_path / "out"
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    common = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "STARTS": str(tmp_path / "starts")}
    written = {}
    for moment in MOMENTS:
        begin = {"cwd": ROOT, "start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        killed = subprocess.Popen(command(study, out, "--jobs", "2"), env=common | {"KILL": moment}, **begin)
        assert killed.wait(timeout=600) == -signal.SIGKILL, f"nothing was written at: {moment}"
        written |= {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*/*/record.json") if path not in written}
        assert all(json.loads(path.read_text()) for path in out.glob("**/*.json")), "a file is either whole or absent"
    assert 1 <= len(written) < 4
    done = subprocess.run(command(study, out, "--jobs", "2"), cwd=ROOT, env=common, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = records_of(read_study(study), out)
    assert [(r["name"], r["seed"]) for r in records] == [("first", 1), ("first", 2), ("second", 1), ("second", 2)]
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == was for path, was in written.items())
    for line in (tmp_path / "starts").read_text().splitlines():
        folder, _, began = line.rpartition(" ")
        assert int(began) < (Path(folder) / "record.json").stat().st_mtime_ns, f"{folder} had a record and ran again"

    assert list(map(without_clock, records_of(read_study(undisturbed), ended))) == list(map(without_clock, records))

    changed = read_study(write_study(tmp_path, shard_folder, "[variants]\nfirst = ['train.embed_lr=0.5']\n"))
    with pytest.raises(ValueError, match="came from other settings"):
        prepare(changed, out)
    on_gpus = read_study(write_study(tmp_path, shard_folder, gpus=1, clock="wall"))
    write_json(out / "first" / "plan.json", json.loads((out / "first" / "plan.json").read_text()) | {"clock": "wall"})
    with pytest.raises(ValueError, match="came from other settings"):
        prepare(on_gpus, out, ["first"], SimpleNamespace(slots=1))


def test_a_study_ends_with_table_and_picture_and_does_nothing_twice(calm):
    study, _, out, done = calm
    assert done.returncode == 0, done.stderr
    records = records_of(read_study(study), out)
    assert all(r["steps"] == 6 and r["tokens"] == 6 * 128 and r["bytes_total"] == r["bytes_code"] + r["bytes_model"] for r in records)
    assert len(records) == 4 and records[0]["bpb"] != records[1]["bpb"] != records[2]["bpb"]
    assert (out.parent / "tiny.png").read_bytes().startswith(b"\x89PNG") and done.stdout.count("\n| ") == 3

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/record.json")}
    again = run(study, out, "--json")
    assert json.loads(again.stdout)["records"] == records and " steps in " not in again.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*/*/record.json")}


def test_slower_variants_get_fewer_steps(tmp_path, shard_folder):
    """By a ratio measured in turns: six layers take longer than one."""
    text = "[variants]\nfirst = ['model.num_layers=1']\nslow = ['model.num_layers=6']\n"
    study = read_study(write_study(tmp_path, shard_folder, text, steps=40, seeds=[1], score=False))
    prepare(study, tmp_path / "out")
    plans = [json.loads((tmp_path / "out" / name / "plan.json").read_text()) for name in ("first", "slow")]
    steps = [load(None, {}, plan["settings"])[0].train.iterations for plan in plans]
    assert plans[0]["pace"] == 1.0 and steps[0] == 40
    assert plans[1]["pace"] > 1.5 and steps[1] == round(40 / plans[1]["pace"])


def test_a_training_that_fails_is_named_and_the_others_go_on(tmp_path, shard_folder):
    text = "[variants]\nbroken = ['data_path=nowhere']\nsound = []\n"
    done = run(write_study(tmp_path, shard_folder, text, seeds=[1], score=False), tmp_path / "out")
    assert done.returncode == 1 and "broken/1" in done.stderr and "nowhere" in done.stderr
    assert (tmp_path / "out" / "sound" / "1" / "record.json").exists() and "Traceback" not in done.stderr


def test_comparisons_are_those_of_welchs_test():
    from scipy import stats

    generator = np.random.default_rng(0)
    for size in (2, 3, 7):
        left, right = generator.normal(2.0, 0.1, size).tolist(), generator.normal(2.1, 0.3, size + 1).tolist()
        found, expected = compare(left, right), stats.ttest_ind(left, right, equal_var=False)
        mean, deviation = mean_and_deviation(left)
        assert math.isclose(mean, np.mean(left)) and math.isclose(deviation, np.std(left, ddof=1))
        assert math.isclose(found.p, expected.pvalue) and math.isclose(found.difference, np.mean(left) - np.mean(right))
        low, high = expected.confidence_interval(0.95)
        assert math.isclose(found.difference - found.margin, low) and math.isclose(found.difference + found.margin, high)
    pooled, freedom = pooled_deviation([[1.0, 3.0], [5.0], [2.0, 2.5, 3.0]])
    assert freedom == 3 and math.isclose(pooled, math.sqrt((1 + 1 + 0.25 + 0 + 0.25) / 3))
    assert pooled_deviation([[1.0]])[1] == 0
    assert math.isnan(compare([1.0], [2.0, 2.1]).p) and compare([1.0], [2.0, 2.1]).difference < -1
    some = [compare([1.0, 1.1, 1.2], [1.0, 1.1, 1.3])._replace(p=p) for p in (0.04, 0.01, float("nan"), 0.03)]
    assert np.allclose([each.corrected for each in corrected(some)], [0.06, 0.03, float("nan"), 0.06], equal_nan=True)


def test_table_and_picture_of_known_records(tmp_path):
    text = "[variants]\nfirst = []\nsecond = ['train.matrix_lr=0.05']\nthird = ['train.matrix_lr=0.06']\n"
    study = read_study(write_study(tmp_path, "data", text))
    common = {"steps": 10, "tokens_per_second": 1000, "bytes_total": 900, "cap_bytes": 1000}
    values = {"first": [2.0, 2.02, 2.01], "second": [1.9, 1.91, 1.92], "third": [1.8, 1.82, 1.81]}
    records = [common | {"name": name, "seed": i, "bpb": value} for name, found in values.items() for i, value in enumerate(found)]
    records[5]["bytes_total"] = 1100
    lines = table(study, records).splitlines()
    assert lines[2].startswith("| first | 3 | 2.0100 | 0.0100 |") and "-0.1000 ±" in lines[3] and "(1 over the cap)" in lines[3]
    assert "-0.2000 ±" in lines[4] and "over the cap" not in lines[4]
    assert lines[-1] == "Pooled standard deviation of a seed: 0.0100 bits per byte, 6 degrees of freedom."
    draw(study, records, tmp_path / "picture.svg")
    assert "second" in (tmp_path / "picture.svg").read_text() or (tmp_path / "picture.svg").stat().st_size > 5_000
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(study, [], tmp_path / "empty.svg")
