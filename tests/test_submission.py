"""The whole path on a tiny model: train, build, run the counted file alone, the same number; and what goes wrong says so."""

import functools
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record_fixtures import ROOT, TINY, run, tiny_record, tiny_run
from store import copy

from trit.bundle.alone import Job, run_alone, run_jobs
from trit.train.checkpoint import load_checkpoint

TRY_ALL = """
import json, sys
import train_gpt
for arguments in json.loads(sys.argv[1]):
    try:
        train_gpt.main(arguments)
    except SystemExit as ended:
        print(ended.code)
"""


@pytest.fixture
def trained(tmp_path):
    return copy(tiny_run(), tmp_path / "trained")


@pytest.fixture
def record():
    return tiny_record()


def test_record_is_complete_and_its_numbers_are_those_of_its_files(record):
    submission = json.loads((record / "submission.json").read_text())
    assert submission["bytes_code"] == (record / "train_gpt.py").stat().st_size
    assert submission["bytes_model"] == (record / "artifact.trit").stat().st_size
    assert submission["bytes_total"] == submission["bytes_code"] + submission["bytes_model"] <= 100000
    assert submission["sha256"]["artifact.trit"] == hashlib.sha256((record / "artifact.trit").read_bytes()).hexdigest()
    assert submission["round_trip_gap"] == 0
    checks = json.loads((record / "certificate.json").read_text())["checks"]
    assert len(checks) >= 12 and all(set(item) == {"name", "verdict", "evidence"} and item["verdict"] == "pass" for item in checks)
    for name in ("README.md", "config.json", "train.log", "train_gpt_readable.py", "requirements.txt", "manifest.json"):
        assert (record / name).stat().st_size > 0, name
    assert f"{submission['val_bpb']:.4f}" in (record / "README.md").read_text()


@pytest.mark.slow
def test_building_again_gives_the_same_bytes_in_a_folder_of_its_own(record, trained, tmp_path):
    copy(record, tmp_path / record.parent.name / record.name)
    done = run(
        "build_submission.py",
        "--run",
        trained,
        "--records",
        tmp_path,
        "--name",
        record.name.partition("_")[2],
        "--dce",
        "--quick-start",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    again = Path(answer["folder"])
    assert again.name == record.name + "_2" and done.stderr.splitlines()[-1] == str(again)
    assert answer["submission"] == json.loads((again / "submission.json").read_text())
    assert f"  {answer['summary']['pass']} checks passed, 0 failed" in done.stderr
    assert all(f"  {item['verdict']:8}{item['name']}: {item['evidence']}" in done.stderr for item in answer["checks"])
    for name in ("artifact.trit", "train_gpt.py"):
        assert (again / name).read_bytes() == (record / name).read_bytes()


@pytest.mark.slow
def test_without_shaking_the_whole_package_is_wrapped(record, trained, tmp_path):
    done = run("build_submission.py", "--run", trained, "--quick-start", "--records", tmp_path)
    assert done.returncode == 0, done.stderr
    whole, small = (json.loads((Path(f) / "submission.json").read_text()) for f in (done.stdout.strip().splitlines()[-1], record))
    assert whole["bytes_code"] > small["bytes_code"] and whole["val_bpb"] == small["val_bpb"]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """{name: run} of what a stranger may try with a record, each in an empty folder, all in one isolated process."""
    record, given = tiny_record(), {"data": data}
    counted, artifact = (record / "train_gpt.py").read_bytes(), (record / "artifact.trit").read_bytes()
    damaged = bytearray(artifact)
    damaged[len(damaged) // 2] ^= 1
    tried = {
        "with the artifact": (counted, given | {"artifact.trit": artifact}),
        "readable": ((record / "train_gpt_readable.py").read_bytes(), given | {"artifact.trit": artifact}),
        "damaged": (counted, given | {"artifact.trit": bytes(damaged)}),
        "without the artifact": (counted, given),
    }
    jobs = [Job(name, program, files, {"DATA_PATH": "data"}) for name, (program, files) in tried.items()]
    return dict(zip(tried, run_jobs(jobs, tmp_path_factory.mktemp("alone")).results, strict=True))


@pytest.mark.parametrize("form", ["with the artifact", "readable"])
def test_counted_file_alone_gives_the_recorded_score_in_either_form(form, record, alone):
    assert alone[form].returncode == 0, alone[form].stderr
    submission = json.loads((record / "submission.json").read_text())
    assert f"val_bpb:{submission['val_bpb']:.8f}" in alone[form].stdout


def test_counted_file_trains_when_there_is_no_artifact(record, alone):
    done = alone["without the artifact"]
    assert done.returncode == 0, done.stderr
    assert "step:12/12" in done.stdout
    # the same seed, the same weights: the counted program trains exactly what the package trained
    assert (done.folder / "artifact.trit").read_bytes() == (record / "artifact.trit").read_bytes()


def test_a_damaged_artifact_is_refused(alone):
    assert alone["damaged"].returncode != 0 and "val_bpb" not in alone["damaged"].stdout


@pytest.mark.slow
def test_a_model_trained_in_floats_is_allocated_to_the_cap_and_comes_back_bit_for_bit(data, tmp_path):
    floats = ["quant.matrix_scheme=fp16", "quant.embed_bits=16", "quant.engram_bits=16", "compress.allocate=true"]
    trained = run("train_gpt.py", *TINY, *floats, "track.cap_bytes=500000", f"data_path={data}", f"out_path={tmp_path}/run")
    assert trained.returncode == 0, trained.stderr
    done = run(
        "build_submission.py", "--run", tmp_path / "run", "--dce", "--quick-start", "--records", tmp_path, "compress.model_bytes_cap=9000"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record = Path(done.stdout.strip().splitlines()[-1])
    submission = json.loads((record / "submission.json").read_text())
    assert submission["round_trip_gap"] == 0 and 8700 < submission["bytes_model"] <= 9000
    alone = run_alone((record / "train_gpt.py").read_bytes(), {"data": data}, environ={"DATA_PATH": "data"}, folder=tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    # the counted program allocates as the build did
    assert (tmp_path / "alone" / "artifact.trit").read_bytes() == (record / "artifact.trit").read_bytes()


def test_failures_say_what_to_do(data, tmp_path):
    expected = {
        "track.cap_bytes=13000": ("exceeds track.cap_bytes=13,000", "saves about"),
        "model.vocab_size=512": ("set model.vocab_size=260",),
        "data_path=nowhere": ("trit.data.prepare",),
    }
    commands = [[*TINY, f"data_path={data}", f"out_path={tmp_path}", changed] for changed in expected]
    done = subprocess.run([sys.executable, "-c", TRY_ALL, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(expected) and done.stderr == ""
    for line, words in zip(lines, expected.values()):
        assert all(word in line for word in words)


def test_a_build_without_a_run_says_what_to_do_first(tmp_path):
    done = run("build_submission.py", "--run", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "train first" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_and_says_how_to_resume(sent, data, tmp_path):
    settings = [
        *TINY,
        f"data_path={data}",
        f"out_path={tmp_path}/run",
        "train.iterations=1000000",
        "train.log_every=1",
        "train.warmup_steps=0",
    ]
    command = [sys.executable, "-u", "train_gpt.py", *settings]
    # A shell starts background jobs with Ctrl-C ignored, and its children would inherit that.
    unignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=unignore)
    for line in process.stdout:
        if line.startswith("step:5/"):
            break
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "resume=true" in errors and "Traceback" not in errors
    _, _, step, seconds, position = load_checkpoint(tmp_path / "run" / "checkpoint.npz")
    assert step >= 5 and step == position and seconds > 0
