"""The record folder: everything a stranger needs to check a submission, written once and never edited."""

import datetime
import json
import math
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from trit.config_load import save


def new_folder(root, track, name, date=None):
    """Path of a fresh records/<track>/<date>_<name>; a counter is added where it exists, records are immutable."""
    date = date or datetime.date.today().isoformat()
    base = Path(root) / track / f"{date}_{name}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}_{count}")
    return folder


def versions():
    """{package: version} of what produced the numbers."""
    found = {"python": platform.python_version()}
    for package in ("torch", "mlx", "numpy", "sentencepiece", "brotli"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def submission_json(config, run, facts):
    """The contest's submission.json (contest.md 1.4) from measured `facts`."""
    score = facts["score"]
    seed = {
        "val_loss": score.loss,
        "val_bpb": score.bpb,
        "artifact_bytes": facts["bytes_model"],
        "steps": facts["steps"],
        "step_avg_ms": round(1000 * facts["train_seconds"] / max(facts["steps"], 1), 3),
        "eval_time_s": round(facts["eval_seconds"], 3),
    }
    return {
        "author": facts["author"],
        "github_id": facts["github_id"],
        "name": facts["name"],
        "date": datetime.date.today().isoformat(),
        "track": config.track.track,
        # As seen from the record's folder; somebody's absolute path would mean nothing to a stranger.
        "data_path": f"../../../{facts['data_path']}" if not os.path.isabs(facts["data_path"]) else os.path.basename(facts["data_path"]),
        "blurb": facts["blurb"],
        "val_loss": score.loss,
        "val_bpb": score.bpb,
        "val_tokens": score.tokens,
        "val_bytes": score.bytes,
        "pre_quant_val_bpb": facts["trained_bpb"],
        "round_trip_gap": facts["gap"],
        "seeds": [run.seed],
        "seed_results": {str(run.seed): seed},
        "bytes_total": facts["bytes_code"] + facts["bytes_model"],
        "bytes_code": facts["bytes_code"],
        "bytes_model": facts["bytes_model"],
        "bytes_tokenizer": facts["bytes_tokenizer"],
        "bytes_by_category": {"code": facts["bytes_code"], **facts["categories"]},
        "bytes_cap": config.track.cap_bytes,
        "step_stop": facts["steps"],
        "train_time_seconds": round(facts["train_seconds"], 3),
        "calibration_seconds": round(facts["calibration_seconds"], 3),
        "eval_time_seconds": round(facts["eval_seconds"], 3),
        "model_params": facts["parameters"],
        "hardware": facts["hardware"],
        "versions": versions(),
        "sha256": {"train_gpt.py": facts["sha256_code"], "artifact.trit": facts["sha256_model"]},
        "compliance": {item.name: item.verdict == "pass" for item in facts["checks"]},
    }


def table(rows, heads):
    """Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


FILES = (
    ("train_gpt.py", "the counted program: scores the artifact beside it; without one it trains first"),
    ("train_gpt_readable.py", "the same program before minifying and packing; not counted"),
    ("artifact.trit", "the packed weights (docs/format.md)"),
    ("submission.json", "the measured numbers, for programs"),
    ("certificate.json", "every check that was made, with its evidence"),
    ("config.json", "the settings, each of them"),
    ("train.log", "what training and scoring printed"),
    ("requirements.txt", "packages the counted program imports"),
    ("manifest.json", "the data the numbers belong to: files, counts, hashes"),
    (
        "tokenizer.model",
        "the tokenizer (absent for byte260); not counted, as the contest practises, but it would fit where the table says so",
    ),
)


def result_rows(submission, comparison):
    """[(what, measured)] of a submission: the console and the README show the same table."""
    total, cap = submission["bytes_total"], submission["bytes_cap"]
    strict = total + submission["bytes_tokenizer"]
    gap = submission["round_trip_gap"]
    steps = f"{submission['step_stop']:,} steps, then {submission['calibration_seconds']:.1f} s of calibration"
    rows = [("bits per byte, validation, sliding windows", f"{submission['val_bpb']:.4f}")]
    rows += [(f"bits per byte, the same text under `{name}`", f"{bpb:.4f}") for name, bpb in comparison]
    rows += [(f"bytes: {name}", f"{size:,}") for name, size in submission["bytes_by_category"].items()]
    return rows + [
        ("bytes: counted total", f"{total:,} of {cap:,}"),
        ("bytes with the tokenizer counted too", f"{strict:,} ({'fits' if strict <= cap else 'would not fit'})"),
        ("round-trip gap", f"largest difference {gap:.1e} nats" if gap else "0, bit for bit"),
        ("training", f"{submission['train_time_seconds']:.1f} s, {steps}"),
        ("evaluation, from process start", f"{submission['eval_time_seconds']:.1f} s"),
        ("machine", submission["hardware"]),
    ]


def readme(submission, checks, comparison, names):
    """README.md of a record that holds the files `names`."""
    files = [(f"`{name}`", what) for name, what in FILES if name in names]
    return f"""# {submission["name"]}: {submission["val_bpb"]:.4f} bits per byte in {submission["bytes_total"]:,} bytes

{submission["blurb"]} Track `{submission["track"]}`, {submission["date"]}, seed {submission["seeds"][0]}. Generated; do not edit.

{table(result_rows(submission, comparison), ("what", "measured"))}

## Check it

The shards of `manifest.json` come from the project's `python -m trit.data.prepare`. In this folder:

```
DATA_PATH={submission["data_path"]} python train_gpt.py
```

It scores `artifact.trit` and prints `val_bpb`. Without `artifact.trit` it trains a new one first.

## Certificate

{table([(c.name, c.verdict, c.evidence) for c in checks], ("check", "verdict", "evidence"))}

## Files

{table(files, ("file", "what it is"))}
"""


def hardware(process):
    """One phrase that names the machine."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{process.world} x {process.device} ({name})"


def write_record(folder, config, submission, checks, comparison, files):
    """Write the folder aside and rename it. `files` maps a name in the folder to bytes or to a path to copy."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (temporary / name).write_bytes(content)
        else:
            shutil.copyfile(content, temporary / name)
    save(config, temporary / "config.json")
    (temporary / "submission.json").write_text(json.dumps(submission, indent=1) + "\n")
    (temporary / "certificate.json").write_text(json.dumps({"checks": [item._asdict() for item in checks]}, indent=1) + "\n")
    names = {path.name for path in temporary.iterdir()}
    (temporary / "README.md").write_text(readme(submission, checks, comparison, names))
    return temporary.rename(folder)


def bits_per_byte(size, text_bytes):
    """Bits per byte of a compressed text of `size` bytes."""
    return 8.0 * size / text_bytes if text_bytes else math.nan
