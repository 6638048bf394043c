"""What a folder says, read with bounds: somebody else wrote it. In: a folder. Out: JSON objects, text, and the curves of its logs."""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

MOST_BYTES = 16_000_000  # of one file
MOST_RECORDS = 200_000  # steps of one log
NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf)"
STEP = re.compile(rf"^step:(\d+)/(\d+) train_loss:{NUMBER} train_time:{NUMBER}ms(?:.*?tok/s:{NUMBER})?", re.MULTILINE)
SCORED = re.compile(rf"^eval_step:(\d+)/(\d+) val_loss_so_far:{NUMBER}", re.MULTILINE)
PREDICTED = re.compile(r"^predicted size: ([\d,]+) bytes with code|^step:(\d+)/", re.MULTILINE)
SAID = re.compile(r"^(calibration|temperature|pruning|allocation|stopping_early|model_params|warmup_step)\b.*$", re.MULTILINE)


class Curve(NamedTuple):
    """One training: steps [(step, seconds, loss in nats a token, tokens a second)] in order, looks [dict] of its metrics at the live
    weights each with its "step", `scored` [(share of the text, loss so far)], `predicted` [(step, bytes with code)], `said` lines."""

    name: str
    steps: list
    looks: list
    scored: list
    predicted: list
    said: list


def inside(folder, name):
    """Path of a plain file of a folder that does not lead out of it, or None."""
    path = Path(folder) / name
    return path if path.is_file() and path.resolve().is_relative_to(Path(folder).resolve()) else None


def read_bytes(folder, name):
    """A file's bytes, b"" where there is none; ValueError where it is larger than MOST_BYTES."""
    path = inside(folder, name)
    if path is None:
        return b""
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{path}: more than {MOST_BYTES:,} bytes; no record holds such a file")
    return data


def read_text(folder, name):
    """A file's text, "" where there is none."""
    return read_bytes(folder, name).decode("utf-8", "replace")


def read_object(folder, name):
    """A JSON object, {} where there is no file; ValueError where it is something else."""
    text = read_text(folder, name)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{Path(folder) / name}: not JSON ({str(fault)[:80]})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{Path(folder) / name}: holds no JSON object")
    return found


def number(table, *keys):
    """The number under nested keys of a JSON object, NaN where there is none."""
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    good = isinstance(table, (int, float)) and not isinstance(table, bool) and abs(table) < 1e15
    return float(table) if good else math.nan


def part(table, key, kind):
    """`table[key]` if it is of type `kind`, else an empty one."""
    value = table.get(key) if isinstance(table, dict) else None
    return value if isinstance(value, kind) else kind()


def steps_of_log(text):
    """[(step, seconds, loss, tokens a second)] of step lines; a step that a resumed run took again counts once, as it went last."""
    found = {}
    for step, _, loss, spent, speed in STEP.findall(text)[:MOST_RECORDS]:
        found[int(step)] = int(step), float(spent) / 1000, float(loss), float(speed or "nan")
    return [found[step] for step in sorted(found)]


def predicted_of_log(text):
    """[(step, bytes)] of the predictions of a log: each belongs to the step line that follows it."""
    found, waiting = [], None
    for size, step in PREDICTED.findall(text)[:MOST_RECORDS]:
        if size:
            waiting = int(size.replace(",", "")[:12])
        elif waiting is not None:
            found.append((int(step), waiting))
            waiting = None
    return found


def curve_of(name, log, metrics=""):
    """`Curve` of a log's text, its steps and looks from metrics.jsonl where that is there."""
    steps, looks, waiting, last = {}, [], [], 0
    for line in metrics.splitlines()[:MOST_RECORDS]:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(said, dict):
            continue
        if "look" in said:
            waiting.append(said)
        step = number(said, "step")
        if not math.isnan(step) and "event" not in said:
            last = int(step)
            steps[last] = last, number(said, "seconds"), number(said, "train_loss"), number(said, "tokens_per_second")
            looks += [look | {"step": last} for look in waiting]
            waiting = []
    looks += [look | {"step": last} for look in waiting]
    steps = [steps[step] for step in sorted(steps)] or steps_of_log(log)
    scored = [(int(done) / max(int(total), 1), float(loss)) for done, total, loss in SCORED.findall(log)[:MOST_RECORDS]]
    said = [match.group(0)[:300] for match in SAID.finditer(log)][:20]
    return Curve(name, steps, looks, scored, predicted_of_log(log), said)


def curves(folder, run=None):
    """[Curve] of a record's trainings: train.log with the metrics of the run folder where one is given, or each train_seedN.log."""
    logs = sorted(path.name for path in Path(folder).glob("train_seed*.log"))[:16]
    if logs:
        return [curve_of(f"seed {re.sub('[^0-9]', '', name)}", read_text(folder, name)) for name in logs]
    metrics = read_text(run, "metrics.jsonl") if run else ""
    log = read_text(folder, "train.log") or (read_text(run, "train.log") if run else "")
    return [curve_of("training", log, metrics)]
