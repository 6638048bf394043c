"""Read other people's record folders as they are: python -m trit.report.public FOLDER... [--json]

Folders of the contest hold a submission.json of any of some hundred key sets, logs of several grammars and a README (contest.md 1.3 to
1.5). In: a folder. Out: a `PublicRecord` with what it claims and `doubts`, one sentence for each claim that its own files contradict.
Nothing is run.
"""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from trit.console import Parser, command, counted

CAP_BYTES = 16_000_000
SAME_BPB = 6e-4  # claims are rounded to three decimals at worst
SEPARATOR = re.compile(r"^={60,}\s*$", re.MULTILINE)
NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
LOG_VALUES = {
    "bpb": re.compile(rf"(?:val_bpb|bpb)\s*[:=]\s*{NUMBER}"),
    "parameters": re.compile(r"(?:model_params|params)\s*[:=]\s*(\d[\d,]*)"),
    "total_bytes": re.compile(r"Total submission size[^:\n]*:\s*(\d[\d,]*)\s*bytes|budget:(\d+)/"),
    "seed": re.compile(r"(?:^|\s)seed\s*[:=]\s*(\d+)"),
}
OTHER_FILE = re.compile(r"([\w-]+\.py)\b|from\s+(\w+)\s+import|import\s+(\w+)")


class SeedResult(NamedTuple):
    """One training of a record: seed as text, loss in nats a token and bits per byte (NaN where it does not say), bytes (0 likewise)."""

    seed: str
    loss: float
    bpb: float
    bytes: int


class PublicRecord(NamedTuple):
    """What a folder claims: headline `bpb` and `loss` (NaN where unknown), `bytes_total` (0 likewise), its trainings, and the doubts."""

    name: str
    author: str
    date: str
    track: str
    bpb: float
    loss: float
    bytes_total: int
    seeds: list
    doubts: list


def number(value):
    """A claim as a float; NaN where it is none."""
    if isinstance(value, dict):
        value = value.get("mean")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def first(table, *names):
    """The first number in a JSON object under any of some names, or NaN."""
    found = (number(table.get(name)) for name in names)
    return next((value for value in found if not math.isnan(value)), math.nan)


def whole(value):
    """A float as an integer, 0 for NaN."""
    return 0 if math.isnan(value) else int(value)


def read_submission(folder):
    """(JSON object, doubts) of a folder's submission.json, or of the file that stands in for it."""
    doubts = []
    names = sorted(folder.glob("submission*.json"), key=lambda path: (path.name != "submission.json", path.name))
    if not names:
        return {}, ["there is no submission.json"]
    if names[0].name != "submission.json":
        doubts.append(f"there is no submission.json; {names[0].name} was read")
    try:
        said = json.loads(names[0].read_text(encoding="utf-8", errors="replace"))
    except ValueError as fault:
        return {}, [*doubts, f"{names[0].name} is not JSON: {fault}"]
    if not isinstance(said, dict):
        return {}, [*doubts, f"{names[0].name} holds no object"]
    return said, doubts


def seed_results(said):
    """[SeedResult] of a submission: seed_results or seeds as an object by seed, or a list of objects, or a list of numbers."""
    found = []
    for key in ("seed_results", "seeds", "seed_runs", "runs", "per_seed"):
        table = said.get(key)
        if isinstance(table, list) and table and all(isinstance(row, dict) for row in table):
            table = {str(row.get("seed", place)): row for place, row in enumerate(table)}
        if not isinstance(table, dict):
            continue
        for name, row in table.items():
            digits = re.search(r"\d+", str(name))
            row = row if isinstance(row, dict) else {"val_bpb": row}
            bpb = first(row, "val_bpb", "bpb", "final_val_bpb", "ttt_val_bpb", "sliding_val_bpb", "val_bpb_ttt")
            if digits and not (math.isnan(bpb) and math.isnan(first(row, "val_loss"))):
                size = whole(first(row, "artifact_bytes", "bytes_total", "total_bytes", "total_submission_size"))
                found.append(SeedResult(digits.group(), first(row, "val_loss", "loss"), bpb, size))
        if found:
            break
    if not found and isinstance(said.get("seeds"), list):
        found = [SeedResult(str(seed), math.nan, math.nan, 0) for seed in said["seeds"]]
    return found


