"""Launchers choose, check and say what is missing before anything runs; machines are played by stand-ins for the commands they ask."""

import os
import shutil
import subprocess
import sys
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
    assert prepare.endswith(f"--tokenizer sp_bpe_{vocabulary} --out data/packagedocs_sp{vocabulary}")
    assert f"data_path=data/packagedocs_sp{vocabulary} model.vocab_size={vocabulary} train.train_batch_tokens={tokens}" in train
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


RUNNERS = {path.stem: path for path in sorted((ROOT / "runners").glob("*.sh"))}
NEEDS_A_GPU = ("train_8xh100", "train_gpu", "train_2gpu_proxy", "train_multi_node", "submit")
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A copy of the project without data, and a PATH without drivers: a laptop on which nothing was prepared."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("runners", "trit", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    tools = folder / "tools"
    tools.mkdir()
    for name in ("bash", "basename", "cat", "cp", "df", "awk", "dirname", "grep", "head", "sort", "tail", "tee", "touch"):
        os.symlink(shutil.which(name), tools / name)
    command(tools / "uname", "#!/bin/sh\necho Linux\n")
    return folder


def dry(folder, name, *arguments, **environ):
    """(exit status, what a dry run of a launcher prints and says, with this machine's names taken out)."""
    environ = {"PATH": str(folder / "tools"), "PYTHON": sys.executable, "STUDY": "configs/studies/small_screen.toml"} | environ
    given = ["bash", f"runners/{name}.sh", "--dry-run", *arguments]
    done = subprocess.run(given, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stdout + done.stderr).replace(sys.executable, "PYTHON")


@pytest.mark.parametrize("name", RUNNERS)
def test_a_dry_run_on_a_bare_machine_says_what_is_missing(name, bare):
    """TRIT_WRITE_GOLDEN=1 writes what they say now."""
    status, text = dry(bare, name, "train.iterations=3") if name != "ablate" else dry(bare, name)
    text = f"exit {status}\n{text}"
    if os.environ.get("TRIT_WRITE_GOLDEN"):
        (GOLDEN / f"runner_{name}.txt").write_text(text)
    assert text == (GOLDEN / f"runner_{name}.txt").read_text()
    if name in NEEDS_A_GPU:
        assert status == 1 and "error: GPUs: " in text and "error: shards: " in text
    # Nothing ran and nothing was left behind.
    assert not (bare / "runs").exists() and not (bare / "data").exists()


@pytest.mark.parametrize("name,gpus,seconds,parts", [
    ("train_8xh100", 8, 590, 1), ("train_2gpu_proxy", 2, 4 * 590, 4), ("train_gpu", 1, 8 * 590, None), ("train_multi_node", 8, 590, 1),
])  # fmt: skip
def test_names_and_defaults_agree(name, gpus, seconds, parts, bare):
    """As many processes as the name says, and on fewer GPUs the same micro-batch and the same steps in so much longer."""
    _, text = dry(bare, name)
    words = text.splitlines()[0].split()
    assert int(words[words.index("--nproc_per_node") + 1] if gpus > 1 else 1) == gpus
    assert f"max_wallclock_seconds={float(seconds)}" in text and "train_batch_tokens=524288" in text
    assert (f"GPUs: {gpus} needed") in text
    if parts:
        assert (f"grad_accum_steps={parts} " in text) == (parts > 1)
    track = "10min_16mb" if name == "train_8xh100" else "non_record_16mb"
    assert f"track={track} " in text


@pytest.mark.parametrize("gibibytes,parts", [(0, 64), (11, 64), (24, 32), (40, 16), (80, 8), (141, 8)])
def test_one_gpu_cuts_a_step_into_what_its_memory_holds(gibibytes, parts, bare, tmp_path):
    shutil.copytree(bare / "tools", tmp_path / "tools", symlinks=True)
    row = f"0, Some GPU, {gibibytes * 1024}, 4"
    answer = f'#!/bin/sh\ncase "$*" in *memory.used*) echo "{row}";; *) echo {gibibytes * 1024};; esac\n'
    if gibibytes:
        command(tmp_path / "tools" / "nvidia-smi", answer)
    assert f"grad_accum_steps={parts} (override)" in dry(bare, "train_gpu", PATH=str(tmp_path / "tools"))[1]


