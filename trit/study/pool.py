"""Runs the trainings of a study as processes of this machine. In: a study and a folder. Out: a record in the folder of each.

FOLDER/<variant>/<seed>/ holds job.json (what to do), train.log, metrics.jsonl and, written last and whole, record.json. What has a
record is done; all else is begun anew, so that a study that was killed loses no more than the trainings that were under way.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from trit.console import counted, progress, say
from trit.study.files import BUSY, write_json
from trit.study.fill import filled


def environment(threads):
    """This process's environment with a number of CPU threads."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def paced(study, folder, first, other):
    """Time that training with settings `other` takes over that of `first`. RuntimeError with the end of its output where it does not train."""
    write_json(folder / "pace.json", {"preset": study.preset, "first": first, "other": other})
    command = [sys.executable, "-m", "trit.study.pace", str(folder / "pace.json")]
    done = subprocess.run(command, env=environment(study.threads), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{folder.name}: its pace could not be measured: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])["ratio"]


def make_plan(study, folder, variant, said, first):
    """Writes plan.json of a variant: its settings as they will train, what it will weigh, and its pace beside the settings `first`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, code, expected = filled(study, variant)
    ratio = paced(study, folder, first, settings) if first and settings != first else 1.0
    if study.steps:
        settings = [*settings, f"train.iterations={max(round(study.steps / ratio), 1)}"]
    write_json(folder / "plan.json", said | {"settings": settings, "bytes_code": code, "bytes_expected": expected, "pace": ratio})


def prepare(study, out, only=None, jobs=1):
    """[folder] of all trainings that have no record yet, each with its job.json; those of one seed of all variants come first, so that a
    study stopped early can be read. ValueError where the results that are there came from other settings."""
    unknown = set(only or ()) - {variant.name for variant in study.variants}
    if unknown:
        raise ValueError(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(variant.name for variant in study.variants)}")
    chosen = [variant for variant in study.variants if not only or variant.name in only]
    fixed = {"preset": study.preset, "threads": study.threads, "clock": study.clock, "score": study.score, "steps": study.steps}
    missing = []
    for variant in chosen:
        plan_file, said = out / variant.name / "plan.json", {**fixed, "said": study.settings(variant), "fill": variant.fill}
        made = json.loads(plan_file.read_text()) if plan_file.exists() else None
        if made and {key: made.get(key) for key in said} != said:
            reason = "came from other settings; give the variant another name, or remove its folder to begin it anew"
            raise ValueError(f"{plan_file.parent}: the results {reason}")
        if not made:
            missing.append((variant, said))
    first = filled(study, study.variants[0])[0] if study.steps and missing else None
    with ThreadPoolExecutor(jobs) as pool:
        plans = [pool.submit(make_plan, study, out / variant.name, variant, said, first) for variant, said in missing]
        for plan in counted(plans, "sizes and paces" if study.steps else "sizes", len(plans), " variants"):
            plan.result()
    folders = []
    for seed in study.seeds:
        for variant in chosen:
            made, folder = json.loads((out / variant.name / "plan.json").read_text()), out / variant.name / str(seed)
            folder.mkdir(exist_ok=True)
            if not (folder / "record.json").exists():
                job = fixed | {"name": variant.name, "seed": seed, "settings": made["settings"], "bytes_code": made["bytes_code"]}
                write_json(folder / "job.json", job)
                folders.append(folder)
    return folders


def start(folder, threads):
    """The process of one training."""
    with open(folder / "output.txt", "w") as output:
        command = [sys.executable, "-m", "trit.study.job", str(folder)]
        return subprocess.Popen(command, env=environment(threads), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def told(folder):
    """One line on what a training found."""
    record = json.loads((folder / "record.json").read_text())
    found = f" {record['bpb']:.4f} bits per byte, {record['bytes_total']:,} bytes," if "bpb" in record else ""
    return f"{record['name']} seed {record['seed']}:{found} {record['steps']:,} steps in {record['seconds']:.0f} s"


def run_jobs(study, folders, out, jobs):
    """Run the trainings of `folders`, `jobs` at once -> [folder] of those that failed. Ctrl-C ends them all and loses those under way."""
    waiting, running, failed = list(folders), {}, []
    total = len(study.seeds) * len(study.variants)
    with progress(study.name, total, " runs", initial=max(total - len(folders), 0)) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    folder = waiting.pop(0)
                    running[folder] = start(folder, study.threads)
                time.sleep(0.2)
                for folder, process in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[folder]
                    if process.returncode == BUSY:
                        waiting.append(folder)  # another command is at it: ask again later
                        time.sleep(1.0)
                        continue
                    if process.returncode:
                        failed.append(folder)
                        say(f"{folder} failed: {(folder / 'output.txt').read_text().strip()[-300:]}", file=sys.stderr)
                    else:
                        say(told(folder))
                    bar.update()
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    return failed