def log_files(folder):
    """Logs of a folder: what ends in .log, and text files that hold steps."""
    texts = [path for path in sorted(folder.rglob("*.txt")) if path.name != "requirements.txt"]
    return sorted(folder.rglob("*.log")) + [path for path in texts if "val_bpb" in path.read_text(encoding="utf-8", errors="replace")]


def read_log(path):
    """{name of `LOG_VALUES`: [numbers]} of a log. The source that some logs begin with is skipped: it names every metric too."""
    text = path.read_text(encoding="utf-8", errors="replace")
    separators = list(SEPARATOR.finditer(text))
    text = text[separators[-1].end() :] if separators and separators[-1].end() < 0.98 * len(text) else text
    found = {}
    for name, pattern in LOG_VALUES.items():
        groups = ([group for group in match.groups() if group] for match in pattern.finditer(text))
        found[name] = [float(group[0].replace(",", "")) for group in groups if group]
    return found


def code_doubts(folder, said):
    """Doubts about the counted program."""
    path = folder / "train_gpt.py"
    if not path.exists():
        return ["there is no train_gpt.py"]
    size, claimed = path.stat().st_size, whole(first(said, "bytes_code", "code_bytes"))
    if not size:
        return ["train_gpt.py is empty"]
    doubts = []
    others = (
        {name for groups in OTHER_FILE.findall(path.read_text(encoding="latin-1")) for name in groups if name} if size < 4096 else set()
    )
    carried = [folder / (name if name.endswith(".py") else name + ".py") for name in sorted(others)]
    carried = [file for file in carried if file.is_file() and file != path]
    if carried:
        files = ", ".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in carried)
        doubts.append(f"train_gpt.py is a stub of {size:,} bytes that runs {files}")
    elif claimed and claimed != size:
        doubts.append(f"submission.json says bytes_code {claimed:,}, train_gpt.py has {size:,}")
    return doubts


def score_doubts(said, bpb, seeds, logs):
    """Doubts about the headline: against the logs, the mean of the seeds, their deviation."""
    doubts, values = [], [result.bpb for result in seeds if not math.isnan(result.bpb)]
    logged = [value for log in logs.values() for value in log["bpb"]]
    if not math.isnan(bpb) and logged and len(values) < 2 and min(abs(value - bpb) for value in logged) > SAME_BPB:
        doubts.append(f"no log has the claimed {bpb:.4f} bits per byte; the nearest is {min(logged, key=lambda x: abs(x - bpb)):.4f}")
    if len(values) > 1 and not math.isnan(bpb):
        mean = sum(values) / len(values)
        if abs(mean - bpb) > SAME_BPB:
            which = "the best seed" if abs(min(values) - bpb) <= SAME_BPB else f"{bpb:.4f}"
            doubts.append(f"the headline is {which}, the mean of {len(values)} seeds is {mean:.4f}")
        deviation, claimed = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1)), first(said, "val_bpb_std", "std")
        population = deviation * math.sqrt((len(values) - 1) / len(values))
        if not math.isnan(claimed) and min(abs(claimed - deviation), abs(claimed - population)) > 6e-5:
            doubts.append(f"val_bpb_std says {claimed:.5f}, the seeds give {deviation:.5f}")
        for result in seeds if logged else ():
            if not math.isnan(result.bpb) and min(abs(value - result.bpb) for value in logged) > SAME_BPB:
                doubts.append(f"no log has the {result.bpb:.4f} bits per byte of seed {result.seed}")
    names = [result.seed for result in seeds]
    if len(set(names)) < len(names):
        doubts.append(f"a seed is listed twice: {', '.join(names)}")
    return doubts


