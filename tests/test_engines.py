"""Engines of a study: what they start, find again, lose and refuse. Their work is a small module here; tests/test_study.py trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from trit.config_load import ROOT
from trit.study.engines import Local, make_engine
from trit.study.files import BUSY
from trit.study.plan import Study
from trit.study.pool import drive, fault_of

SMALL = """import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[-1])
job = json.loads((folder / "job.json").read_text())
with open(folder / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"began": os.getpid()}) + "\\n")
open(os.environ["STARTS"], "a").write(folder.name + "\\n")
time.sleep(job["seconds"])
if job["fails"]:
    sys.exit("the small work failed")
(folder / "record.json").write_text(json.dumps({"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ["OMP_NUM_THREADS"]}))
"""
# A command of its own, which a test may kill: drives the folders of out/ on SLURM.
DRIVER = """import sys
from pathlib import Path
from types import SimpleNamespace
from trit.study.engines import make_engine
from trit.study.plan import Study
from trit.study.pool import drive
out = Path(sys.argv[1])
engine = make_engine(Study("some", ()), out, SimpleNamespace(on="slurm", jobs=2, slurm=None, address=None, root=None))
todo = [folder for folder in sorted(out.glob("*/*")) if not (folder / "record.json").exists() and folder.parent.name != ".slurm"]
drive(engine, todo, "small_work", "record.json", lambda folder, training: print(folder.name, flush=True))
"""


def options(on="local", jobs=None, slurm=None, address=None, root=None):
    return SimpleNamespace(on=on, jobs=jobs, slurm=slurm, address=address, root=root)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which `python -m small_work FOLDER` is found; `work` writes its jobs."""
    (tmp_path / "small_work.py").write_text(SMALL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
    (tmp_path / "starts").touch()

    def work(count, seconds=0.0, fails=()):
        folders = []
        for seed in range(count):
            folder = tmp_path / "out" / "some" / str(seed)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "job.json").write_text(json.dumps({"seconds": seconds, "fails": seed in fails}))
            folders.append(folder)
        return folders

    return SimpleNamespace(folder=tmp_path, out=tmp_path / "out", work=work, starts=lambda: (tmp_path / "starts").read_text().split())


@pytest.fixture
def cluster(place, monkeypatch):
    """The stand-in for SLURM on PATH."""
    (place.folder / "cluster").mkdir()
    monkeypatch.setenv("CLUSTER", str(place.folder / "cluster"))
    monkeypatch.setenv("PATH", f"{place.folder / 'tools'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import slurm_stand_in

    monkeypatch.setattr(slurm_stand_in, "CLUSTER", place.folder / "cluster")
    slurm_stand_in.install(place.folder / "tools")
    yield slurm_stand_in
    for facts in slurm_stand_in.known().values():
        if facts["state"] == "RUNNING":
            try_kill(facts["pid"])


def try_kill(group):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def driven(engine, folders):
    """{folder's name: None, or what it said when it failed}."""
    found = {}

    def ended(folder, training):
        found[folder.name] = None if (folder / "record.json").exists() else fault_of(folder, training)

    drive(engine, folders, "small_work", "record.json", ended)
    return found


def wait_for(holds, seconds=60):
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.05)


def test_gpus_are_shared_out_and_given_back(place, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7,9")
    engine = Local(Study("some", (), threads=2, gpus=2, clock="wall"), jobs=4)
    assert engine.slots == 2
    assert driven(engine, place.work(5, 0.2)) == dict.fromkeys("01234")
    records = [json.loads((place.out / "some" / str(seed) / "record.json").read_text()) for seed in range(5)]
    assert {record["gpus"] for record in records} == {"3,5", "6,7"} and {record["threads"] for record in records} == {"2"}


@pytest.mark.parametrize("gpus,asked,message", [
    (2, options(), "takes gpus = 2 and this machine shows 1"),
    (0, options(slurm=["partition=gpu"]), "--slurm belongs to --on slurm"),
    (0, options(on="slurm", address="auto"), "--address belongs to --on ray"),
    (0, options(jobs=0), "--jobs 0 must be 1 or more"),
    (0, options(on="slurm"), "sbatch is not here"),
])  # fmt: skip
def test_what_an_engine_lacks_is_said(gpus, asked, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        make_engine(Study("some", (), gpus=gpus), tmp_path, asked)


@pytest.mark.parametrize("name,engine", [("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_package_is_one_line_with_the_command(name, engine, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=f"--on {engine} needs the package {name}: pip install {name}"):
        make_engine(Study("some", ()), tmp_path, options(on=engine))


def test_a_training_that_another_command_is_at_is_asked_for_again(place):
    class Busy(Local):
        patience, turns = 0.1, 0

        def start(self, folders, module):
            self.turns += 1
            return {folder: SimpleNamespace(poll=lambda: BUSY, returncode=BUSY) for folder in folders}

    engine, (folder,) = Busy(Study("some", ())), place.work(1)
    real = engine.start

    def start(folders, module):
        if engine.turns == 3:
            (folder / "record.json").write_text("{}")  # the other command has ended it
        return real(folders, module)

    engine.start = start
    assert driven(engine, [folder]) == {"0": None} and engine.turns == 4 and place.starts() == []


def test_a_job_array_runs_each_training_once(place, cluster):
    engine = make_engine(Study("some", (), threads=3), place.out, options("slurm", 2, ["partition=short", "time=7"]))
    found = driven(engine, place.work(4, 0.1, fails=[2]))
    assert found.pop("2") == "the small work failed" and found == dict.fromkeys("013")
    jobs = cluster.known()
    assert sorted(jobs) == ["100_0", "100_1", "100_2", "100_3"] and sorted(place.starts()) == list("0123")
    said = jobs["100_0"]["said"]
    assert (said["array"], said["partition"], said["time"], said["cpus-per-task"]) == ("0-3%2", "short", "7", "3")
    assert driven(engine, place.work(4, 0.0)) == dict.fromkeys("0123")
    assert sorted(place.starts()) == list("01223"), "only what had no record ran again"


def test_jobs_of_a_killed_command_are_found_in_the_queue_again(place, cluster):
    place.work(4, 1.5)
    command = [sys.executable, "-c", DRIVER, str(place.out)]
    killed = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(place.starts()) >= 2)
    wait_for(lambda: any(json.loads(path.read_text())["jobs"] for path in place.out.glob(".slurm/*/jobs.json")))
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert list(place.out.glob("*/*/record.json")) == [] or len(place.starts()) < 4
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(place.out.glob("*/*/record.json"))) == 4 and sorted(place.starts()) == list("0123")
    assert sorted(cluster.known()) == ["100_0", "100_1", "100_2", "100_3"], "nothing was submitted twice"


def test_a_submission_that_was_cut_off_is_cancelled_by_its_name(place, cluster):
    """The command was killed between sbatch and the file that would have said its ids."""
    folders = place.work(2, 30.0)
    engine = make_engine(Study("some", ()), place.out, options("slurm"))
    engine.start(folders, "small_work")
    wait_for(lambda: len(place.starts()) == 2)  # they have read how long they are to work
    (file,) = place.out.glob(".slurm/*/jobs.json")
    file.write_text(json.dumps({"jobs": None}))
    place.work(2, 0.0)
    assert driven(make_engine(Study("some", ()), place.out, options("slurm")), folders) == {"0": None, "1": None}
    states = {number: facts["state"] for number, facts in cluster.known().items()}
    assert states["100_0"] == states["100_1"] == "CANCELLED" and {"101_0", "101_1"} <= set(states)


def test_a_job_that_slurm_ends_has_failed_and_ctrl_c_cancels(place, cluster, monkeypatch):
    monkeypatch.setattr("trit.study.on_slurm.LATE", 0.0)
    folders = place.work(1, 60.0)
    engine = make_engine(Study("some", ()), place.out, options("slurm"))
    (training,) = engine.start(folders, "small_work").values()
    wait_for(place.starts)
    assert training.poll() is None
    training.terminate()
    training.job.watcher.update()
    assert training.poll() == 1 and "100 ended CANCELLED" in training.fault
    with pytest.raises(RuntimeError, match="invalid partition"):
        make_engine(Study("some", ()), place.out, options("slurm", None, ["partition=none"])).start(folders, "small_work")
    with pytest.raises(ValueError, match="--slurm: Unavailable parameter.*'partitoin'"):
        make_engine(Study("some", ()), place.out, options("slurm", None, ["partitoin=gpu"]))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_tasks_of_ray_leave_their_files_here(place, shared):
    pytest.importorskip("ray")
    engine = make_engine(Study("some", (), threads=1), place.out, options("ray", 2))
    try:
        if not shared:
            engine.token = engine.token[0], str(place.folder / "not here")
        found = driven(engine, place.work(3, 3.0, fails=[1]))
        assert found.pop("1") == "the small work failed" and found == {"0": None, "2": None}
        assert len(place.starts()) == 3 and all(name.startswith("trit-") != shared for name in place.starts())
        for seed in range(3):
            assert (place.out / "some" / str(seed) / "metrics.jsonl").exists()
        assert not list(Path("/tmp").glob("trit-*/job.json"))
    finally:
        engine.close()
