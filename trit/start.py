"""Looks at the machine before a run's clock starts: python -m trit.start --gpus 8 --config PRESET [--dry-run] [key=value ...]
Or before a study's: python -m trit.start --study STUDY.toml [--dry-run] [arguments of python -m trit.study]

Prints the command, the settings that are not defaults and, all at once, what is missing and how to get it. Where nothing is missing it
becomes the command; --dry-run stops there. What the launchers of runners/ stand on: they hold the facts of a machine, this the checks.
"""

import contextlib
import csv
import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from trit.compress.plan import check_plan, plan
from trit.config_load import describe, load, run_folder
from trit.console import Parser, command
from trit.data.manifest import check_vocabulary, resolve_tokenizer
from trit.data.shards import shard_files, shard_length
from trit.models import load_arch
from trit.params import parameter_count
from trit.study.plan import read_study

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
BUSY_GIB = 2  # a GPU that holds more than this before a run is somebody's
QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,memory.used", "--format=csv,noheader,nounits")
REQUIREMENTS = ("numpy", "sentencepiece", "brotli", "torch")


class Gpu(NamedTuple):
    """A GPU as its driver lists it: its number, name, memory in GiB and how much of it is taken."""

    index: int
    name: str
    memory: float
    used: float


def listed_gpus():
    """[`Gpu`] of this machine that CUDA_VISIBLE_DEVICES lets a process see; empty where there is no driver."""
    try:
        text = subprocess.run(QUERY, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if len(row) == 4]
    found = [Gpu(int(index), name, float(total) / 1024, float(used) / 1024) for index, name, total, used in rows]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [part.strip() for part in visible.split(",") if part.strip()] if visible is not None else None
    if numbers is None or not all(number.isdecimal() for number in numbers):
        return found
    return [gpu for gpu in found if gpu.index in map(int, numbers)]


def missing_gpus(gpus, needed, memory):
    """What speaks against a run on `needed` GPUs of at least `memory` GiB each."""
    if len(gpus) < needed:
        why = "" if shutil.which("nvidia-smi") else " (no nvidia-smi here, so no driver)"
        return [f"GPUs: {needed} needed, {len(gpus)} found{why}; take another launcher of runners/, or another machine"]
    faults = []
    for gpu in gpus[:needed]:
        if gpu.memory < memory:
            mend = "more train.grad_accum_steps take less; then pass --gpu-memory too"
            faults.append(f"memory: GPU {gpu.index} ({gpu.name}) has {gpu.memory:.0f} GiB, {memory} expected; {mend}")
        elif gpu.used > BUSY_GIB:
            faults.append(f"memory: {gpu.used:.0f} GiB of GPU {gpu.index} are taken by another process; see nvidia-smi, end it or wait")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # its absence is said elsewhere
        version = importlib.metadata.version("torch")
        if "+cpu" in version:
            faults.append(f"packages: torch {version} is built without CUDA; install the build for CUDA (pytorch.org says how)")
    return faults


def missing_packages(config):
    """What cannot be imported."""
    absent = []
    for name in REQUIREMENTS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    faults = [f"packages: {', '.join(absent)} not installed; run: {sys.executable} -m pip install -r requirements.txt"] if absent else []
    if config.train.attention_kernel == "flash" and not any(map(importlib.util.find_spec, ("flash_attn_interface", "flash_attn"))):
        faults.append("packages: no FlashAttention (flash_attn_interface or flash_attn); install it, or train.attention_kernel=sdpa")
    return faults


def missing_data(config, run):
    """What is wrong with shards and tokenizer. Reads headers and the manifest, no text."""
    faults, path = [], run.data_path
    variant = f"sp{config.model.vocab_size}"
    mend = f"python -m trit.data.download --variant {variant} brings published ones to data/datasets, python -m trit.data.prepare makes your own"
    if not os.path.isdir(path):
        return [f"shards: no folder {path}; {mend}"]
    for split in ("train", "val"):
        try:
            for file in shard_files(path, split):
                shard_length(file)  # which refuses an empty one
        except (ValueError, OSError) as fault:
            faults.append(f"shards: {fault}")
    try:
        resolve_tokenizer(path, run.tokenizer_path)
        check_vocabulary(path, config.model.vocab_size)
    except (ValueError, OSError) as fault:
        faults.append(f"tokenizer: {fault}")
    return faults


