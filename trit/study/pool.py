"""Runs the trainings of a study on an engine. In: a study and a folder. Out: a record in the folder of each.

FOLDER/<variant>/<seed>/ holds job.json (what to do), train.log, metrics.jsonl and, written last and whole, record.json. What has a
record is done; all else is begun anew, so that a study that was killed loses no more than the trainings that were under way.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from trit.console import counted, progress
from trit.study.engines import Local
from trit.study.files import BUSY, read_json, write_json
from trit.study.fill import filled

LATE = 60.0  # seconds that a file may take to show on a folder that machines share


def drive(engine, folders, module, result, ended, refresh=lambda running, waiting: None):
    """Run `module` on `folders` until each has its file `result` or has failed. `ended(folder, training)` is told of each, the training
    None where there was nothing to do; `refresh(running, waiting)` is called several times a second. An exception, Ctrl-C too, ends all
    that runs."""
    waiting, running, late = dict.fromkeys(folders, 0.0), {}, {}
    try:
        running.update(engine.found(list(waiting)))
        for folder in running:
            del waiting[folder]
        while waiting or running:
            now = time.monotonic()
            ready = [folder for folder, after in waiting.items() if after <= now][: max(engine.slots - len(running), 0)]
            for folder in ready:
                del waiting[folder]
                if (folder / result).exists():  # another command was faster
                    ended(folder, None)
            ready = [folder for folder in ready if not (folder / result).exists()]
            if ready:
                running.update(engine.start(ready, module))
            refresh(running, waiting)
            time.sleep(0.2)
            for folder, training in list(running.items()):
                code = training.poll()
                if code is None:
                    continue
                if code == 0 and not (folder / result).exists() and late.setdefault(folder, now + LATE) > now:
                    continue
                del running[folder]
                if code == BUSY:  # another command is at it: ask again later
                    waiting[folder] = now + engine.patience
                    continue
                ended(folder, training)
    finally:
        for training in running.values():
            training.terminate()
        for training in running.values():
            training.wait()


def fault_of(folder, training):
    """What a training that failed said last, in some 300 characters."""
    try:
        printed = (folder / "output.txt").read_text().strip()
    except FileNotFoundError:
        printed = ""
    return getattr(training, "fault", "") or printed[-300:] or "it said nothing"


def measure_paces(study, out, engine, first, paced):
    """{variant: time that its training takes over that of the first} of [(variant, settings)], measured where the trainings run; `first`
    are the first variant's settings. RuntimeError with the end of the output where one does not train."""
    found, folders = {}, {}
    for variant, settings in paced:
        folder = out / variant.name
        said = {"preset": study.preset, "first": first, "other": settings} | ({"gpus": study.gpus} if study.gpus else {})
        if read_json(folder / "pace.json") != said:
            (folder / "ratio.json").unlink(missing_ok=True)
            write_json(folder / "pace.json", said)
        folders[folder] = variant
    with progress("paces", len(folders), " variants") as bar:

        def ended(folder, training):
            ratio = read_json(folder / "ratio.json")
            if not ratio:
                raise RuntimeError(f"{folder.name}: its pace could not be measured: {fault_of(folder, training)}")
            found[folders[folder]] = ratio["ratio"]
            bar.update()

        drive(engine, folders, "trit.study.pace", "ratio.json", ended)
    return found


def make_plans(study, out, engine, missing):
    """Writes plan.json of [(variant, what the study says of it)]: its settings as they will train, what it will weigh, and its pace beside
    the first variant."""
    first = filled(study, study.variants[0])[0] if study.steps and missing else None
    with ThreadPoolExecutor(min(engine.slots, os.cpu_count() or 1)) as pool:
        sizes = {variant: pool.submit(filled, study, variant) for variant, _ in missing}
        sizes = {variant: size.result() for variant, size in counted(sizes.items(), "sizes", len(sizes), " variants")}
    paced = [(variant, sizes[variant][0]) for variant, _ in missing if first and sizes[variant][0] != first]
    paces = measure_paces(study, out, engine, first, paced)
    for variant, said in missing:
        settings, code, expected = sizes[variant]
        ratio = paces.get(variant, 1.0)
        if study.steps:
            settings = [*settings, f"train.iterations={max(round(study.steps / ratio), 1)}"]
        plan = said | {"settings": settings, "bytes_code": code, "bytes_expected": expected, "pace": ratio}
        write_json(out / variant.name / "plan.json", plan)


def prepare(study, out, only=None, engine=None):
    """[folder] of all trainings that have no record yet, each with its job.json; those of one seed of all variants come first, so that a
    study stopped early can be read. ValueError where the results that are there came from other settings."""
    unknown = set(only or ()) - {variant.name for variant in study.variants}
    if unknown:
        raise ValueError(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(variant.name for variant in study.variants)}")
    chosen = [variant for variant in study.variants if not only or variant.name in only]
    fixed = {"preset": study.preset, "threads": study.threads, "clock": study.clock, "score": study.score, "steps": study.steps}
    fixed |= {"gpus": study.gpus} if study.gpus else {}
    missing = []
    for variant in chosen:
        said = {**fixed, "said": study.settings(variant), "fill": variant.fill}
        made = read_json(out / variant.name / "plan.json")
        if made and ({key: made.get(key) for key in said} != said or made.get("gpus", 0) != study.gpus):
            reason = "came from other settings; give the variant another name, or remove its folder to begin it anew"
            raise ValueError(f"{out / variant.name}: the results {reason}")
        if not made:
            (out / variant.name).mkdir(parents=True, exist_ok=True)
            missing.append((variant, said))
    make_plans(study, out, engine or Local(study), missing)
    folders = []
    for seed in study.seeds:
        for variant in chosen:
            made, folder = read_json(out / variant.name / "plan.json"), out / variant.name / str(seed)
            folder.mkdir(exist_ok=True)
            if not (folder / "record.json").exists():
                job = fixed | {"name": variant.name, "seed": seed, "settings": made["settings"], "bytes_code": made["bytes_code"]}
                write_json(folder / "job.json", job)
                folders.append(folder)
    return folders


def told(folder):
    """One line on what a training found."""
    record = json.loads((folder / "record.json").read_text())
    found = f" {record['bpb']:.4f} bits per byte, {record['bytes_total']:,} bytes," if "bpb" in record else ""
    return f"{record['name']} seed {record['seed']}:{found} {record['steps']:,} steps in {record['seconds']:.0f} s"


def run_jobs(folders, engine, shown):
    """Run the trainings of `folders` -> [folder] of those that failed. Ctrl-C ends them all and loses those under way. `shown` is a
    display of trit/study/live.py."""
    failed = []

    def ended(folder, training):
        if (folder / "record.json").exists():
            shown.ended(folder, told(folder))
        else:
            failed.append(folder)
            shown.ended(folder, f"{folder} failed: {fault_of(folder, training)}", failed=True)

    with shown:
        drive(engine, folders, "trit.study.job", "record.json", ended, shown.refresh)
    return failed
