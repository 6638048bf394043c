"""Trainings as elements of a SLURM job array, through submitit. The study's folder must be one that all nodes see.

FOLDER/.slurm/<submission>/ holds submitit's files and jobs.json: first only that there is a submission of this name, then the job id of
every training, in one piece. A command that was killed leaves its jobs in the queue; the next one finds them there by these ids, and
cancels by its name a submission that was cut off before its ids were known.
"""

import getpass
import logging
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time

from trit.config_load import ROOT
from trit.study.engines import begin, package
from trit.study.files import read_json, write_json

ARRAY = 1000  # most elements of an array, by SLURM's own default
LATE = 15.0  # seconds that the file in which a job says how it ended may take to show
MINUTES = 24 * 60  # of a training at most, unless --slurm time=... says otherwise


def work(module, folder, threads):
    """What a job does on its node -> exit code."""
    return begin(module, folder, threads).wait()


def asked(command):
    """What one of SLURM's commands prints. RuntimeError with its own complaint."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def parameters(settings):
    """{name: value} of key=value strings, numbers as numbers."""
    found = {}
    for item in settings:
        key, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f"--slurm {item!r} is not of the form key=value, for example partition=gpu")
        found[key] = int(value) if value.isdigit() else value
    return found


class Training:
    """A job of submitit's with the face of a process."""

    def __init__(self, job):
        self.job, self.returncode, self.fault, self.over = job, None, "", None

    def poll(self):
        if self.returncode is not None or not self.job.done():
            return self.returncode
        if self.job.paths.result_pickle.exists():
            try:
                self.returncode = self.job.result()
            except Exception as fault:  # what `work` raised, as submitit tells it
                self.returncode, self.fault = 1, f"SLURM job {self.job.job_id}: {str(fault).strip()[-200:]}"
        else:
            self.over = self.over or time.monotonic()
            if time.monotonic() - self.over >= LATE:  # killed, or out of memory or time
                self.returncode, self.fault = 1, f"SLURM job {self.job.job_id} ended {self.job.state}; see {self.job.paths.stdout}"
        return self.returncode

    def terminate(self):
        self.job.cancel(check=False)

    def wait(self):
        """SLURM ends what it was told to end; nobody need wait for it."""


class Slurm:
    """A job array for all trainings, of which `jobs` run at once."""

    slots, patience = ARRAY, 60.0

    def __init__(self, study, out, jobs, settings):
        self.submitit = package("submitit", "slurm")
        missing = [name for name in ("sbatch", "squeue", "sacct", "srun", "scancel") if not shutil.which(name)]
        if missing:
            raise ValueError(f"--on slurm needs the commands of a SLURM cluster, and {missing[0]} is not here; run this on its login node")
        logging.getLogger("submitit").setLevel(logging.ERROR)
        self.study, self.out, self.folder = study, out.resolve(), out.resolve() / ".slurm"
        self.parameters = {
            "time": MINUTES,
            "cpus_per_task": study.threads * max(study.gpus, 1),
            "gpus_per_node": study.gpus or None,
            "array_parallelism": jobs or ARRAY,
            "setup": [f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH"],
            "stderr_to_stdout": True,
        } | parameters(settings)
        try:
            self.executor("check")
        except (ValueError, TypeError) as fault:
            raise ValueError(f"--slurm: {' '.join(str(fault).split())}") from None

    def executor(self, name):
        """submitit's executor of one submission."""
        made = self.submitit.SlurmExecutor(self.folder / name, python=shlex.quote(sys.executable))
        made.update_parameters(job_name=name, **self.parameters)
        return made

    def found(self, folders):
        """{folder: training} of those of `folders` that are in the queue."""
        known, waiting = {}, {str(folder.resolve().relative_to(self.out)): folder for folder in folders}
        submissions = sorted(self.folder.glob("*/jobs.json"))
        queue = asked(["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]).split() if submissions else ()
        for file in submissions:
            name, jobs = file.parent.name, read_json(file)["jobs"]
            if jobs is None:
                asked(["scancel", f"--name={name}", f"--user={getpass.getuser()}"])
                write_json(file, {"jobs": {}})
                continue
            for place, number in jobs.items():
                job = self.submitit.SlurmJob(self.folder / name, number)
                # The queue still lists a job for a while that has said how it ended.
                if number in queue and place in waiting and not job.paths.result_pickle.exists():
                    known[waiting[place]] = Training(job)
        return known

    def start(self, folders, module):
        """Submits one array."""
        name = f"trit-{self.study.name}-{secrets.token_hex(4)}"
        (self.folder / name).mkdir(parents=True)
        file, executor, jobs = self.folder / name / "jobs.json", self.executor(name), []
        write_json(file, {"jobs": None})
        try:
            with executor.batch():
                for folder in folders:
                    jobs.append(executor.submit(work, module, os.path.abspath(folder), self.study.threads))
        except Exception as fault:  # submitit's own, with what sbatch said
            write_json(file, {"jobs": {}})
            raise RuntimeError(f"sbatch refused: {' '.join(str(fault).split())[-300:]}") from None
        write_json(file, {"jobs": {str(folder.resolve().relative_to(self.out)): job.job_id for folder, job in zip(folders, jobs)}})
        return {folder: Training(job) for folder, job in zip(folders, jobs)}

    def close(self):
        """Nothing is left here."""
