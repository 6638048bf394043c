"""Counted files run alone: several in one process and yet apart, behind walls, and whatever they touch is reported."""

import subprocess
import sys
import time

import pytest

from trit.bundle.alone import KILLED, Job, run_alone, run_jobs
from trit.bundle.mixing import decoder_bytes
from trit.bundle.mixing_encoder import mixed_file

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


LOOKS_ROUND = (
    """
import sys, math
def f():
    return math.pi
print(__name__, __file__, sys.argv, sys.modules['__main__'].f is f, sorted(globals()), T, o[:9], w, p, sum(u), len(h), '\u00e9')
h.append(1)
f.__globals__['math'].seen = getattr(math, 'seen', 0)
"""
    + "# what is mixed has to be longer than its decoder\n" * 30
)


@pytest.mark.parametrize("needs_source", [False, True])
def test_a_mixed_file_is_decoded_once_and_runs_as_python_runs_it(needs_source, tmp_path):
    wrapped = mixed_file(LOOKS_ROUND, needs_source)
    assert wrapped[: decoder_bytes(wrapped)].endswith(b"\n") and wrapped[decoder_bytes(wrapped) :].startswith(b"T=0;")
    (tmp_path / "train_gpt.py").write_bytes(wrapped)
    program = "import runpy, sys; sys.argv = ['train_gpt.py']; runpy.run_path('train_gpt.py', run_name='__main__')"
    plain = subprocess.run([sys.executable, "-I", "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    session = run_jobs([Job("a", wrapped), Job("b", wrapped, {"more": b""})], tmp_path / "runs")
    assert [result.stdout for result in session.results] == [plain.stdout] * 2 and "True" in plain.stdout
    assert session.results[1].seconds < session.results[0].seconds


def test_a_file_that_only_looks_mixed_runs_as_it_is(tmp_path):
    wrapped = mixed_file(LOOKS_ROUND)
    edited = wrapped.replace(b"o+=k;", b"o+=k;print(len(o)if len(o)<3 else'',end='');", 1)
    assert edited != wrapped and decoder_bytes(edited) == decoder_bytes(b"print(1)") == 0
    results = run_jobs([Job("a", edited), Job("b", edited)], tmp_path).results
    assert [result.stdout[:2] for result in results] == ["12", "12"]
