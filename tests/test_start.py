"""What a run needs is looked at before its clock starts, and all that is missing is said at once."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

import trit.start
from trit.start import main

H100 = "NVIDIA H100 80GB HBM3, 81559, 4"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that gives this machine GPUs, as rows "name, MiB, MiB taken" of a stand-in for nvidia-smi, and a CUDA build of torch."""
    real = importlib.metadata.version

    def play(rows, torch="2.13.0"):
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\n" + "".join(f"echo '{number}, {row}'\n" for number, row in enumerate(rows)))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: torch if name == "torch" else real(name))

    return play


def said(capsys, data, *arguments, code=0, gpus=1):
    """Standard output and the error text of a dry run on a tiny model."""
    settings = [f"data_path={data}", "model.vocab_size=260", "train.compute_dtype=float32"]
    given = ["--gpus", str(gpus), "--gpu-memory", "75", "--dry-run", *settings, *arguments]
    try:
        main(given)
        found = 0
    except SystemExit as end:
        found = end.code
    assert (found == 0) == (code == 0), found
    return capsys.readouterr().out, found if isinstance(found, str) else ""


def test_where_nothing_is_missing_the_command_is_shown(machine, data, capsys, tmp_path):
    machine([H100] * 8)
    output, _ = said(capsys, data, f"out_path={tmp_path}", "train.train_batch_tokens=8192", gpus=8)
    command = output.splitlines()[0]
    assert "-m torch.distributed.run --nproc_per_node 8 --standalone train_gpt.py" in command and "model.vocab_size=260" in command
    assert "vocab_size=260 (override)" in output and "num_layers" not in output  # what is a default is not repeated
    assert output.endswith("nothing is missing\n")


@pytest.mark.parametrize("rows,text", [
    ([], "GPUs: 2 needed, 0 found"),
    ([H100], "GPUs: 2 needed, 1 found"),
    ([H100, "NVIDIA A10, 23028, 4"], "GPU 1 (NVIDIA A10) has 22 GiB, 75 expected"),
    ([H100, "NVIDIA H100 80GB HBM3, 81559, 40000"], "39 GiB of GPU 1 are taken by another process"),
])  # fmt: skip
def test_gpus_that_are_few_small_or_busy(rows, text, machine, data, capsys, tmp_path):
    machine(rows)
    assert text in said(capsys, data, f"out_path={tmp_path}", code=1, gpus=2)[1]


def test_only_gpus_that_a_process_may_see_count(machine, data, capsys, tmp_path, monkeypatch):
    machine([H100] * 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert "2 needed, 1 found" in said(capsys, data, f"out_path={tmp_path}", code=1, gpus=2)[1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    said(capsys, data, f"out_path={tmp_path}", gpus=2)


def test_a_torch_without_cuda_is_named(machine, data, capsys, tmp_path):
    machine([H100], torch="2.13.0+cpu")
    assert "torch 2.13.0+cpu is built without CUDA" in said(capsys, data, f"out_path={tmp_path}", code=1)[1]


def test_everything_missing_is_said_at_once(machine, capsys, tmp_path, monkeypatch):
    machine([])
    (tmp_path / "checkpoint.npz").touch()
    monkeypatch.setattr(trit.start.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    monkeypatch.setattr(trit.start, "REQUIREMENTS", ("numpy", "brotli_that_is_not"))
    wrong = [
        "model.num_layers=90",
        "model.model_dim=1024",
        "model.num_heads=8",
        "train.attention_kernel=flash",
        "train.compute_dtype=bfloat16",
    ]
    _, text = said(capsys, tmp_path / "absent", f"out_path={tmp_path}", *wrong, "--nodes", "2", code=1)
    lines = text.splitlines()
    found = [line.removeprefix("error: ").split(":")[0] for line in lines]
    assert all(line.startswith("error: ") for line in lines)
    assert sorted(found) == ["GPUs", "bytes", "disk", "packages", "packages", "rendezvous", "run", "shards"], text
    assert "brotli_that_is_not not installed" in text and "attention_kernel=sdpa" in text


def test_shards_of_another_vocabulary_or_broken_are_named(machine, data, capsys, tmp_path):
    machine([H100])
    assert "tokenizer: model.vocab_size=300" in said(capsys, data, f"out_path={tmp_path}", "model.vocab_size=300", code=1)[1]
    folder = tmp_path / "data"
    folder.mkdir()
    for file in Path(data).iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 1100 if "_val_" in file.name else None])
    assert "asks for" in said(capsys, folder, f"out_path={tmp_path}", code=1)[1]


def test_a_run_becomes_its_command(machine, data, tmp_path, monkeypatch, capsys):
    machine([H100])
    became = []
    monkeypatch.setattr(os, "execv", lambda path, words: became.append((path, words)))
    main(["--gpus", "1", f"data_path={data}", "model.vocab_size=260", f"out_path={tmp_path}"])
    assert became[0][0] == sys.executable and became[0][1][1] == "train_gpt.py" and became[0][1][-1] == f"out_path={tmp_path}"


def test_a_study_is_looked_at_by_its_first_variant(machine, data, tmp_path, capsys, monkeypatch):
    study = tmp_path / "two.toml"
    study.write_text(f'base = ["data_path={data}", "model.vocab_size=260"]\n[variants]\na = []\nb = ["model.num_layers=2"]\n')
    monkeypatch.chdir(tmp_path)
    main(["--study", str(study), "--dry-run", "--jobs", "2"])
    output = capsys.readouterr().out
    assert f"-m trit.study {study} --jobs 2\n" in output and output.endswith("nothing is missing\n")
    with pytest.raises(SystemExit, match=r"error: .*absent\.toml"):
        main(["--study", "absent.toml", "--dry-run"])
