"""Trainings of a study on GPUs: one goes on in the process that holds its lock, several under torchrun, none where there is no GPU."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
from test_study import write_study

from trit.config_load import ROOT
from trit.study import job
from trit.study.files import BUSY, write_json
from trit.study.plan import read_study
from trit.study.pool import prepare

# Two ranks on a machine without GPUs, which a study itself refuses.
ON_CPU = """import trit.study.job
trit.study.job.check_devices = lambda *ignored: None
trit.study.job.main()
"""


class Replaced(Exception):
    """Instead of the end of a process that became another."""


@pytest.fixture
def folder(tmp_path, shard_folder):
    """The folder of one training that asks for no GPU."""
    return prepare(read_study(write_study(tmp_path, shard_folder, "[variants]\nfirst = []\n", seeds=[1], score=False)), tmp_path / "out")[0]


def ask_for(folder, gpus):
    write_json(folder / "job.json", json.loads((folder / "job.json").read_text()) | {"gpus": gpus, "clock": "wall"})


def test_several_gpus_go_on_under_torchrun_which_keeps_the_lock(folder, monkeypatch):
    ask_for(folder, 4)
    (folder / "metrics.jsonl").write_text("of a training that was killed\n")
    seen = []

    def become(program, command):
        busy = subprocess.run([sys.executable, "-m", "trit.study.job", str(folder)], cwd=ROOT, capture_output=True, check=False)
        seen.extend([busy.returncode, command])
        held = [fd for fd in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{fd}") == str(folder / "lock")]
        assert any(os.get_inheritable(int(fd)) for fd in held)
        raise Replaced

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(sys, "argv", ["job", str(folder)])
    with pytest.raises(Replaced):
        job.main()
    assert seen[0] == BUSY and not (folder / "metrics.jsonl").exists()
    assert seen[1][1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    assert seen[1][6:] == ["-m", "trit.study.job", "--rank", str(folder)]


def test_a_training_that_asks_for_a_gpu_refuses_a_machine_without(folder, monkeypatch):
    ask_for(folder, 1)
    monkeypatch.setattr(sys, "argv", ["job", str(folder)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="gpus = 1 and PyTorch sees no GPU here"):
        job.main()
    assert not (folder / "record.json").exists()
    with open(folder / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_two_ranks_write_one_record(folder, tmp_path):
    ask_for(folder, 2)
    (tmp_path / "on_cpu.py").write_text(ON_CPU)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*torchrun, str(tmp_path / "on_cpu.py"), "--rank", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "record.json").read_text())
    assert record["steps"] == 6 and record["tokens"] == 6 * 128 and (folder / "weights.npz").exists()
    assert "world_size:2" in (folder / "train.log").read_text()