def size_doubts(total, seeds, logs):
    """Doubts about sizes, times and whether the logs are of one model."""
    doubts = []
    sizes = {"submission.json": total} | {f"seed {result.seed}": result.bytes for result in seeds}
    # A log may try several compressors and say each one's total: what counts is its smallest.
    sizes |= {name: int(min(log["total_bytes"])) for name, log in logs.items() if log["total_bytes"]}
    doubts += [f"{name} says {size:,} bytes, over the cap of {CAP_BYTES:,}" for name, size in sizes.items() if size > CAP_BYTES]
    counts = {name: int(max(log["parameters"])) for name, log in logs.items() if log["parameters"]}
    if len(set(counts.values())) > 1:
        doubts.append("the logs are of different models: " + ", ".join(f"{name} {count:,} parameters" for name, count in counts.items()))
    return doubts


def read_public(folder):
    """`PublicRecord` of a folder; ValueError where it is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a record's, such as records/track_10min_16mb/<date>_<name>")
    said, doubts = read_submission(folder)
    seeds, logs = seed_results(said), {path.name: read_log(path) for path in log_files(folder)}
    if not logs:
        doubts.append("there is no log")
    bpb, loss = first(said, "val_bpb", "mean_val_bpb", "val_bpb_mean", "bpb"), first(said, "val_loss", "mean_val_loss", "val_loss_mean")
    known = [result for result in seeds if not math.isnan(result.bpb)]
    if math.isnan(bpb) and known:
        bpb = sum(result.bpb for result in known) / len(known)
    if math.isnan(bpb) and said:
        doubts.append("submission.json names no val_bpb")
    if not known and not math.isnan(bpb):
        seeds = [SeedResult(seeds[0].seed if len(seeds) == 1 else logged_seed(logs), loss, bpb, 0)]
    total = whole(first(said, "bytes_total", "artifact_bytes_max", "total_bytes", "artifact_bytes"))
    doubts += code_doubts(folder, said) + score_doubts(said, bpb, seeds, logs) + size_doubts(total, seeds, logs)
    track = said.get("track") if isinstance(said.get("track"), str) else folder.parent.name
    readme = folder / "README.md"
    if not readme.exists():
        doubts.append("there is no README.md")
    elif not math.isnan(bpb) and not any(f"{bpb:.{digits}f}"[:-1] in readme.read_text(errors="replace") for digits in (4, 5)):
        doubts.append(f"README.md does not name the claimed {bpb:.4f} bits per byte")
    name, author, date = (str(said.get(key) or "") for key in ("name", "author", "date"))
    return PublicRecord(name or folder.name, author, date[:10] or folder.name[:10], track, bpb, loss, total, seeds, doubts)


def logged_seed(logs):
    """The seed that the first log names, in its lines or its file's name; "unknown" where none does."""
    for name, log in logs.items():
        digits = re.search(r"seed_?(\d+)", name)
        if log["seed"] or digits:
            return str(int(log["seed"][0])) if log["seed"] else digits.group(1)
    return "unknown"


def main(arguments=None):
    """Command line of this module."""
    description = "What record folders claim, and what contradicts it."
    parser = Parser(prog="python -m trit.report.public", description=description, answers=True)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args(arguments)
    with command(options.json) as answer:
        records = [read_public(folder) for folder in counted(options.folders, "reading", len(options.folders), " records")]
        for record in records:
            known = ", ".join(f"{seed.seed}: {seed.bpb:.4f}" for seed in record.seeds)
            print(f"{record.date} {record.name}: {record.bpb:.4f} bits per byte, {record.bytes_total:,} bytes ({known or 'no seeds'})")
            for doubt in record.doubts:
                print(f"  doubt: {doubt}")
        answer["records"] = records


if __name__ == "__main__":
    main()
