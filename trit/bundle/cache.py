"""Counted files that were built before: the same inputs give the same bytes, so a rebuild of the same thing can be read back.

In: everything that enters a build. Out: its `fingerprint`, and what was kept under it, in this process and in a folder of the user's cache
(TRIT_CACHE names another; `TRIT_CACHE=` keeps nothing on disk). An entry that cannot be read, or is not what was written, is none.
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import tempfile
import zlib
from importlib import metadata
from pathlib import Path

KEPT_IN_MEMORY, KEPT_ON_DISK = 32, 128
TOOLS = ("brotli", "python-minifier")


def fingerprint(root, package, *inputs):
    """SHA-256 of a build's inputs: the package's sources, the bundler's own, the tools' versions, and `inputs` (settings, names)."""
    folders = dict.fromkeys([Path(__file__).resolve().parents[1], Path(root).resolve() / package])  # one folder, but for another root
    facts = [*map(sources_sha256, folders), tools(), [described(value) for value in inputs]]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def sources_sha256(folder):
    """SHA-256 of all Python files below a folder, with their names."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.py")):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@functools.cache
def tools():
    """Versions of what shapes the bytes: Python, its zlib, the packers and the minifier."""
    versions = []
    for name in TOOLS:
        try:
            versions.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            versions.append("none")
    return (platform.python_implementation(), platform.python_version(), zlib.ZLIB_RUNTIME_VERSION, *versions)


def described(value):
    """A value with all that it holds, as text that differs where a build could: types, nested settings, signs of zero."""
    if dataclasses.is_dataclass(value):
        return [type(value).__qualname__, *((part.name, described(getattr(value, part.name))) for part in dataclasses.fields(value))]
    return type(value).__name__, repr(value)


def folder():
    """Where entries lie, or None where nothing is kept on disk."""
    named = os.environ.get("TRIT_CACHE")
    if named is not None:
        return Path(named) / "bundles" if named else None
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return Path(home) / "trit" / "bundles"


class Memory:
    """Values of a data class whose fields are text, bytes and lists, by fingerprint."""

    def __init__(self, kind):
        self.kind, self.values = kind, {}

    def get(self, key):
        """The value kept under a fingerprint, or None."""
        if key not in self.values and (place := folder()):
            try:
                value = self.read((place / key).read_bytes())
            except (OSError, ValueError, KeyError, TypeError):
                return None
            self.keep(key, value)
        return self.values.get(key)

    def put(self, key, value):
        """Keep a value; a disk that cannot be written to is no fault of the build."""
        self.keep(key, value)
        if place := folder():
            try:
                place.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=place, prefix=".") as aside:
                    (Path(aside) / key).write_bytes(self.written(value))
                    os.replace(Path(aside) / key, place / key)
                for old in sorted(place.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)[:-KEPT_ON_DISK]:
                    old.unlink()
            except OSError:
                return

    def keep(self, key, value):
        """Keep a value in memory; the oldest goes when there are many."""
        self.values[key] = value
        while len(self.values) > KEPT_IN_MEMORY:
            del self.values[next(iter(self.values))]

    def written(self, value):
        """Bytes of an entry: a checksum, then JSON in which bytes are latin-1 text under `bytes`."""
        fields = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        text = json.dumps({name: {"bytes": x.decode("latin-1")} if isinstance(x, bytes) else x for name, x in fields.items()}).encode()
        return hashlib.sha256(text).hexdigest().encode() + b"\n" + text

    def read(self, data):
        """The value of an entry's bytes; ValueError where they are not whole."""
        checksum, _, text = data.partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != checksum:
            raise ValueError("the entry is damaged")
        fields = json.loads(text)
        return self.kind(**{name: x["bytes"].encode("latin-1") if isinstance(x, dict) else x for name, x in fields.items()})