def missing_room(config, specs, folder):
    """What is wrong with the disk the run's files go to: a checkpoint holds weights, moments and averages, and is written beside the last."""
    copies = 4 + bool(config.train.ema_decay)
    needed = 2 * copies * 4 * parameter_count(specs) + GIB
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        return [f"disk: {free / GIB:.1f} GiB free at {there}, {needed / GIB:.1f} needed; make room, or out_path= a folder elsewhere"]
    return [] if os.access(there, os.W_OK) else [f"disk: {there} cannot be written; out_path= a folder that can"]


def missing(options, config, run):
    """([what would end the run before it has trained], [what is doubtful]), a line each."""
    specs = load_arch(config.model.name).param_specs(config)
    faults = missing_packages(config) + (missing_gpus(listed_gpus(), options.gpus, options.gpu_memory) if options.gpus else [])
    folder = run_folder(run)
    faults += missing_data(config, run) + missing_room(config, specs, folder)
    if not options.study and not run.resume and (checkpoint := folder / "checkpoint.npz").exists():
        faults.append(f"run: {checkpoint} is there and would be written over; choose another run_id=, or resume=true")
    if options.nodes > 1 and not options.rendezvous:
        faults.append("rendezvous: HEAD is not set; give every machine the same HEAD=host:port of one of them")
    with warnings.catch_warnings(record=True) as doubts:
        try:
            check_plan(plan(config, specs, config.compress.code_bytes_reserve), config.track.cap_bytes)
        except ValueError as fault:
            faults.append(f"bytes: {fault}")
    return faults, [str(doubt.message) for doubt in doubts]


def command_of(options, others):
    """The command line of a run or a study, as a list of words; `others` are its arguments that are none of this module's."""
    words = [sys.executable]
    if options.study:
        return [*words, "-m", "trit.study", options.study, *others]
    if options.gpus * options.nodes > 1:
        words += ["-m", "torch.distributed.run", "--nproc_per_node", str(options.gpus)]
        several = ["--nnodes", str(options.nodes), "--rdzv_backend", "c10d", "--rdzv_endpoint", options.rendezvous or "HOST:PORT"]
        words += several if options.nodes > 1 else ["--standalone"]
    return [*words, "train_gpt.py", *(["--config", options.config] if options.config else []), *others]


def shown(words):
    """A command as a person types it."""
    python = Path(words[0])
    return shlex.join([str(python.relative_to(ROOT)) if python.is_relative_to(ROOT) else words[0], *words[1:]])


def main(arguments=None):
    """Command line of this module."""
    parser = Parser(prog="python -m trit.start", description=__doc__)
    parser.add_argument("--config", help="preset")
    parser.add_argument("--study", help="study file; its first variant says what is needed")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each machine; 0 trains on the processor")
    parser.add_argument("--gpu-memory", type=int, default=0, metavar="GIB", help="memory each of them must have")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--rendezvous", default="", metavar="HOST:PORT", help="where several machines meet")
    parser.add_argument("--dry-run", action="store_true", help="print the command and what is missing, and run nothing")
    options, others = parser.parse_known_args(arguments)
    with command():
        if options.study:
            study = read_study(options.study)
            config, run, origins = load(study.preset, {}, study.settings(study.variants[0]))
            options.gpus = study.gpus
        else:
            config, run, origins = load(options.config, os.environ, others, max(options.gpus, 1) * options.nodes)
        found, doubts = missing(options, config, run)
        words = command_of(options, others)
        print(f"command: {shown(words)}\n\nsettings that are not defaults\n{describe(config, run, origins, changed=True)}\n")
        for doubt in doubts:
            print(f"note: {doubt}")
        if found:
            sys.stdout.flush()
            sys.exit("\n".join(f"error: {fault}" for fault in found))
        print("nothing is missing")
    if not options.dry_run:
        sys.stdout.flush()
        os.execv(words[0], words)


if __name__ == "__main__":
    main()