def test_under_slurm_the_meeting_place_is_the_first_machine(bare, tmp_path):
    shutil.copytree(bare / "tools", tmp_path / "tools", symlinks=True)
    command(tmp_path / "tools" / "scontrol", '#!/bin/sh\n[ "$3" = "node[1-4]" ] && printf "node1\\nnode2\\nnode3\\nnode4\\n"\n')
    environ = {"PATH": str(tmp_path / "tools"), "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "node[1-4]"}
    text = dry(bare, "train_multi_node", **environ)[1]
    assert "--nnodes 4 --rdzv_backend c10d --rdzv_endpoint node1:29500" in text and "rendezvous" not in text


SUBMIT = """#!/bin/sh
case "$1 $2" in
  "build_submission.py --run") [ -e "{fail}" ] && exit 3; echo "score"; echo "records/track/$6";;
  "-m trit.report.seeds") mkdir -p "records/track/$4"; echo "records/track/$4";;
esac
echo "python $*" >> "$CALLS"
"""
TRAIN = """[ "$1" = --dry-run ] && { echo "dry $*" >> "$CALLS"; exit 0; }
for word; do case $word in out_path=*) folder=${word#out_path=};; esac; done
mkdir -p "$folder"; touch "$folder/checkpoint.npz"; echo "train $*" >> "$CALLS"
[ -e "$STOP" ] && exit 130
echo "checkpoint: $folder" > "$folder/train.log"
"""


def test_a_submission_goes_from_seeds_to_the_staged_folder_and_on_after_a_stop(tmp_path):
    """The trainer and the builder are played; what is tested is the order, what is passed on, and that nothing is done twice."""
    (tmp_path / "runners").mkdir()
    shutil.copy(ROOT / "runners/submit.sh", tmp_path / "runners")
    (tmp_path / "runners/train_mine.sh").write_text(TRAIN)
    command(tmp_path / "python", SUBMIT.replace("{fail}", str(tmp_path / "fail")))
    (tmp_path / "clone/records").mkdir(parents=True)
    calls, stop = tmp_path / "calls", tmp_path / "stop"
    environ = os.environ | {
        "PYTHON": str(tmp_path / "python"), "RUNNER": "runners/train_mine.sh", "NAME": "mine", "SEEDS": "7 8", "STAGE": "clone",
        "CALLS": str(calls), "STOP": str(stop),
    }  # fmt: skip

    def submit(*arguments):
        given = ["bash", str(tmp_path / "runners/submit.sh"), *arguments, "train.iterations=3"]
        done = subprocess.run(given, env=environ, capture_output=True, text=True, timeout=60, check=False)
        made, _ = calls.read_text().splitlines() if calls.exists() else [], calls.unlink(missing_ok=True)
        return done.returncode, made, done.stdout

    status, made, output = submit("--dry-run")
    assert status == 0 and len(made) == 1 and made[0].startswith("dry --dry-run train.iterations=3 run_id=mine_seed7 seed=7")
    assert "+ bash runners/train_mine.sh train.iterations=3 run_id=mine_seed8 seed=8 out_path=runs/mine_seed8 resume=false" in output
    stop.touch()
    status, made, _ = submit()
    assert status == 130 and [line.split()[0] for line in made] == ["dry", "train"]
    stop.unlink(), (tmp_path / "fail").touch()
    status, made, _ = submit()
    assert status == 3 and made[1].endswith("seed=7 out_path=runs/mine_seed7 resume=true") and len(made) == 2
    (tmp_path / "fail").unlink()
    status, made, _ = submit()
    assert status == 0 and [" ".join(line.split()[:3]) for line in made] == [
        "python build_submission.py --run", "dry --dry-run train.iterations=3", "train train.iterations=3 run_id=mine_seed8",
        "python build_submission.py --run", "python -m trit.report.seeds",
    ]  # fmt: skip
    assert made[-1].endswith("--name mine records/track/mine_seed7 records/track/mine_seed8")
    assert (tmp_path / "clone/records/mine").is_dir()
    status, made, _ = submit()
    assert status == 0 and len(made) == 1, "only the merging is done again"
