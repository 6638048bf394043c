"""A cluster of one machine: plays sbatch, srun, squeue, sacct and scancel, as far as submitit and a study speak to them, by the name
it is called by. What it knows lies in the folder that CLUSTER names: a file for each element of an array."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

CLUSTER = Path(os.environ["CLUSTER"])
OVER = ("COMPLETED", "FAILED", "CANCELLED")


def install(folder):
    """The five commands in a folder for PATH."""
    folder.mkdir(parents=True)
    for name in ("sbatch", "srun", "squeue", "sacct", "scancel", "run_array"):
        (folder / name).write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        (folder / name).chmod(0o755)


def known():
    """{element's id: what is known of it}."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(CLUSTER.glob("*.json"))}


def note(number, **facts):
    """Write down what is known of an element."""
    path = CLUSTER / f"{number}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    path.with_suffix(".new").write_text(json.dumps(before | facts))
    os.replace(path.with_suffix(".new"), path)


def sbatch(script):
    """Takes a job or an array, and leaves a process behind that runs it."""
    text = Path(script).read_text()
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    said = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", text))
    job = len(list(CLUSTER.glob("*.sh"))) + 100
    (CLUSTER / f"{job}.sh").write_text(text)
    count, most = re.fullmatch(r"0-(\d+)%(\d+)", said["array"]).groups() if "array" in said else (None, 1)
    numbers = [f"{job}_{place}" for place in range(int(count) + 1)] if count else [str(job)]
    for number in numbers:
        note(number, state="PENDING", name=said["job-name"], said=said)
    command = [Path(sys.argv[0]).parent / "run_array", str(job), str(most), *numbers]
    subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"Submitted batch job {job}")


def run_array(job, most, *numbers):
    """Runs the elements, `most` at once."""
    waiting, running = list(numbers), {}
    while waiting or running:
        while waiting and len(running) < int(most):
            number = waiting.pop(0)
            if known()[number]["state"] == "PENDING":
                own = {"SLURM_JOB_ID": number.split("_")[0], "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
                if "_" in number:
                    own |= dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), number.split("_")))
                running[number] = subprocess.Popen(["bash", CLUSTER / f"{job}.sh"], env=os.environ | own, start_new_session=True)
                note(number, state="RUNNING", pid=running[number].pid)
        time.sleep(0.05)
        for number, process in list(running.items()):
            if process.poll() is not None:
                del running[number]
                if known()[number]["state"] == "RUNNING":
                    note(number, state="FAILED" if process.returncode else "COMPLETED")


def srun(*arguments):
    """Runs the command after its own options."""
    place = next(i for i, argument in enumerate(arguments) if argument.endswith("python") or "python" in Path(argument).name)
    sys.exit(subprocess.call(arguments[place:]))


def squeue(*_):
    """Elements that wait or run."""
    print("\n".join(number for number, facts in known().items() if facts["state"] not in OVER))


def sacct(*_):
    """The states of all."""
    print("JobID|State|NodeList")
    for number, facts in known().items():
        print(f"{number}|{facts['state']}|here")


def scancel(*arguments):
    """Ends jobs by id or by name."""
    names = [argument.partition("=")[2] for argument in arguments if argument.startswith("--name=")]
    for number, facts in known().items():
        if facts["state"] not in OVER and (facts["name"] in names or number in arguments):
            note(number, state="CANCELLED")
            if "pid" in facts:
                with suppress(ProcessLookupError):
                    os.killpg(facts["pid"], signal.SIGKILL)


if __name__ == "__main__":
    {function.__name__: function for function in (sbatch, run_array, srun, squeue, sacct, scancel)}[Path(sys.argv[0]).name](*sys.argv[1:])
