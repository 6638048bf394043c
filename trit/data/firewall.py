"""Keeps validation text unreadable until the artifact's bytes are hashed. Input: paths to protect; output: evidence of the order.

A tool of training and building, never shipped. One audit hook watches the whole process: it refuses to open, map, link or rename
validation shards, whatever folder they lie in and however their path is spelt, and to start commands that name them. Other
processes, and C code that opens files without telling Python, are out of its sight; files that such code still holds open or
mapped are found where the system lists them (/proc).
"""

import errno
import glob
import hashlib
import os
import re
import sys
import time
from typing import NamedTuple

SHARD_NAME = re.compile(r".*_val_.*\.bin", re.IGNORECASE | re.DOTALL)
WORDS = re.compile(r"[^\s'\"=:,;|&<>()\[\]{}]+")
INSTALLED = []  # the one hook; an audit hook cannot be taken out again, so what it does hangs on ACTIVE
ACTIVE = []  # firewalls that are closed or released


class ValidationReadError(PermissionError):
    """Something wants to read validation text before the artifact is hashed; its text says what and what to do instead."""

    def __str__(self):
        return self.strerror


class Attempt(NamedTuple):
    """One refused access: seconds after closing, audit event, file name, and the lines of code that asked, innermost first."""

    seconds: float
    event: str
    name: str
    where: str


def validation_files(data_path):
    """Sorted validation shards in the folder `data_path`; an empty list where there are none, since training needs none."""
    return sorted(glob.glob(os.path.join(glob.escape(str(data_path)), "*_val_*.bin")))


class Firewall:
    """Closed: validation shards (`*_val_*.bin` in any folder) and the files and folders in `paths` cannot be read.

    `release(artifact)` hashes the artifact and opens them. Training closes a firewall and never opens it:

        Firewall(validation_files(data_path)).close()

    A build closes one before it touches anything, releases it with the artifact, and lets `summary` speak in its certificate:

        with Firewall(validation_files(run.data_path)) as firewall:
            artifact = ...
            digest = firewall.release(artifact)
            ...
            check("validation text unread before the artifact", *firewall.summary())

    Leaving the `with` block takes the firewall away, released or not. The files in `paths` are also recognised under other names
    (hard links, a download cache's blobs).
    """

    def __init__(self, paths=()):
        self.paths, self.identities = set(), set()
        self.attempts, self.sha256, self.size = [], None, 0
        self.closed_at, self.begin, self.released, self.first_read = None, 0.0, None, None
        self.protect(*paths)

    def protect(self, *paths):
        """Protect more files and folders; they need not exist yet."""
        for path in map(os.fspath, paths):
            self.paths.add(os.path.realpath(path))
            self.identities |= identity(path)

    def close(self):
        """Refuse reads from now on; returns the firewall. RuntimeError if it was closed before or a protected file is open already."""
        if self.closed_at:
            raise RuntimeError("this firewall was closed before; make a new one for another artifact")
        held = [name for name in held_files() if self.covers(name)]
        if held:
            raise RuntimeError(f"{os.path.basename(held[0])} is open already; close the firewall before anything reads validation text")
        if not INSTALLED:
            sys.addaudithook(watch)
            INSTALLED.append(watch)
        self.closed_at, self.begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
        ACTIVE.append(self)
        return self

    def release(self, artifact):
        """Hash the artifact's bytes, allow reads from now on, and return the SHA-256 in hexadecimal.

        The same bytes again give the same digest. RuntimeError for other bytes, or where the firewall is not closed; TypeError or
        ValueError for what cannot be an artifact.
        """
        if not isinstance(artifact, bytes | bytearray | memoryview):
            raise TypeError(f"release needs the artifact's bytes, not {type(artifact).__name__}")
        digest = hashlib.sha256(artifact).hexdigest()
        if not len(artifact):
            raise ValueError("release needs the artifact's bytes, and there are none")
        if self.sha256 and digest != self.sha256:
            raise RuntimeError(f"released for the artifact {self.sha256[:12]}... already; {digest[:12]}... could know validation text")
        if self not in ACTIVE:
            raise RuntimeError("this firewall is not closed; close it before anything is trained, calibrated or packed")
        if self.sha256 is None:
            self.note_held()
            self.sha256, self.size, self.released = digest, memoryview(artifact).nbytes, time.monotonic()
        return digest

    def lift(self):
        """Take the firewall away, released or not: for the end of a `with` block and for tests."""
        if self in ACTIVE:
            ACTIVE.remove(self)

    def __enter__(self):
        return self.close()

    def __exit__(self, *failure):
        self.lift()

    def covers(self, name):
        """Whether `name`, a path or an open descriptor, is a protected file. Folders are none: listing is not reading."""
        place = f"/proc/self/fd/{name}" if isinstance(name, int) else os.fsdecode(name)
        try:
            real = os.path.realpath(place)
            if any(SHARD_NAME.fullmatch(os.path.basename(path)) for path in (os.path.normpath(place), real)):
                return not os.path.isdir(real)
            inside = any(real == path or real.startswith(path.rstrip(os.sep) + os.sep) for path in self.paths)
            return (inside or not self.identities.isdisjoint(identity(name))) and not os.path.isdir(real)
        except (OSError, ValueError):
            return False

    def meet(self, event, name):
        """Refuse an access while closed, note the first one after the release; `name` is not covered in most calls."""
        if not self.covers(name):
            return
        if self.sha256:
            if event in ("open", "mmap.__new__") and self.first_read is None:
                self.first_read = time.monotonic()
            return
        attempt = self.note(event, name)
        raise ValidationReadError(
            errno.EACCES,
            f"{attempt.name} is validation text, closed until the artifact's bytes are hashed, and {attempt.where} wants to read it "
            f"({event}); train, calibrate and select on training shards, and score after Firewall.release(artifact)",
        )

    def note(self, event, name):
        """Record and return an `Attempt`."""
        name = os.path.realpath(f"/proc/self/fd/{name}") if isinstance(name, int) else os.fsdecode(name)
        self.attempts.append(Attempt(time.monotonic() - self.begin, event, os.path.basename(name), asking_lines()))
        return self.attempts[-1]

    def note_held(self):
        """Record the protected files that something has open or mapped although no opening was seen."""
        for name in held_files():
            if self.covers(name):
                self.note("found open", name)

    def ensure_unread(self):
        """ValidationReadError if anything tried to read validation text, even where the refusal was swallowed."""
        if not self.sha256:
            self.note_held()
        if self.attempts:
            first = self.attempts[0]
            tried = f"{len(self.attempts)} times, first {first.name} at {first.where} ({first.event})"
            raise ValidationReadError(errno.EACCES, f"validation text was asked for before the artifact: {tried}; remove the access")

    def evidence(self):
        """What happened and when, as a JSON dictionary: times are seconds after closing, None where a thing did not happen."""

        def after(moment):
            return None if moment is None else round(moment - self.begin, 3)

        return {
            "closed_at": self.closed_at,
            "protected": sorted(os.path.basename(path) for path in self.paths),
            "refused": [attempt._asdict() | {"seconds": round(attempt.seconds, 3)} for attempt in self.attempts],
            "artifact_sha256": self.sha256,
            "artifact_bytes": self.size,
            "released_seconds": after(self.released),
            "first_read_seconds": after(self.first_read),
        }

    def summary(self):
        """(whether validation text stayed unread until the artifact was hashed, and nothing tried; a sentence of evidence)."""
        facts = self.evidence()
        if not self.sha256:
            return False, "no artifact was hashed"
        read = (
            "never read" if self.first_read is None else f"first read {facts['first_read_seconds'] - facts['released_seconds']:.3f}s later"
        )
        tries = "".join(f"; {a.name} at {a.where}" for a in self.attempts[:3])
        return not self.attempts, (
            f"closed {facts['closed_at']}, artifact {self.sha256[:12]}... hashed after {facts['released_seconds']:.1f}s, validation text {read}, "
            f"{len(self.attempts)} refused accesses{tries}"
        )


