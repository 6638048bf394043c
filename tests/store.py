"""One store of a session's expensive things: shards, trained runs, records. Whoever needs one first makes it, all workers read it.

In: a name, what the thing is made of, and a function that makes it in a folder. Out: the folder, under an address that is a hash of the name,
of what it is made of and of the package's sources. A folder is made aside and renamed under a file lock, so it is whole or absent; nobody
may change it: `changed` names those that differ from what was made.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from trit.bundle.cache import sources_sha256

PLACE = "TRIT_TEST_STORE"
PACKAGE = Path(__file__).resolve().parents[1] / "trit"


def stored(name, make, *made_of):
    """The folder that `make(folder)` filled, once for all workers of a session. `made_of` is what it depends on beside the package."""
    facts = repr((name, sources_sha256(PACKAGE), [str(part) for part in made_of]))
    place = Path(os.environ[PLACE]) / f"{name}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
    with open(f"{place}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            aside = Path(tempfile.mkdtemp(dir=place.parent, prefix="aside-"))
            try:
                make(aside / name)
                Path(f"{place}.state").write_text(state(aside / name))
                for path in [*(aside / name).rglob("*"), aside / name]:
                    path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | (stat.S_IWUSR if path.is_dir() else 0))
                (aside / name).rename(place)
            finally:
                shutil.rmtree(aside)
    return place


def copy(stored_folder, place):
    """A copy of a stored folder that its owner may change."""
    shutil.copytree(stored_folder, place)
    for path in place.rglob("*"):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return place


def state(folder):
    """Names, sizes and times of change of all files below a folder, as text. Nothing is read: validation text may be closed by now."""
    found = ((path.relative_to(folder).as_posix(), path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return "\n".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in found)


def changed(root):
    """Names of the stored folders that are not as they were made."""
    made = {path.with_suffix(""): path.read_text() for path in Path(root).glob("*.state")}
    return sorted(place.name for place, was in made.items() if state(place) != was)


def begin():
    """Make the session's store, and let builds of the session share their counted files. Workers take the place over from whoever started
    them; True where this process made it."""
    if PLACE in os.environ:
        return False
    os.environ[PLACE] = tempfile.mkdtemp(prefix="trit-tests-")
    os.environ["TRIT_CACHE"] = os.path.join(os.environ[PLACE], "cache")
    return True


def end():
    """Remove the session's store; returns the names of folders that somebody changed."""
    root = os.environ.pop(PLACE)
    found = changed(root)
    shutil.rmtree(root)
    return found
