"""Launchers choose, check and say what is missing before anything runs; machines are played by stand-ins for the commands they ask."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then case "$2" in *platform*) echo "{machine} True";; *mlx*) exit {metal};; esac; exit 0; fi
echo "python $*" >> "$CALLS"
"""


def command(path, text):
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def mac(folder, memory=16, chip=1, system="Darwin", machine="arm64", environment="arm64", metal=0, arguments=()):
    """train_mac.sh on a Mac of `memory` GiB -> (exit status, output, errors, calls). `machine` is what the Pythons on PATH are built for,
    `environment` the one in .venv (None: there is none), `metal` the exit status of MLX's first import."""
    shutil.copytree(ROOT / "runners", folder / "runners")
    tools = folder / "tools"
    command(tools / "uname", f"#!/bin/sh\necho {system}\n")
    command(tools / "sysctl", f'#!/bin/sh\n[ "$2" = hw.memsize ] && echo {memory << 30} || echo {chip}\n')
    fill = f"mkdir -p .venv/bin; cp {tools}/python3 .venv/bin/python"
    command(tools / "make", f'#!/bin/sh\necho "make $*" >> "$CALLS"\n{fill}\n')
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        command(tools / name, PYTHON.format(machine=machine, metal=metal))
    if environment:
        command(folder / ".venv/bin/python", PYTHON.format(machine=environment, metal=metal))
    calls = folder / "calls"
    environ = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CALLS": str(calls), "HOMEBREW_PREFIX": str(folder)}
    given = ["bash", str(folder / "runners/train_mac.sh"), *arguments]
    done = subprocess.run(given, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("memory,tokens,vocabulary", [(8, 4096, 512), (16, 8192, 1024), (24, 16384, 1024), (128, 16384, 1024)])
def test_memory_chooses_batch_and_vocabulary(memory, tokens, vocabulary, tmp_path):
    status, output, errors, calls = mac(tmp_path, memory, arguments=["train.iterations=3", "run_id=other"])
    assert status == 0, errors
    assert f"{memory} GiB of memory: {tokens} tokens a step, vocabulary of {vocabulary}" in output
    prepare, train, build = calls
    assert prepare.endswith(f"--tokenizer sp_bpe_{vocabulary} --out data/pydocs_sp{vocabulary}")
    assert f"data_path=data/pydocs_sp{vocabulary} model.vocab_size={vocabulary} train.train_batch_tokens={tokens}" in train
    assert train.startswith("python train_gpt_mlx.py --config configs/demo.toml") and train.endswith(
        "train.iterations=3 run_id=other out_path=runs/mac"
    )
    assert build.endswith("--dce --backend mlx --name mac")


@pytest.mark.parametrize("missing,said", [
    ({"system": "Linux"}, "this is Linux, not macOS; here: make demo"),
    ({"chip": 0}, "needs an Apple chip"),
    ({"machine": "x86_64", "environment": None}, "no arm64 Python 3.11 or newer; brew install"),
    ({"environment": "x86_64"}, "remove the folder and run this again"),
    ({"metal": 1}, "MLX does not start"),
    ({"memory": 2}, "2 GiB of memory; the smallest choice needs 4"),
])  # fmt: skip
def test_what_is_missing_is_said_before_anything_runs(missing, said, tmp_path):
    status, _, errors, calls = mac(tmp_path, **missing)
    assert status == 1 and errors.startswith("error: ") and said in errors and not calls


def test_an_environment_is_made_with_the_first_native_python(tmp_path):
    status, _, errors, calls = mac(tmp_path, environment=None)
    assert status == 0, errors
    assert calls[0] == "make setup PYTHON=python3" and len(calls) == 4


def test_a_dry_run_prints_what_would_run_and_runs_nothing(tmp_path):
    status, output, errors, calls = mac(tmp_path, arguments=["--dry-run", "train.iterations=3"], metal=1)
    assert status == 0 and not calls, errors
    lines = output.splitlines()
    assert (
        len(lines) == 4
        and lines[2].startswith(".venv/bin/python train_gpt_mlx.py")
        and lines[2].endswith("train.iterations=3 out_path=runs/mac")
    )
