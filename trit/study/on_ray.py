"""Trainings as tasks of ray, on any number of machines: a cluster at --address, or one that is started on this machine.

Every machine has this repository and the data at the same place (--root where it is another than here). The study's folder need not be
shared: where a machine does not see it, its trainings work in a temporary folder, and what they write comes back as bytes while it is
written, record.json last.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from trit.config_load import ROOT
from trit.data.files import atomic_write
from trit.study.engines import begin, package
from trit.study.files import BUSY

INPUTS = ("job.json", "pace.json")
LAST = ("ratio.json", "record.json")
LOSSES = 3  # machines that a training may lose before it counts as failed
EVERY = 2.0  # seconds from one look at a remote training's files to the next


@functools.cache
def source_stamp():
    """Digest of the package's source: two machines with different ones would train different things."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "trit").rglob("*.py")):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def changed(folder, seen, names):
    """{name: bytes} of the files of `folder` called `names` (None: all but what it was given) that changed since `seen`, which is updated."""
    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name in LAST):
        if path.name in (*INPUTS, "lock") or path.suffix == ".partial" or (names and path.name not in names):
            continue
        stamp = path.stat().st_mtime_ns, path.stat().st_size
        if seen.get(path.name) != stamp:
            seen[path.name], found[path.name] = stamp, path.read_bytes()
    return found


def work(module, folder, given, threads, token, stamp, root):
    """What a task does on its machine: yields {name: bytes} of the files that the driver lacks, at last the exit code."""
    if source_stamp() != stamp:
        raise RuntimeError(f"the source of trit in {ROOT} is another than the driver's: bring both to the same commit")
    with contextlib.ExitStack() as stack:
        sign, path = token
        shared = os.path.exists(path) and Path(path).read_text() == sign
        place = Path(folder) if shared else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trit-")))
        if not shared:
            for name, data in given.items():
                (place / name).write_bytes(data)
        process, seen = begin(module, place, threads, cwd=root), {}
        try:
            while process.poll() is None:
                time.sleep(EVERY)
                if not shared:
                    yield changed(place, seen, ("metrics.jsonl", "trained.json"))
            if not shared:
                yield changed(place, seen, None)
        finally:
            process.terminate()
            process.wait()
        yield process.returncode


class Training:
    """A task of ray with the face of a process."""

    def __init__(self, engine, folder, stream):
        self.engine, self.folder, self.stream, self.returncode, self.fault = engine, folder, stream, None, ""

    def poll(self):
        ray = self.engine.ray
        while self.returncode is None and ray.wait([self.stream], timeout=0)[0]:
            try:
                said = ray.get(next(self.stream))
            except StopIteration:
                self.lose("it ended without a word")
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as fault:
                self.lose(str(fault))
            except (ray.exceptions.RayError, OSError) as fault:
                self.returncode, self.fault = 1, str(fault).strip().splitlines()[-1]
            else:
                if isinstance(said, int):
                    self.returncode = said
                else:
                    for name, data in said.items():
                        atomic_write(self.folder / name, data)
        return self.returncode

    def lose(self, reason):
        """The machine went away: the training begins again elsewhere, unless it has lost several."""
        losses = self.engine.losses[self.folder] = self.engine.losses.get(self.folder, 0) + 1
        self.returncode = BUSY if losses < LOSSES else 1
        self.fault = f"lost {losses} times: {' '.join(reason.split())[:200]}"

    def terminate(self):
        with contextlib.suppress(Exception):  # the cluster may be gone
            self.engine.ray.cancel(self.stream)

    def wait(self):
        """Until the task has ended what it runs, at most some seconds."""
        limit = time.monotonic() + 10
        while self.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)


class Ray:
    """Tasks that take a training's threads and GPUs wherever there is room; `jobs` of them at once where that is said."""

    patience = 10.0

    def __init__(self, study, out, jobs, address, root):
        self.ray, self.losses = package("ray", "ray"), {}
        self.slots, self.threads = jobs or sys.maxsize, study.threads
        self.root = os.path.abspath(root or os.getcwd())
        self.token = secrets.token_hex(8), str(out.resolve() / ".ray")
        out.mkdir(parents=True, exist_ok=True)
        Path(self.token[1]).write_text(self.token[0])
        paths = [self.root, str(ROOT) if not root else self.root, os.environ.get("PYTHONPATH", "")]
        settings = {"runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}}}
        if not address:
            settings |= {"include_dashboard": False, "num_cpus": max(os.cpu_count() or 1, study.threads * max(study.gpus, 1))}
        try:
            self.ray.init(address=address or "local", log_to_driver=False, logging_level="error", **settings)
        except (ConnectionError, ValueError, RuntimeError) as fault:
            where = f"--address {address}: no cluster answers" if address else "--on ray: none could be started on this machine"
            raise ValueError(f"{where} ({str(fault).strip().splitlines()[0]})") from None
        # A lost task is started anew by `lose`, not by ray: ray would leave out of a second try what the first had yielded.
        needs = {"num_cpus": study.threads * max(study.gpus, 1), "num_gpus": study.gpus, "max_retries": 0}
        self.task = self.ray.remote(num_returns="streaming", **needs)(work)

    def found(self, folders):
        """None: tasks end with the command that began them."""
        return {}

    def start(self, folders, module):
        """A task for each folder."""
        started = {}
        for folder in folders:
            given = {name: (folder / name).read_bytes() for name in INPUTS if (folder / name).exists()}
            stream = self.task.remote(module, str(folder.resolve()), given, self.threads, self.token, source_stamp(), self.root)
            started[folder] = Training(self, folder, stream)
        return started

    def close(self):
        """Leave the cluster, or end the one that was started here."""
        self.ray.shutdown()
