"""The record folder: everything a stranger needs to check a submission, written once and never edited."""

import datetime
import json
import math
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from trit.bundle.cache import sources_sha256
from trit.config_load import save, to_dict
from trit.proof.entry import config_sha256


def new_folder(root, track, name, date=None):
    """Path of a fresh records/<track>/<date>_<name>; a counter is added where it exists, records are immutable."""
    date = date or datetime.date.today().isoformat()
    base = Path(root) / track / f"{date}_{name}"
    folder, count = base, 1
    while folder.exists():
        count += 1
        folder = base.with_name(f"{base.name}_{count}")
    return folder


def package_sha256():
    """The first 16 digits of the SHA-256 of this package's sources: what version of trit means."""
    return sources_sha256(Path(__file__).resolve().parents[1])[:16]


def versions():
    """{package: version} of what produced the numbers."""
    found = {"trit": package_sha256(), "python": platform.python_version()}
    for package in ("torch", "mlx", "numpy", "sentencepiece", "brotli"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def submission_json(config, run, facts):
    """The contest's submission.json (contest.md 1.4) from measured `facts`."""
    score, digest = facts["score"], config_sha256(json.loads(json.dumps(to_dict(config))))
    seed = {
        "val_loss": score.loss,
        "val_bpb": score.bpb,
        "artifact_bytes": facts["bytes_model"],
        "steps": facts["steps"],
        "step_avg_ms": round(1000 * facts["train_seconds"] / max(facts["steps"], 1), 3),
        "train_time_s": round(facts["train_seconds"], 3),
        "eval_time_s": round(facts["eval_seconds"], 3),
        "config_sha256": digest,
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
        "val_loss_std": 0.0,
        "val_bpb_std": 0.0,
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
        "library": facts["library"],
        "comparison": dict(facts["comparison"]),
        "versions": versions(),
        "config_sha256": digest,
        "sha256": {"train_gpt.py": facts["sha256_code"], "artifact.trit": facts["sha256_model"]},
        "compliance": {},
    }


def table(rows, heads):
    """Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells])


MADE_BY = ("torch", "mlx", "device", "isolation", "replayed_tokens", "seconds")
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


def result_rows(submission):
    """[(what, measured)] of a submission: the console and the README show the same table."""
    total, cap = submission["bytes_total"], submission["bytes_cap"]
    strict = total + submission["bytes_tokenizer"]
    gap = submission["round_trip_gap"]
    steps = f"{submission['step_stop']:,} steps, then {submission['calibration_seconds']:.1f} s of calibration"
    rows = [("bits per byte, validation, sliding windows", f"{submission['val_bpb']:.4f}")]
    rows += [(f"bits per byte, the same text under `{name}`", f"{bpb:.4f}") for name, bpb in submission["comparison"].items()]
    rows += [(f"bytes: {name}", f"{size:,}") for name, size in submission["bytes_by_category"].items()]
    return rows + [
        ("bytes: counted total", f"{total:,} of {cap:,}"),
        ("bytes with the tokenizer counted too", f"{strict:,} ({'fits' if strict <= cap else 'would not fit'})"),
        ("round-trip gap", f"largest difference {gap:.1e} nats" if gap else "0, bit for bit"),
        ("training", f"{submission['train_time_seconds']:.1f} s, {steps}"),
        ("evaluation, from process start", f"{submission['eval_time_seconds']:.1f} s"),
        ("machine", submission["hardware"]),
    ]


def seed_table(submission):
    """Markdown of every seed's result, where there are several: the score is their mean, the artifact that of the largest one."""
    if len(submission["seeds"]) < 2:
        return ""
    rows = [
        (seed, f"{found['val_bpb']:.6f}", f"{found['val_loss']:.6f}", f"{found['artifact_bytes']:,}", f"{found['steps']:,}")
        for seed, found in submission["seed_results"].items()
    ]
    spread = f"mean {submission['val_bpb']:.6f} ± {submission['val_bpb_std']:.6f}"
    return f"\n{table([*rows, (spread, '', '', '', '')], ('seed', 'bits per byte', 'nats a token', 'artifact bytes', 'steps'))}\n"


def readme(submission, checks, folder, made_by):
    """README.md of the record in `folder`. `made_by` says what `checks` were made with."""
    files = [(f"`{name}`", what) for name, what in FILES if (folder / name).exists()]
    return f"""# {submission["name"]}: {submission["val_bpb"]:.4f} bits per byte in {submission["bytes_total"]:,} bytes

{submission["blurb"]} Track `{submission["track"]}`, {submission["date"]}, seed{"s" * (len(submission["seeds"]) > 1)} {", ".join(map(str, submission["seeds"]))}. Generated; do not edit.

{table(result_rows(submission), ("what", "measured"))}
{seed_table(submission)}

## Check it

The shards of `manifest.json` come from the project's `python -m trit.data.prepare`. In this folder:

```
DATA_PATH={submission["data_path"]} python train_gpt.py
```

It scores `artifact.trit` and prints `val_bpb`. Without `artifact.trit` it trains a new one first. From the project's folder,

```
python -m trit.eval.certify <this folder> --data <folder of the shards>
```

makes the certificate again: it runs the counted file on the text and on changed copies of it, and believes nothing written here.

## Certificate

{verdict_line(checks)}. Made with {", ".join(f"{name} {made_by[name]}" for name in MADE_BY if name in made_by)}.
What each check means, and what none of them can see: docs/legality.md.

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


def start_record(folder, config, files):
    """Write what is known before the counted file has run, beside `folder` -> the temporary folder.

    `files` maps a name in the folder to bytes or to a path to copy.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (temporary / name).write_bytes(content)
        else:
            shutil.copyfile(content, temporary / name)
    save(config, temporary / "config.json")
    (temporary / "submission.json").write_text("{}")
    return temporary


def write_claims(temporary, submission, logs):
    """Write submission.json, the logs {name: bytes} and a README.md without certificate into a record's temporary folder."""
    for name, log in logs.items():
        (temporary / name).write_bytes(log)
    (temporary / "submission.json").write_text(json.dumps(submission, indent=1) + "\n")
    (temporary / "README.md").write_text(readme(submission, (), temporary, {}))


def write_certificate(temporary, checks, made_by):
    """Write certificate.json, and the verdicts into README.md and submission.json, which is returned."""
    submission = json.loads((temporary / "submission.json").read_text())
    submission["compliance"] = {item.name: item.verdict == "pass" for item in checks}
    (temporary / "submission.json").write_text(json.dumps(submission, indent=1) + "\n")
    (temporary / "certificate.json").write_text(certificate_json(checks, made_by))
    (temporary / "README.md").write_text(readme(submission, checks, temporary, made_by))
    return submission


def file_record(temporary, folder, checks, made_by):
    """Write the certificate and give the record its place -> (`folder`, or None where a check failed and nothing is kept; submission.json)."""
    submission = write_certificate(temporary, checks, made_by)
    if any(item.verdict == "fail" for item in checks):
        shutil.rmtree(temporary)
        return None, submission
    return temporary.rename(folder), submission


def certificate_json(checks, made_by):
    """The text of certificate.json: how many verdicts of each kind, what the checks were made with, the checks."""
    rows = [item._asdict() for item in checks]
    return json.dumps({"summary": verdict_counts(checks), "made_by": made_by, "checks": rows}, indent=1) + "\n"


def verdict_counts(checks):
    """{verdict: how many checks}."""
    return {verdict: sum(item.verdict == verdict for item in checks) for verdict in ("pass", "fail", "unknown")}


def verdict_line(checks):
    """One sentence about all verdicts."""
    total = verdict_counts(checks)
    return f"{total['pass']} checks passed, {total['fail']} failed, {total['unknown']} unknown (not proven; each says what it needs)"


def bits_per_byte(size, text_bytes):
    """Bits per byte of a compressed text of `size` bytes."""
    return 8.0 * size / text_bytes if text_bytes else math.nan
