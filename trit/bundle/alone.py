"""Run counted files alone: one isolated process, an empty folder for each job, no network, and a report of all they touch.

In: `Job`s (a program, the files it is given, its environment). Out: a `Session` with a `JobResult` for each. No project code is
imported by the process that runs them. Several jobs share a process because loading PyTorch costs more than a short job.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from trit.bundle.mixing import decoder_bytes
from trit.bundle.verify import BundleError

RUNNER = Path(__file__).with_name("runner.py")
# What any Python program on this kind of machine may read: its libraries, the kernel's tables and devices.
SYSTEM_READABLE = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/sys", "/System", "/Library")
SYSTEM_WRITABLE = ("/dev", "/proc")
KILLED = -9
WATCHED = 0.5  # seconds between two looks at a job under way


class Job(NamedTuple):
    """One run of a counted file: `program` (bytes), `files` {name in its folder: path to copy, or bytes}, its environment and
    arguments. `name` is for progress lines."""

    name: str
    program: bytes
    files: dict = {}
    environ: dict = {}
    arguments: tuple = ()


class Event(NamedTuple):
    """Something a job touched: the audit event, a path or a description, whether it writes, who asked, seconds after the start."""

    event: str
    detail: str
    writes: bool
    asked: str
    seconds: float


class JobResult(NamedTuple):
    """What a job did. `given` are the absolute paths of its own files; `seconds` count from the process's start for the first job;
    `returncode` is KILLED where the time ran out or the process died."""

    folder: Path
    given: tuple
    returncode: int
    stdout: str
    stderr: str
    seconds: float
    events: tuple


class Session(NamedTuple):
    """All results of one process. `isolation` says how it was walled in, `python` the folders of its interpreter, `home` its home and
    temporary folder, `libraries` {name: version} of the array libraries it loaded, `timed_out` whether it was stopped."""

    results: list
    isolation: str
    python: tuple
    home: str
    libraries: dict
    device: str
    timed_out: bool


def prepare_job(job, folder):
    """Make the folder of a job: the program and its files, nothing else. -> tuple of the absolute paths in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train_gpt.py").write_bytes(job.program)
    for name, content in job.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            shutil.copytree(content, target) if Path(content).is_dir() else shutil.copyfile(content, target)
    return tuple(sorted(os.path.realpath(path) for path in folder.rglob("*") if path.is_file()))


def make_plan(jobs, folders, root, network):
    """What the runner is told: every job's folder, environment, arguments and output files, and where it may read and write."""
    home = str(root / "home")
    base = {"PATH": os.defpath, "HOME": home, "TMPDIR": home, "LC_ALL": "C.UTF-8"}
    steps = [
        {
            "folder": str(folder),
            "environ": base | job.environ,
            "arguments": list(map(str, job.arguments)),
            "output": str(root / "logs" / f"{number}.out"),
            "errors": str(root / "logs" / f"{number}.err"),
            "decoder_bytes": decoder_bytes(job.program),
        }
        for number, (job, folder) in enumerate(zip(jobs, folders))
    ]
    writable = [*SYSTEM_WRITABLE, str(root), *map(str, folders)]
    return {"jobs": steps, "refuse_network": not network, "readable": SYSTEM_READABLE, "writable": writable}


def run_plan(plan, root, python, before, timeout, names, say, watch):
    """Run a plan in one process behind the command `before` -> (`Reports`, whether the time ran out). Its children end with it."""
    reading, writing = os.pipe()
    (root / "plan.json").write_text(json.dumps(plan | {"pipe": writing}))
    command = [*before, python, "-I", "-B", "-c", RUNNER.read_text(encoding="utf-8"), str(root / "plan.json")]
    begin = time.perf_counter()
    with open(root / "logs" / "runner.err", "wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=plan["jobs"][0]["environ"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(writing,),
            start_new_session=True,
        )
    os.close(writing)
    reports, timed_out = Reports(reading, names, begin, say), False
    try:
        while not timed_out:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(min(WATCHED, timeout) if watch else timeout)
                break
            timed_out = time.perf_counter() - begin >= timeout
            if watch:
                watch(reports.current, read_text(Path(plan["jobs"][reports.current]["output"])))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever the programs left running
        process.wait()
        reports.join(10)
    return reports, timed_out


