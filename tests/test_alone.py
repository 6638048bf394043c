"""Counted files run alone: several in one process and yet apart, behind walls, and whatever they touch is reported."""

import subprocess
import time

import pytest

from trit.bundle.alone import KILLED, Job, run_alone, run_jobs

REPORT = b"""
import os, sys
print(sorted(os.listdir('.')), os.environ.get('MARK'), sys.argv, 'seen' in globals())
seen = True
"""


def test_jobs_share_a_process_and_nothing_else(tmp_path):
    failing = b"import os, sys\nos.environ['MARK'] = 'left'\nprint('half')\nraise ValueError('this one fails')\n"
    leaving = b"open('kept.txt', 'w').write('x')\nraise SystemExit(3)\n"
    lines = []
    session = run_jobs(
        [
            Job("a", REPORT, {"data/a.txt": b"x"}, {"MARK": "1"}, ("one", 2)),
            Job("b", failing),
            Job("c", leaving),
            Job("d", REPORT),
        ],
        tmp_path,
        say=lines.append,
    )
    first, second, third, last = session.results
    assert first.stdout == "['data', 'train_gpt.py'] 1 ['train_gpt.py', 'one', '2'] False\n"
    assert last.stdout == "['train_gpt.py'] None ['train_gpt.py'] False\n"
    assert [result.returncode for result in session.results] == [0, 1, 3, 0]
    assert second.stdout == "half\n" and "ValueError: this one fails" in second.stderr and not last.stderr
    assert (third.folder / "kept.txt").read_text() == "x"
    assert [line.split(",")[0] for line in lines] == ["run 1 of 4: a", "run 2 of 4: b", "run 3 of 4: c", "run 4 of 4: d"]


def test_everything_touched_is_reported_with_who_asked(tmp_path):
    program = b"""
import ctypes, os, socket, subprocess
open('given.txt').read()
open('new.txt', 'w').write('x')
try:
    open('absent.txt')
except OSError:
    pass
try:
    socket.create_connection(('127.0.0.1', 9), timeout=1)
except OSError as error:
    print(type(error).__name__)
subprocess.run(['true'])
os.system('true')
ctypes.CDLL(None)
import sentencepiece
"""
    (result,) = run_jobs([Job("a", program, {"given.txt": b"x"})], tmp_path).results
    assert result.returncode == 0, result.stderr
    assert result.stdout == "PermissionError\n"
    seen = {(event.event, event.detail.rpartition("/")[2], event.writes, event.asked) for event in result.events}
    for name, writes in (("given.txt", False), ("new.txt", True), ("absent.txt", False)):
        assert ("open", name, writes, "the program") in seen
    asked = {event.event: event.asked for event in result.events}
    for event in ("subprocess.Popen", "os.system", "ctypes.dlopen", "socket.getaddrinfo"):
        assert asked[event] == "the program"
    imported = [event for event in result.events if "sentencepiece" in event.detail]
    assert imported and {event.asked for event in imported} <= {"import", "sentencepiece"}
    assert len(result.given) == 2


def test_the_kernel_keeps_files_away_from_the_process_and_its_children(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    program = b"""
import subprocess, sys
path = sys.argv[1]
try:
    print(open(path).read())
except OSError as error:
    print(type(error).__name__)
print(subprocess.run(['cat', path], capture_output=True, text=True).stdout)
"""
    session = run_jobs([Job("a", program, arguments=(secret,))], tmp_path / "run")
    if "file wall of the kernel" not in session.isolation:
        pytest.skip("this kernel has no Landlock")
    assert session.results[0].stdout == "PermissionError\n\n"
    assert any(event.detail == str(secret) for event in session.results[0].events)


def test_a_run_that_takes_too_long_ends_with_its_children(tmp_path):
    program = b"import subprocess, time\nsubprocess.Popen(['sleep', '60'])\nprint('begun', flush=True)\ntime.sleep(60)\n"
    begin = time.perf_counter()
    session = run_jobs([Job("a", b"print(1)"), Job("b", program), Job("c", b"print(2)")], tmp_path, timeout=8)
    assert session.timed_out and time.perf_counter() - begin < 40
    assert [result.returncode for result in session.results] == [0, KILLED, KILLED]
    assert [result.stdout for result in session.results] == ["1\n", "begun\n", ""]
    with pytest.raises(subprocess.TimeoutExpired):
        run_alone(program, timeout=2)


def test_a_process_that_dies_is_no_success(tmp_path):
    session = run_jobs([Job("a", b"import os\nos._exit(0)"), Job("b", b"print(1)")], tmp_path)
    assert [result.returncode for result in session.results] == [KILLED, KILLED]


def test_nothing_left_for_the_exit_runs(tmp_path):
    program = b"import atexit\natexit.register(lambda: open('late.txt', 'w').write('x'))\n"
    (result,) = run_jobs([Job("a", program)], tmp_path).results
    assert result.returncode == 0 and not (result.folder / "late.txt").exists()
