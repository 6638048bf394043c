"""Where the trainings of a study run: on this machine, or where `--on` says. In: folders with job.json. Out: what runs in them.

An engine has
  slots              trainings that it takes at once
  patience           seconds after which it may be asked again for a training that another command is at
  found(folders)     {folder: training} of those that an earlier command, killed since, left under way
  start(folders, module)   {folder: training}: `python -m module FOLDER` begins in each, as soon as there is room for it
  close()
and a training, as `subprocess.Popen` has, poll(), returncode, terminate() and wait(); where output.txt cannot tell why it failed, `fault`
does. A missing package, and what a machine lacks, is a ValueError that says what to do.
"""

import importlib
import os
import subprocess
import sys


def environment(threads, **others):
    """This process's environment with a number of CPU threads, and other variables."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | others


def begin(module, folder, threads, cwd=None, **others):
    """The process of `python -m module FOLDER` on this machine; what it prints goes to FOLDER/output.txt."""
    with open(os.path.join(folder, "output.txt"), "w") as output:
        command = [sys.executable, "-m", module, str(folder)]
        settings = {"cwd": cwd, "env": environment(threads, **others), "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **settings)


def package(name, engine):
    """A package that only this engine needs."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"--on {engine} needs the package {name}: pip install {name}") from None


def visible_gpus():
    """Names by which CUDA_VISIBLE_DEVICES may give out the GPUs that this process sees."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        try:
            command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return []
        given = ",".join(done.stdout.split()) if done.returncode == 0 else ""
    return [name.strip() for name in given.split(",") if name.strip()]


class Local:
    """Processes of this machine, `jobs` at once; each of them sees its own GPUs alone where the study asks for any."""

    patience = 1.0

    def __init__(self, study, jobs=1):
        self.threads, self.slots, self.holders = study.threads, jobs, {}
        if study.gpus:
            names = visible_gpus()
            if len(names) < study.gpus:
                raise ValueError(f"a training of this study takes gpus = {study.gpus} and this machine shows {len(names)}; see nvidia-smi")
            shares = [",".join(names[i : i + study.gpus]) for i in range(0, len(names) - study.gpus + 1, study.gpus)]
            self.holders = dict.fromkeys(shares)
            self.slots = min(jobs, len(shares))

    def found(self, folders):
        """None: a process that outlived its command holds its training's lock, and is asked for again until it is done."""
        return {}

    def start(self, folders, module):
        """`begin` in each folder."""
        started = {}
        for folder in folders:
            own = {}
            if self.holders:
                share = next(share for share, holder in self.holders.items() if holder is None or holder.poll() is not None)
                own = {"CUDA_VISIBLE_DEVICES": share}
            started[folder] = begin(module, folder, self.threads, **own)
            if self.holders:
                self.holders[share] = started[folder]
        return started

    def close(self):
        """Nothing is left."""


def make_engine(study, out, options):
    """The engine that the command line `options` ask for. ValueError where one of another engine's options is given."""
    belongs = {"slurm": "slurm", "address": "ray", "root": "ray"}
    for name, engine in belongs.items():
        if getattr(options, name) and options.on != engine:
            raise ValueError(f"--{name} belongs to --on {engine}, and this study runs --on {options.on}")
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs} must be 1 or more")
    if options.on == "slurm":
        return importlib.import_module("trit.study.on_slurm").Slurm(study, out, options.jobs, options.slurm or ())
    if options.on == "ray":
        return importlib.import_module("trit.study.on_ray").Ray(study, out, options.jobs, options.address, options.root)
    return Local(study, options.jobs or 1)
