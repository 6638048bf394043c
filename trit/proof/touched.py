"""What a counted file touched, judged: files, network, processes, training data. Input: a `Session`; output: `Check`s.

An attempt counts as a deed, also where it failed. The allow-list is what runs of a clean program need and no more; the program's own
folder holds nothing but what it is given, so that a file it asks for beside those is a file that was not counted.
"""

import os
import re

from trit.data.package_docs import VALIDATION_PACKAGES
from trit.proof.checks import check

# Kernel tables that PyTorch, OpenMP and the C library read (maps, cpuinfo, meminfo, cgroup limits), and devices.
KERNEL_FILES = re.compile(r"/proc/(self|\d+)/(maps|status|stat|statm|cgroup|mountinfo|cmdline|task/\d+/\w+)$|/proc/\w+$|/sys/")
DEVICES = re.compile(r"/dev/(null|zero|full|random|urandom|tty|nvidia[\w-]*|dri/\w+|kfd)$")
# Shared libraries and the loader's and clock's tables.
LIBRARIES = re.compile(
    r"(/usr(/local)?)?/lib(32|64)?/|/usr/local/cuda|/usr/share/zoneinfo/|/etc/(ld\.so\.\w+|localtime|nsswitch\.conf)|/opt/"
)
# What this project's own validation text is made of, and no program needs to score: the embedded documentation of Python (`pydocs`), and
# the packages whose docstrings `packagedocs` validates on.
FORBIDDEN = re.compile(rf"/pydoc_data/|/(site|dist)-packages/({'|'.join(VALIDATION_PACKAGES)})/")
TRAINING_NAME = re.compile(r"_train_|[/_]train[-_\w]*\.(bin|txt|jsonl|npy|zst|parquet)")
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "clang++", "ld", "ldconfig", "ptxas", "nvcc")
LIBRARIES_THAT_COMPILE = ("torch", "triton")
SHOWN = 4


def inside(path, folders):
    """Whether a path lies in one of the folders, or is one."""
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


def allowed_file(event, result, session):
    """Whether a file event is one that a clean program makes."""
    path, folder = event.detail, os.path.realpath(result.folder)
    if FORBIDDEN.search(path):
        return False
    if inside(path, [folder]):
        written = {other.detail for other in result.events if other.writes and other.seconds <= event.seconds}
        return path not in result.given if event.writes else path in result.given or path in written
    if DEVICES.match(path) or KERNEL_FILES.match(path) and not event.writes:
        return True
    if inside(path, [session.home]):
        return True
    if event.writes:
        return False
    if inside(path, session.python):
        # Imports, and what an imported package reads of its own; a program that reads there itself reads text, not code.
        return event.asked != "the program"
    return bool(LIBRARIES.match(path))


def allowed_process(event):
    """Whether a process or library event is one that a clean program makes: PyTorch compiles kernels and loads its libraries."""
    if event.event == "ctypes.dlopen":
        return event.asked not in ("the program", "import")
    words = re.findall(r"[\w+./-]+", event.detail)
    command = os.path.basename(words[0]) if words else ""
    return event.asked in LIBRARIES_THAT_COMPILE and command in COMPILERS


def listed(events):
    """The first few of some events as text."""
    named = [f"{event.event} {event.detail} (asked by {event.asked})" for event in events[:SHOWN]]
    return "; ".join(named + [f"and {len(events) - SHOWN} more"] * (len(events) > SHOWN)) or "none"


def shortened(event, result, session):
    """The event with the run's temporary folders named in words: evidence must mean something to others."""
    detail = event.detail
    for place, word in ((os.path.realpath(result.folder), "(folder)"), (session.home, "(home)")):
        detail = detail.replace(place, word)
    return event._replace(detail=detail)


def touched_checks(session):
    """The checks of what the jobs of a session touched, all together."""
    foreign, network, processes, training, opened = [], [], [], [], 0
    for result in session.results:
        for event in result.events:
            shown = shortened(event, result, session)
            if event.event.startswith("socket."):
                network.append(shown)
            elif event.event == "ctypes.dlopen" or event.event.partition(".")[0] in ("subprocess", "os", "pty") and not is_file(event):
                if not allowed_process(event):
                    processes.append(shown)
            elif TRAINING_NAME.search(event.detail) and not inside(event.detail, session.python):
                training.append(shown)
            elif event.event != "glob.glob":
                opened += 1
                if not allowed_file(event, result, session):
                    foreign.append(shown)
    walls = session.isolation
    return [
        check("no other files", not foreign, f"{opened} files opened, outside the given ones and libraries: {listed(foreign)}"),
        check("no network", not network, f"{walls}; attempts: {listed(network)}"),
        check("no processes", not processes, f"started or loaded: {listed(processes)}"),
        check("no training data at evaluation", not training, f"asked for: {listed(training)}"),
    ]


def is_file(event):
    """Whether an `os` event is about a file."""
    return event.event in ("os.truncate", "os.rename", "os.remove", "os.link", "os.symlink")
