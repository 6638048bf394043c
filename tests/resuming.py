"""Plugin of `make test` and `make test-all`: `--resume` goes on with a run that was stopped, and leaves out what passed in it.

pytest's cache keeps the names of tests that passed, with a digest of the files they passed on: where a file has changed, all run again.
`--lf` takes what failed alone, and `--sw` under two workers skips tests that never ran: the worker that is behind has not come to them.
"""

import hashlib
import time

import pytest

KEY, EVERY = "trit/passed", 5.0  # seconds between two writes: a run that is killed loses no more
FOLDERS = ("trit", "tests", "configs", "benchmarks", "runners", "docs", "records")


def pytest_addoption(parser):
    parser.addoption("--resume", action="store_true", help="leave out what passed in the run that was stopped, on the same files")


def digest(root):
    """Of names, sizes and times of change of all files that tests may read."""
    inside = [path for folder in FOLDERS for path in (root / folder).rglob("*") if "__pycache__" not in path.parts]
    paths = [path for kind in ("py", "toml", "txt", "json") for path in root.glob(f"*.{kind}")] + inside
    found = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths) if path.is_file()]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(LeftOut(config.workerinput["passed"]))
    elif hasattr(config, "cache"):
        config.pluginmanager.register(Passed(config))


class LeftOut:
    """Takes tests that have passed out of a run."""

    def __init__(self, passed):
        self.passed = set(passed)

    def pytest_collection_modifyitems(self, config, items):
        done = [item for item in items if item.nodeid in self.passed]
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in self.passed]


class Passed(LeftOut):
    """Keeps what passed; the workers of one run are all told the same."""

    def __init__(self, config):
        self.cache, self.digest, self.written = config.cache, digest(config.rootpath), 0.0
        held = self.cache.get(KEY, {}) if config.getoption("--resume") else {}
        super().__init__(held.get("passed", []) if held.get("digest") == self.digest else [])
        self.found = set(self.passed)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node):
        node.workerinput["passed"] = sorted(self.passed)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.found.discard(report.nodeid)
        elif report.when == "call" or report.skipped:
            self.found.add(report.nodeid)
        if time.monotonic() > self.written + EVERY:
            self.write()

    def pytest_sessionfinish(self, exitstatus):
        if not exitstatus:
            self.found = set()  # it ended: the next one begins anew
        self.write()

    def write(self):
        """Into the cache."""
        self.cache.set(KEY, {"digest": self.digest, "passed": sorted(self.found)})
        self.written = time.monotonic()
