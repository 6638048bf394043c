"""Ends a run that has stopped coming on, with the reason: a hung collective or a dead driver otherwise burns the machine all night.

Beside the counted program, not in it. The thread counts only time in which it runs itself: a machine that slept, and a run that was
stopped with Ctrl-Z, have not stalled.
"""

import contextlib
import faulthandler
import os
import sys
import threading

POLL_SECONDS = 0.5


class Watchdog:
    """While `with` lasts: where `beat` is not called for `seconds`, say why, print where every thread stands, and end the process."""

    def __init__(self, seconds, say, poll=POLL_SECONDS):
        self.seconds, self.say, self.poll = seconds, say, poll
        self.waited, self.beats = 0.0, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        if self.seconds:
            self.thread.start()
        return self

    def __exit__(self, *fault):
        self.over.set()

    def beat(self):
        """The run comes on."""
        self.waited, self.beats = 0.0, self.beats + 1

    def watch(self):
        """The thread: adds up its own polls."""
        while not self.over.wait(self.poll):
            self.waited += self.poll
            if self.waited >= self.seconds:
                return self.end()

    def end(self):
        """Say it, show the stacks, go. A process that hangs in a driver cannot be asked: it leaves without clearing up."""
        with contextlib.suppress(OSError):
            self.say(
                f"error: stalled: nothing came on for {self.seconds:.0f} s after {self.beats} steps; the stacks below say where. Under torchrun "
                "another rank may have failed first. Steps that take so long by right: --stall-seconds"
            )
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        os._exit(1)


def watched(backend, watchdog):
    """`backend` whose steps, begun and finished, beat the watchdog."""

    def step(*arguments):
        wait = backend.step(*arguments)

        def finish():
            found = wait()
            watchdog.beat()
            return found

        return finish

    return backend._replace(step=step)
