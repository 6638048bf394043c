"""What every command shares: bars of long work, lines beside them, one JSON object for machines, errors of one line.

Bars stand on stderr, only where that is a terminal, on rank 0, and vanish when their work ends or fails: what stays are the lines, so
that a log is the same with and without a terminal. A bar is made where the work is: in trit/data (documents, shards), trit/bundle/mixing_encoder.py
(characters packed), trit/proof and trit/eval/certify.py (runs and searches), trit/study (trainings), trit/use (tokens). Shipped modules know
nothing of a terminal; trit/bars.py makes theirs, by wrapping what they are given: training, scoring, calibration, allocation, packing.
"""

import argparse
import contextlib
import errno
import json
import math
import os
import sys
import threading

INTERRUPTED = 130
MARGIN = 3  # columns
CLOCK_FORMAT = "{desc}: [{elapsed}]"  # of work that cannot say how far it is
SHARE_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
MENDS = {
    errno.EACCES: "no permission; change it (chmod), or choose another place",
    errno.EPERM: "no permission; change it (chmod), or choose another place",
    errno.EROFS: "cannot be written to; choose another place",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EISDIR: "a folder, where a file is needed; name a file",
    errno.ENOTDIR: "a file, where a folder is needed; name a folder",
    errno.EEXIST: "exists already; choose another name",
    errno.ENOTEMPTY: "is not empty; choose another name",
    errno.ENOSPC: "the disk is full; free some space, or choose another place",
}


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are one line. With `answers` the command has --json: see `command`."""

    def __init__(self, *given, answers=False, **named):
        super().__init__(*given, formatter_class=argparse.RawDescriptionHelpFormatter, **named)
        if answers:
            self.add_argument("--json", action="store_true", help="print one JSON object on stdout, everything else on stderr")

    def error(self, message):
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


@contextlib.contextmanager
def command(as_json=False, stopped="stopped", code=1, also=()):
    """The body of a command. Yields a dictionary: what the body puts there, `as_json` prints as one object on stdout at the end, and all
    other lines go to stderr. A user's mistake ends with one line on stderr and status `code` (`also` are kinds of RuntimeError that count as
    one), Ctrl-C with `stopped` and status 130."""
    out, answer = sys.stdout, {}
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            try:
                yield answer
            finally:
                if as_json and answer:
                    print(json.dumps(plain(answer)), file=out)
                out.flush()
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read the output has enough of it. What is still in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError, MemoryError, FloatingPointError, RuntimeError) as fault:
        if isinstance(fault, RuntimeError) and not expected(fault, also):
            raise
        if code == 1:
            sys.exit(f"error: {fault_line(fault)}")
        print(f"error: {fault_line(fault)}", file=sys.stderr)
        sys.exit(code)


def expected(fault, also=()):
    """Whether a RuntimeError is a user's to mend: the package's own, one of `also`, or full memory. Any other is a fault of the program."""
    return type(fault).__module__.startswith("trit.") or isinstance(fault, also) or "out of memory" in str(fault)


def fault_line(fault):
    """One line that says what is wrong and what would be right."""
    if isinstance(fault, MemoryError) or "out of memory" in str(fault):
        return "not enough memory; lower train.train_batch_tokens or eval.eval_batch_seqs, or close other programs"
    own = type(fault).__module__.startswith("trit.")  # the package's kinds of OSError say themselves what would be right
    if isinstance(fault, OSError) and fault.errno in MENDS and fault.strerror and not own:
        return f"{fault.filename or 'output'}: {MENDS[fault.errno]}"
    if isinstance(fault, UnicodeDecodeError):
        return f"a file is not UTF-8 text at byte {fault.start} ({fault.reason}); give a text file"
    return " ".join(str(fault).split()) or type(fault).__name__


def plain(value):
    """A value as strict JSON can hold it: named tuples are objects, paths text, what is no finite number null."""
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def bar_class():
    """tqdm, imported when it is needed: what checks a counted file also runs under Pythons that have no packages."""
    from tqdm import tqdm

    return tqdm


def say(text="", file=None):
    """A line for people on `file` (stdout by default), above the bars, at once."""
    with bar_class().external_write_mode(file=file or sys.stdout):
        print(text, file=file or sys.stdout, flush=True)


def above_bars(log):
    """`log` (trit/train/log.py) whose lines go above the bars. What it writes to files stays as it is."""
    write = log.line

    def line(text):
        with bar_class().external_write_mode(file=sys.stdout):
            write(text)

    log.line = line
    return log


def visible():
    """Whether bars are shown at all."""
    return sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def progress(what, total=None, unit="it", **named):
    """A tqdm bar over `total` of `unit`. It goes to its end where the work ends well, and is gone afterwards either way. Its clock ticks
    while nothing moves."""
    scaled = total is None or total >= 1000  # 1.2k characters/s, but 3 runs/s
    named = {"unit_scale": scaled, "unit": unit if scaled else unit.strip(), "dynamic_ncols": True, "leave": False} | named
    bar, ended = bar_class()(desc=what, total=total, disable=not visible(), **named), threading.Event()

    def tick():
        while not ended.wait(1.0):
            bar.refresh()

    ticking = threading.Thread(target=tick, daemon=True)
    if not bar.disable:
        shape = bar.dynamic_ncols
        # Room for the ^C that a terminal writes: else it breaks the line, and half the bar stays behind.
        bar.dynamic_ncols = lambda file: ((shape(file)[0] or MARGIN) - MARGIN or None, None)
        ticking.start()
    try:
        yield bar
        if bar.total:
            move(bar, bar.total)
            bar.refresh()
    finally:
        ended.set()
        if not bar.disable:
            ticking.join()
        bar.close()


def shares(what):
    """`progress` of work that ends at whichever of several limits comes first: over its share, 0 to 1, with the time that is left."""
    return progress(what, 1.0, bar_format=SHARE_FORMAT, miniters=0)


def move(bar, done):
    """Put a bar at `done`, which is at most its total. An update by nothing would restart the clock that its speed is measured with."""
    done = done if bar.total is None else min(done, bar.total)
    if done != bar.n:
        bar.update(done - bar.n)


def counted(items, what, total=None, unit="it"):
    """The items, under a bar."""
    with progress(what, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