def run_jobs(jobs, root, timeout=600, python=sys.executable, network=False, say=None, folders=None, watch=None):
    """Run `jobs` in order in one isolated process -> `Session`. Each gets a folder below the empty folder `root`, or of `folders`.

    A job's environment is PATH, HOME, TMPDIR, LC_ALL and what it names. `timeout` (seconds) is for all of them; `say` gets a line for
    each finished job, `watch` now and then the number of the job that runs and what it has printed so far. BundleError where the process
    cannot be started.
    """
    root = Path(os.path.realpath(root))
    folders = folders or [root / str(number) for number in range(len(jobs))]
    given = [prepare_job(job, folder) for job, folder in zip(jobs, folders, strict=True)]
    for name in ("home", "logs"):
        (root / name).mkdir(parents=True)
    before = [] if network else network_wall()
    names = [job.name for job in jobs]
    reports, timed_out = run_plan(make_plan(jobs, folders, root, network), root, python, before, timeout, names, say, watch)
    facts = reports.facts
    if "python" not in facts:
        raise BundleError(f"{python} did not start in isolation: {read_text(root / 'logs' / 'runner.err')[-500:]}")
    walls = ["network namespace"] * bool(before) + ["file wall of the kernel"] * facts["walled"] + ["audit hook"]
    results = [
        JobResult(
            folder,
            given[number],
            reports.codes.get(number, KILLED),
            read_text(root / "logs" / f"{number}.out"),
            read_text(root / "logs" / f"{number}.err"),
            reports.seconds.get(number, time.perf_counter() - reports.begin),
            tuple(reports.events.get(number, ())),
        )
        for number, folder in enumerate(folders)
    ]
    isolation = "network allowed, " * network + ", ".join(walls)
    home = str(root / "home")
    return Session(results, isolation, tuple(facts["python"]), home, facts.get("libraries", {}), facts.get("device", ""), timed_out)


def read_text(path):
    """Text of a file, empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


class Reports(threading.Thread):
    """Collects what the isolated process reports: `events` and `codes` and `seconds` by job, `facts` about the process."""

    def __init__(self, pipe, names, begin, say):
        super().__init__(daemon=True)
        self.pipe, self.names, self.begin, self.say = pipe, names, begin, say
        self.events, self.codes, self.seconds, self.facts, self.current = {}, {}, {}, {}, 0
        self.start()

    def run(self):
        with open(self.pipe, encoding="utf-8") as lines:
            for line in lines:
                try:
                    self.take(json.loads(line))
                except (ValueError, TypeError, KeyError):  # somebody else wrote to the pipe
                    self.take({"event": "report", "detail": line[:200], "writes": True, "asked": "the program", "seconds": 0.0})

    def take(self, report):
        """One report: an event, the start or the end of a job, or facts about the process."""
        if "event" in report:
            self.events.setdefault(self.current, []).append(Event(**report))
        elif "start" in report:
            self.current = report["start"]
        elif "end" in report:
            number = report["end"]
            # The first job pays for starting Python and loading its libraries, as the one run of a contest does.
            self.seconds[number] = report["seconds"] if number else time.perf_counter() - self.begin
            self.codes[number] = report["code"]
            if self.say:
                self.say(f"run {number + 1} of {len(self.names)}: {self.names[number]}, {self.seconds[number]:.1f}s")
        else:
            self.facts.update(report)


def run_alone(wrapped, files=None, args=(), environ=None, timeout=600, python=sys.executable, folder=None, network=False):
    """Run one counted file in an empty folder with `python -I`, a scrubbed environment and no network; returns a CompletedProcess.

    `files` maps names in the folder to paths to copy there; `environ` is all the program gets beside PATH, HOME and TMPDIR.
    The result has two more attributes: `opened`, the paths the process opened (None if it was killed), and `isolation`, how the
    process was walled in. `folder` keeps the run in an empty folder of yours, so that what the program wrote can be read afterwards.
    subprocess.TimeoutExpired where it takes longer than `timeout` seconds.
    """
    if folder is not None and Path(folder).exists() and any(Path(folder).iterdir()):
        raise BundleError(f"{folder} is not empty; a counted file must run alone, give an empty or new folder")
    job = Job("alone", getattr(wrapped, "wrapped", wrapped), files or {}, environ or {}, tuple(args))
    with tempfile.TemporaryDirectory() as outside:
        place = Path(os.path.realpath(folder if folder is not None else Path(outside) / "alone"))
        session = run_jobs([job], outside, timeout, python, network, folders=[place])
    (only,) = session.results
    if session.timed_out:
        raise subprocess.TimeoutExpired("the counted file", timeout, only.stdout, only.stderr)
    done = subprocess.CompletedProcess(["train_gpt.py", *job.arguments], only.returncode, only.stdout, only.stderr)
    done.opened = [event.detail for event in only.events if event.event == "open"] if only.returncode != KILLED else None
    done.isolation = session.isolation
    return done


def network_wall():
    """The command that takes the network away from a process and its children, where this machine permits it."""
    unshare = shutil.which("unshare")
    for flags in (["-n"], ["-rn"]) if unshare else ():
        if subprocess.run([unshare, *flags, "true"], capture_output=True, check=False).returncode == 0:
            return [unshare, *flags]
    return []