def watch(event, arguments):
    """The audit hook: hands every file that an event wants to read to the active firewalls."""
    if ACTIVE and event in READERS:
        for name in READERS[event](*arguments):
            for firewall in tuple(ACTIVE):
                firewall.meet(event, name)


def opened(name, mode, flags):
    """File of an open event, path or descriptor; opening to write alone reads nothing."""
    return [] if isinstance(name, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR) == os.O_WRONLY else [name]


def command_words(command):
    """The words of a command that could be paths; `command` is text, bytes, a path, or a sequence of them."""
    parts = [command] if isinstance(command, str | bytes | os.PathLike) else command
    texts = [os.fsdecode(part) for part in parts or () if isinstance(part, str | bytes | os.PathLike)]
    return [word for text in texts for word in {text, *WORDS.findall(text)}]


READERS = {
    "open": opened,
    "mmap.__new__": lambda descriptor, *rest: [descriptor] if descriptor >= 0 else [],
    "os.link": lambda source, *rest: [source],
    "os.rename": lambda source, *rest: [source],
    "os.system": command_words,
    "os.exec": lambda path, arguments, *rest: command_words(arguments),
    "os.posix_spawn": lambda path, arguments, *rest: command_words(arguments),
    "os.spawn": lambda mode, path, arguments, *rest: command_words(arguments),
    "subprocess.Popen": lambda executable, arguments, *rest: command_words(arguments),
}


def identity(name):
    """{(device, inode)} of a path or descriptor, empty where there is no file."""
    try:
        facts = os.stat(name)
    except (OSError, ValueError):
        return set()
    return {(facts.st_dev, facts.st_ino)}


def held_files():
    """Paths of the files that this process has open or mapped, as far as the system tells."""
    try:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        with open("/proc/self/maps", "rb") as file:
            mapped = {os.fsdecode(line.split(maxsplit=5)[5].rstrip(b"\n")) for line in file if b"/" in line}
    except OSError:
        return []
    return sorted({os.path.realpath(link) for link in links} | mapped)


def asking_lines():
    """ "file:line from file:line ..." of the code that caused the event: three lines outside the standard library and packages."""
    libraries = (os.path.dirname(os.__file__), os.path.join(sys.prefix, "lib"), "<frozen", __file__)
    frame, lines = sys._getframe(1), []
    while frame and len(lines) < 3:
        if not frame.f_code.co_filename.startswith(libraries):
            lines.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        frame = frame.f_back
    return " from ".join(lines) or "a library"
