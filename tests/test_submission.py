"""The whole path on a tiny model: train, build, run the counted file alone, the same number; and what goes wrong says so."""

import functools
import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from record_fixtures import ROOT, TINY, run

from trit.bundle.alone import run_alone
from trit.train.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = run("train_gpt.py", *TINY, f"data_path={data}", f"out_path={folder}", "run_id=tiny")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def record(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    done = run("build_submission.py", "--run", trained, "--dce", "--quick-start", "--records", root)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.parent == root / "demo_cpu_256kb"
    return folder


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
def test_building_again_gives_the_same_bytes_in_a_folder_of_its_own(record, trained):
    done = run(
        "build_submission.py",
        "--run",
        trained,
        "--records",
        record.parent.parent,
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


def test_counted_file_alone_gives_the_recorded_score(record, data, tmp_path):
    files = {"artifact.trit": record / "artifact.trit", "data": data}
    done = run_alone((record / "train_gpt.py").read_bytes(), files, environ={"DATA_PATH": "data"}, folder=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    submission = json.loads((record / "submission.json").read_text())
    assert f"val_bpb:{submission['val_bpb']:.8f}" in done.stdout


def test_counted_file_trains_when_there_is_no_artifact(record, data, tmp_path):
    done = run_alone((record / "train_gpt.py").read_bytes(), {"data": data}, environ={"DATA_PATH": "data"}, folder=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    assert "step:12/12" in done.stdout and (tmp_path / "alone" / "artifact.trit").exists()
    # the same seed, the same weights: the counted program trains exactly what the package trained
    assert (tmp_path / "alone" / "artifact.trit").read_bytes() == (record / "artifact.trit").read_bytes()


def test_the_readable_form_is_the_same_program(record, data, tmp_path):
    files = {"artifact.trit": record / "artifact.trit", "data": data}
    done = run_alone((record / "train_gpt_readable.py").read_bytes(), files, environ={"DATA_PATH": "data"}, folder=tmp_path / "alone")
    submission = json.loads((record / "submission.json").read_text())
    assert f"val_bpb:{submission['val_bpb']:.8f}" in done.stdout, done.stderr


def test_a_damaged_artifact_is_refused(record, data, tmp_path):
    damaged = bytearray((record / "artifact.trit").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    files = {"artifact.trit": tmp_path / "damaged", "data": data}
    done = run_alone((record / "train_gpt.py").read_bytes(), files, environ={"DATA_PATH": "data"}, folder=tmp_path / "alone")
    assert done.returncode != 0 and "val_bpb" not in done.stdout


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


def test_failures_say_what_to_do(trained, data, tmp_path):
    assert "train first" in run("build_submission.py", "--run", tmp_path).stderr
    over = run("train_gpt.py", *TINY, f"data_path={data}", f"out_path={tmp_path}", "track.cap_bytes=13000")
    assert over.returncode and "exceeds track.cap_bytes=13,000" in over.stderr and "saves about" in over.stderr
    wrong = run("train_gpt.py", *TINY, f"data_path={data}", f"out_path={tmp_path}", "model.vocab_size=512")
    assert wrong.returncode and "set model.vocab_size=260" in wrong.stderr
    missing = run("train_gpt.py", *TINY, "data_path=nowhere", f"out_path={tmp_path}")
    assert missing.returncode and "trit.data.prepare" in missing.stderr
    for done in (over, wrong, missing):
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


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
