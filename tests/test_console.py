"""Bars appear on a terminal, go to their end and vanish; nowhere else is anything written. --json says what the text says. A mistake is
one line."""

import contextlib
import fcntl
import functools
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
from model_fixtures import random_arrays, tiny_config
from record_fixtures import ROOT, TINY

import build_submission
from trit import bars, console
from trit.compress import allocate
from trit.data import prepare
from trit.eval import certify
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.report import against, code_bytes, leaderboard, public, seeds
from trit.submission import compressed, find_calibration, score_arrays
from trit.train import torch_backend
from trit.train.log import Log, RunLog
from trit.use import __main__ as use

RECORD = str(next(ROOT.glob("records/demo_cpu_256kb/*/artifact.trit")).parent)


def on_terminal(command):
    """(status, stdout, what a terminal of 80 columns got on stderr) of a process."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=its)
    os.close(its)
    parts = []

    def read():
        with contextlib.suppress(OSError):  # how a terminal ends
            while part := os.read(ours, 65536):
                parts.append(part)

    reading = threading.Thread(target=read)
    reading.start()
    output = process.communicate(timeout=300)[0].decode()
    reading.join()
    os.close(ours)
    return process.returncode, output, b"".join(parts).decode()


@contextlib.contextmanager
def shown(monkeypatch):
    """A stream that takes the bars of this process as a terminal would."""
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(console, "visible", lambda: True)
        patch.setattr(bars, "visible", lambda: True)
        patch.setattr(sys, "stderr", stream)
        yield stream


WORK = "from trit.console import counted, say\nfor i in counted(range(20), 'work', 20):\n    say(f'line {i}') if i % 9 == 0 else None\n"


def test_a_bar_goes_to_its_end_on_a_terminal_and_nothing_is_written_elsewhere():
    status, output, written = on_terminal([sys.executable, "-c", WORK])
    assert status == 0 and output.splitlines() == ["line 0", "line 9", "line 18"]
    assert "work: 100%" in written and "\n" not in written
    # It is wiped in the end: the last visible character of the line is a blank.
    assert not written.rstrip("\r").rpartition("\r")[2].strip() and max(map(len, written.split("\r"))) <= 80
    done = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout == output


def test_other_ranks_show_no_bar():
    status, output, written = on_terminal(["env", "RANK=1", sys.executable, "-c", WORK])
    assert status == 0 and output and written == ""


@pytest.fixture(scope="module")
def training(data, tmp_path_factory):
    """{whether on a terminal: (status, stdout, stderr, run folder)} of a short training with --json."""
    found = {}
    for terminal in (True, False):
        folder = tmp_path_factory.mktemp("console") / "run"
        command = [sys.executable, "train_gpt.py", "--json", *TINY, f"data_path={data}", f"out_path={folder}", "compress.predict_every=5"]
        if terminal:
            found[terminal] = (*on_terminal(command), folder)
        else:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
            found[terminal] = done.returncode, done.stdout, done.stderr, folder
    return found


def without_times(text):
    """A log without what differs from run to run: times, speeds, folders."""
    text = re.sub(r"(warmup_time|train_time|step_avg|tok/s|left):[\d.]+|\S*/run\S*", "", text.replace("\r\n", "\n"))
    return [line for line in text.splitlines() if "out_path" not in line]


def test_a_training_moves_its_bar_and_leaves_its_log_as_it_is(training):
    status, output, written, folder = training[True]
    assert status == 0 and "training: 100%" in written and re.search(r"step \d+, loss \d\.\d{4}", written)
    log = (folder / "train.log").read_bytes()
    assert b"\r" not in log and b"\x1b" not in log and b"%|" not in log
    other = training[False]
    assert without_times(log.decode()) == without_times((other[3] / "train.log").read_text())
    # Without a terminal the lines are all there is: they go to stderr, beside --json.
    assert other[0] == 0 and other[2] == (other[3] / "train.log").read_text() and "\r" not in other[2]


def test_a_training_answers_in_json(training):
    for status, output, _, folder in training.values():
        answer = json.loads(output)
        log = (folder / "train.log").read_text()
        assert status == 0 and answer["folder"] == str(folder) and answer["checkpoint"] == f"{folder}/checkpoint.npz"
        assert f"step:{answer['steps']}/12 train_loss:{answer['loss']:.4f}" in log
        assert f"\ntrain_time:{answer['seconds'] * 1000:.0f}ms step:12/12\n" in log


def test_numbers_are_the_same_under_a_bar(shard_folder, monkeypatch):
    monkeypatch.setattr(allocate, "LADDER", 3)
    settings = {"vocab_size": 260, "calibration_evals": 5, "fit_temperature": "true", "engram_buckets": 64}
    for more in ({}, {"allocate": "true", "engram_bits": 16}):
        cfg = tiny_config("unet", **settings, **more)
        arch, process, log = load_arch("unet"), torch_backend.start_process(), Log(rank=1)
        specs, found = artifact_specs(arch, cfg), {}
        for barred in (False, True):
            with shown(monkeypatch) if barred else contextlib.nullcontext() as stream:
                arrays = random_arrays(specs)
                with bars.compressing(torch_backend, cfg, specs) as library:
                    assert (library is torch_backend) != barred
                    calibration = find_calibration(torch_ops, library, arch, cfg, process, arrays, shard_folder, log)
                    _, packed = compressed(torch_ops, library, arch, cfg, process, arrays, calibration, shard_folder, log)
                with bars.scoring(torch_backend, cfg, 699) as library:
                    score, losses = score_arrays(torch_ops, library, arch, cfg, process, arrays, shard_folder, "byte260", log)
                found[barred] = packed, score, losses.tobytes()
        assert found[True] == found[False] and score.tokens > 0
        written = stream.getvalue()
        stages = ("calibration", "temperature", "storages", "measuring") if more else ("calibration", "temperature", "packing")
        assert all(f"{stage}: " in written for stage in stages) and "scoring: 100%" in written


def test_a_share_follows_the_clock_where_that_ends_the_run(monkeypatch):
    cfg = tiny_config("unet", iterations=1000, max_wallclock_seconds=100)
    backend = torch_backend.Backend(lambda *given: lambda: (1.5, 0.1), lambda seconds: seconds, None, None, None, 0, 1)
    with shown(monkeypatch) as stream, bars.training(backend, cfg) as watched:
        inputs = np.zeros((2, 4), np.int32)
        assert watched.step(inputs, inputs, 1.0, True, False)() == (1.5, 0.1)  # the warm-up does not count
        for seconds in (0.0, 25.0):
            assert watched.slowest(seconds) == seconds
            assert watched.step(inputs, inputs, 1.0, True, False)() == (1.5, 0.1)
        assert watched.slowest(50.0) == 50.0 and watched.slowest(np.inf) == np.inf
        time.sleep(1.2)  # its clock ticks while nothing moves
    written = stream.getvalue()
    assert " 50%|" in written and "step 2, loss 1.5000" in written and "warming up" in written
    with bars.training(backend, cfg) as watched:
        assert watched is backend


def test_a_log_goes_above_the_bars_and_into_its_file_alike(tmp_path, capsys, monkeypatch):
    log = console.above_bars(RunLog(0, tmp_path))
    with shown(monkeypatch) as stream, console.progress("work", 3):
        log.line("one\ntwo")
    assert capsys.readouterr().out == "one\ntwo\n" and (tmp_path / "train.log").read_bytes() == b"one\ntwo\n"
    assert stream.getvalue().count("\r") >= 2


def test_a_bar_of_work_that_fails_is_gone_and_not_full(monkeypatch):
    with shown(monkeypatch) as stream, pytest.raises(ValueError), console.progress("work", 10) as bar:
        bar.update(3)
        raise ValueError
    assert "100%" not in stream.getvalue() and not stream.getvalue().rstrip("\r").rpartition("\r")[2].strip()


def answers(main, arguments, capsys):
    """(object that a command prints with --json, its lines; what it prints without) as it runs in this process."""
    with contextlib.suppress(SystemExit):
        main([*arguments, "--json"])
    machine = capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main(arguments)
    people = capsys.readouterr()
    assert machine.err.splitlines() == people.out.splitlines() + people.err.splitlines() and machine.out.count("\n") == 1
    return json.loads(machine.out), people.out


@pytest.mark.parametrize("cap", [256000, 100000])
def test_a_plan_answers_in_json(cap, capsys):
    given = ["--plan", "--config", "configs/demo.toml", "--fit", "engram_buckets", f"track.cap_bytes={cap}"]
    answer, text = answers(build_submission.main, given if cap == 256000 else given[:3] + given[5:], capsys)
    assert answer["fits"] == (cap == 256000) and f"{answer['parameters']:,} parameters" in text
    numbers = {line.split()[0]: line.split()[-2:] for line in text.splitlines() if line.startswith(("total", "free"))}
    assert numbers["total"] == [f"{answer['expected']:,}", f"{answer['at_most']:,}"] and numbers["free"][0] == f"{answer['free']:,}"
    assert all(note in text for note in answer["notes"]) and answer["cap"] == cap
    if cap == 256000:
        assert f"engram.engram_buckets={answer['fitted']['value']} (was {answer['fitted']['before']})" in text
    assert [row["category"] for row in answer["rows"]] and all(f"{row['count']:,}" in text for row in answer["rows"])


def test_reports_answer_in_json(capsys, tmp_path):
    answer, text = answers(public.main, [RECORD], capsys)
    (found,) = answer["records"]
    assert f"{found['name']}: {found['bpb']:.4f} bits per byte, {found['bytes_total']:,} bytes" in text
    answer, text = answers(against.main, [RECORD, RECORD], capsys)
    assert f"this  {answer['this']['loss']:.5f} nats a token, {answer['this']['bpb']:.5f} bits" in text
    assert answer["this"]["loss_std"] is None and [row["p"] for row in answer["readings"]] == [None] * 3  # one seed: no numbers, no NaN
    assert all(f"{row['name']}: " in text and f"{row['beyond']:+.5f} nats" in text for row in answer["readings"])
    (tmp_path / "track").mkdir()
    os.symlink(RECORD, tmp_path / "track" / "one")
    answer, text = answers(leaderboard.main, [str(tmp_path)], capsys)
    assert answer["file"] == text.strip() and (tmp_path / "README.md").exists()


def test_preparing_answers_in_json(tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": f"some words of {split}"}) + "\n")
    splits = ["--train", f"{tmp_path}/train.jsonl", "--val", f"{tmp_path}/val.jsonl"]
    prepare.main([*splits, "--tokenizer", "byte260", "--out", f"{tmp_path}/out", "--json"])
    machine = capsys.readouterr()
    answer = json.loads(machine.out)
    assert answer["folder"] == f"{tmp_path}/out" and answer["splits"]["train"]["documents"] == 1
    for part, found in answer["splits"].items():
        assert f"{part}: 1 documents, {found['text_bytes']} bytes, {found['tokens']} tokens" in machine.err
    prepare.main([*splits, "--tokenizer", "byte260", "--out", f"{tmp_path}/out", "--json"])
    assert json.loads(capsys.readouterr().out) == answer


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A folder of wrong places: an empty folder, an empty file, a file of any bytes, a record with a damaged configuration."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("folder", "run", "record"):
        (folder / name).mkdir()
    for name in ("empty", "empty.jsonl", "empty.toml"):
        (folder / name).write_bytes(b"")
    for name in ("junk", "junk.jsonl", "junk.toml", "run/run.json", "run/checkpoint.npz"):
        (folder / name).write_bytes(bytes(range(256)) * 8)
    for name in ("config.json", "submission.json", "artifact.trit", "train_gpt.py"):
        (folder / "record" / name).write_text("{}")
    return folder


OUT = ["--tokenizer", "byte260", "--out"]
MISTAKES = [
    *[(main, [place]) for main in (certify.main, public.main, leaderboard.main) for place in ("empty", "junk", "absent")],
    *[(main, ["record", place]) for main in (against.main, seeds.main) for place in ("folder", "empty", "junk", "absent", "record")],
    *[(certify.main, [RECORD, "--data", place]) for place in ("folder", "empty", "junk", "absent")],
    *[(prepare.main, ["--corpus", place, *OUT, "new"]) for place in ("folder", "empty", "junk", "absent", "empty.jsonl", "junk.jsonl")],
    *[(prepare.main, ["--corpus", "junk.jsonl", *OUT, place]) for place in ("empty", "run", "/dev/null/x")],
    *[(prepare.main, ["--specs", place, "--out", "new"]) for place in ("folder", "empty", "junk", "absent")],
    *[(code_bytes.main, [place]) for place in ("folder", "junk", "absent", "junk.toml")],
    *[(build_submission.main, ["--plan", "--config", place]) for place in ("folder", "junk", "absent", "junk.toml")],
    *[(build_submission.main, ["--run", place]) for place in ("folder", "empty", "junk", "absent", "run")],
    *[(use.main, [place, "generate", "a"]) for place in ("folder", "empty", "junk", "absent", "record")],
    *[(use.main, [RECORD, "compress", place, "out"]) for place in ("folder", "absent")],
    *[(use.main, [RECORD, "decompress", place, "out"]) for place in ("folder", "empty", "junk", "absent")],
    *[(main, ["--nonsense"]) for main in (build_submission.main, certify.main, prepare.main, public.main, use.main)],
]


opened_once = functools.cache(use.open_artifact)  # the demo's record takes seconds to open


@pytest.mark.parametrize("main,arguments", MISTAKES, ids=lambda value: value.__module__ if callable(value) else " ".join(value)[-40:])
def test_a_mistake_is_one_line(main, arguments, wrong, capsys, monkeypatch):
    monkeypatch.setattr(use, "open_artifact", opened_once)
    places = {path.name for path in wrong.iterdir()} | {"absent", "new", "out"}
    with pytest.raises(SystemExit) as ended:
        main([str(wrong / word) if word in places else word for word in arguments])
    said = ended.value.code if isinstance(ended.value.code, str) else capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said and ended.value.code != 0
    # What is wrong, and what would be right.
    assert len(said) > 30 and any(mark in said for mark in (";", ", so ", "must", "(", ": ")), said


def test_what_the_system_refuses_says_what_would_be_right(tmp_path):
    (tmp_path / "file").write_text("")
    for place, said in (
        (tmp_path, "a folder, where a file is needed"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "file/x", "a file,"),
    ):
        with pytest.raises(OSError) as fault:
            open(place)
        assert console.fault_line(fault.value).startswith(f"{place}: {said}") and "; " in console.fault_line(fault.value)
    locked, full = PermissionError(13, "Permission denied", "here"), OSError(28, "No space left on device")
    assert console.fault_line(locked) == "here: no permission; change it (chmod), or choose another place"
    assert console.fault_line(full) == "output: the disk is full; free some space, or choose another place"
    assert console.fault_line(ValueError("two\n  lines")) == "two lines" and console.fault_line(ValueError()) == "ValueError"


def test_faults_of_the_program_keep_their_traceback_and_an_answer_is_whole(capsys):
    with pytest.raises(RuntimeError, match="shapes differ"), console.command():
        raise RuntimeError("shapes differ")
    with pytest.raises(SystemExit, match="^error: not enough memory; lower train.train_batch_tokens"), console.command():
        raise RuntimeError("CUDA out of memory. Tried to allocate\n2 GiB")
    with pytest.raises(SystemExit, match="^error: "), console.command(True):
        print("so far")
        raise ValueError("half way")
    assert capsys.readouterr() == ("", "so far\n")
    with console.command(True) as answer:
        answer |= {"nan": float("nan"), "path": ROOT, "number": np.float32(0.5), "flag": np.bool_(True), "row": Log}
    assert json.loads(capsys.readouterr().out) == {"nan": None, "path": str(ROOT), "number": 0.5, "flag": True, "row": str(Log)}


SLOW = """import time
from trit.console import command, progress
with command(False, "stopped; nothing was lost"), progress("work", 10) as bar:
    bar.update(4)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_ctrl_c_is_one_line_and_takes_the_bar_away():
    # A suite that runs in the background of a shell has Ctrl-C ignored, and so would its children.
    listening = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n" + SLOW
    with subprocess.Popen(
        [sys.executable, "-c", listening], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == console.INTERRUPTED and process.stderr.read() == "\nstopped; nothing was lost\n"


def test_a_reader_that_has_enough_is_no_error():
    text = "from trit.console import command\nwith command():\n    for i in range(100000):\n        print('a long line', i)\n"
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 1 and process.stderr.read() == ""
