"""A run that stops coming on ends with the reason, one that comes on is left alone, and one that was put to sleep is not taken for dead."""

import os
import signal
import subprocess
import sys
import time

import pytest

from trit.train.backend import Backend
from trit.watchdog import Watchdog, watched

HANGING = """
import sys, threading, time
from trit.watchdog import Watchdog
with Watchdog({seconds}, lambda text: print(text, flush=True), poll=0.05) as dog:
    dog.beat()
    {what}
print("came to its end")
"""


def ended(what, seconds, **options):
    """A process that does `what` under a watchdog of so many seconds: few where it must bite, more where it must not on a busy machine."""
    code = HANGING.format(what=what, seconds=seconds)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("hang", ["threading.Event().wait()", "time.sleep(60)", "lock = threading.Lock(); lock.acquire(); lock.acquire()"])
def test_a_stalled_run_ends_with_reason_and_stacks(hang):
    done = ended(hang, 0.3)
    assert done.returncode == 1 and "came to its end" not in done.stdout
    assert done.stdout.startswith("error: stalled: nothing came on for 0 s after 1 steps")
    assert "most recent call first" in done.stderr and "<string>" in done.stderr


def test_beats_and_the_end_of_the_run_keep_it_alive():
    done = ended("[(time.sleep(0.3), dog.beat()) for _ in range(7)]", 1.5)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "came to its end", "")
    with Watchdog(1.0, print, poll=0.05):
        pass
    time.sleep(1.2)  # this process would be gone


def test_zero_seconds_never_end_a_run():
    with Watchdog(0, print, poll=0.01) as dog:
        assert not dog.thread.is_alive()


def test_a_stopped_process_has_not_stalled():
    code = HANGING.format(what="print('ready', flush=True); [(time.sleep(0.1), dog.beat()) for _ in range(4)]", seconds=1.0)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    assert process.communicate(timeout=60)[0].strip() == "came to its end" and process.returncode == 0


def test_a_backend_beats_when_a_step_is_finished():
    dog, order = Watchdog(0, print), []
    backend = Backend(lambda *given: lambda: order.append(given) or (1.0, 2.0), *[None] * 4, 0, 1)
    wait = watched(backend, dog).step("inputs", "targets")
    assert dog.beats == 0 and wait() == (1.0, 2.0) and dog.beats == 1 and order == [("inputs", "targets")]
