"""What a record claims, compared with what was measured. Input: an `Entry` and measurements; output: `Check`s. Nothing is run here.

Claims stand in submission.json, in the first line and the tables of README.md, and in the log's lines. A line of a log counts only
where it starts with the known words: logs may hold source code that prints them.
"""

import hashlib
import math
import re
import statistics
from pathlib import Path

from trit.data.manifest import file_sha256, read_manifest, tokenizer_sha256
from trit.proof.checks import check, unknown
from trit.proof.entry import config_sha256

FINAL_LINE = re.compile(r"^final_\w*roundtrip_exact (.*)$", re.MULTILINE)
LOG_SIZES = (
    ("bytes_model", re.compile(r"^Serialized model: (\d+) bytes", re.MULTILINE)),
    ("bytes_code", re.compile(r"^Code size: (\d+) bytes", re.MULTILINE)),
    ("bytes_total", re.compile(r"^Total submission size[^:\n]*: (\d+) bytes", re.MULTILINE)),
)
README_SIZES = (
    ("bytes_total", re.compile(r"^# .* in ([\d,]+) bytes$", re.MULTILINE)),
    ("bytes_total", re.compile(r"^\| bytes: counted total \| ([\d,]+) of", re.MULTILINE)),
    ("bytes_code", re.compile(r"^\| bytes: code \| ([\d,]+) \|", re.MULTILINE)),
)
README_SCORE = re.compile(r"^# .*?: ([\d.]+) bits per byte", re.MULTILINE)
TRAIN_TIME = re.compile(r"^(?:step:|stopping_early:).*?train_time:(\d+)ms", re.MULTILINE)
WARM_UP = re.compile(r"^warmup_step:\S+ warmup_time:(\d+)ms", re.MULTILINE)
REQUIRED_FILES = ("README.md", "submission.json", "config.json", "train_gpt.py", "artifact.trit", "requirements.txt")
REQUIRED_FIELDS = (
    "author",
    "github_id",
    "name",
    "date",
    "track",
    "blurb",
    "val_loss",
    "val_bpb",
    "val_loss_std",
    "val_bpb_std",
    "seeds",
    "seed_results",
    "bytes_total",
    "bytes_code",
    "bytes_model",
    "hardware",
    "versions",
    "compliance",
)
RECORD_TRACKS, RECORD_SEEDS = ("10min_16mb",), 3
SAME_MACHINE, OTHER_MACHINE = 1e-6, 1e-4  # bits per byte


def number(text):
    """An integer written with or without commas."""
    return int(text.replace(",", ""))


def final_lines(text):
    """[{name: value}] of the `final_..._roundtrip_exact` lines of a program's output."""
    pairs = [dict(part.split(":", 1) for part in line.split() if ":" in part) for line in FINAL_LINE.findall(text)]
    return [{name: float(value) for name, value in found.items() if re.fullmatch(r"[-+\d.einfa]+", value)} for found in pairs]


def final_line(text):
    """The last of `final_lines`, or None."""
    return (final_lines(text) or [None])[-1]


def logged_seconds(entry, pattern):
    """Seconds, from milliseconds, of every line of the log that `pattern` finds."""
    return [int(time) / 1000 for time in pattern.findall(entry.log)]


def complete(entry):
    """The files and fields that a submission must have are there."""
    missing = [name for name in REQUIRED_FILES if not (entry.folder / name).exists()] + ["train.log"] * (not entry.log)
    fields = [name for name in REQUIRED_FIELDS if name not in entry.submission]
    evidence = f"missing files: {', '.join(missing) or 'none'}; missing fields of submission.json: {', '.join(fields) or 'none'}"
    return check("record is complete", not missing and not fields, evidence)


def claimed_sizes(entry):
    """Every number that claims a size is that of the files, in submission.json, in the README and in the log."""
    code, model = len(entry.program), len(entry.artifact)
    actual = {"bytes_code": code, "bytes_model": model, "bytes_total": code + model, "artifact_bytes": model}
    claims = [("submission.json", name, entry.submission[name]) for name in actual if name in entry.submission]
    results = entry.submission.get("seed_results", {})
    if len(results) == 1:  # with several seeds the artifact here is that of one of them
        claims += [
            ("seed_results", "artifact_bytes", result["artifact_bytes"]) for result in results.values() if "artifact_bytes" in result
        ]
    for where, text, patterns in (("README.md", entry.readme, README_SIZES), ("train.log", entry.log, LOG_SIZES)):
        claims += [(where, name, number(size)) for name, pattern in patterns for size in pattern.findall(text)]
    if len(results) > 1:  # every seed's log names the size of its own artifact
        own = {result.get("artifact_bytes") for result in results.values()}
        claims = [claim for claim in claims if claim[:2] != ("train.log", "bytes_model") or claim[2] not in own]
    wrong = [f"{where}: {name} {claimed}, really {actual[name]}" for where, name, claimed in claims if claimed != actual[name]]
    return check(
        "claimed sizes", claims and not wrong, f"{len(claims)} claims compared with the files; wrong: {'; '.join(wrong) or 'none'}"
    )


def claimed_scores(entry):
    """submission.json, README and log name the same score."""
    submission, wrong = entry.submission, []
    logged, results = final_lines(entry.log), submission.get("seed_results", {})
    if not logged:
        wrong.append("train.log has no final_..._roundtrip_exact line")
    # The last line of a log counts; of several seeds each has a log of its own.
    several = len(results) > 1
    for seed, result in results.items() if several else [("", submission)]:
        for name in ("val_loss", "val_bpb"):
            found = [line.get(name, math.inf) for line in (logged if several else logged[-1:])]
            if found and min(abs(value - result[name]) for value in found) > 1e-7:
                wrong.append(f"train.log: {name} {found[-1]}, submission.json {result[name]:.8f}{seed and f' of seed {seed}'}")
    headline = README_SCORE.search(entry.readme)
    if headline is None or headline.group(1) != f"{submission['val_bpb']:.4f}":
        wrong.append(
            f"README.md: {headline.group(1) if headline else 'no score in its title'}, submission.json {submission['val_bpb']:.4f}"
        )
    times = logged_seconds(entry, TRAIN_TIME)
    if times and abs(max(times) - submission.get("train_time_seconds", 0.0)) > 1.0:
        wrong.append(f"train.log: trained {max(times):.1f}s, submission.json {submission.get('train_time_seconds')}s")
    return check("claimed scores", not wrong, f"submission.json, README.md and train.log compared; wrong: {'; '.join(wrong) or 'none'}")


def recorded_hashes(entry):
    """Counted file and artifact are those that submission.json names."""
    named = entry.submission.get("sha256", {})
    actual = {name: hashlib.sha256(data).hexdigest() for name, data in (("train_gpt.py", entry.program), ("artifact.trit", entry.artifact))}
    if not set(actual) <= set(named):
        return unknown(
            "recorded hashes", "submission.json does not name the sha256 of train_gpt.py and artifact.trit; build the record again"
        )
    wrong = [name for name in actual if actual[name] != named[name]]
    return check(
        "recorded hashes", not wrong, f"sha256 of artifact {actual['artifact.trit'][:16]}...; differing: {', '.join(wrong) or 'none'}"
    )


def config_hash(entry):
    """One configuration made every number: submission.json names the hash of config.json, and each seed the same."""
    actual, submission = config_sha256(entry.config), entry.submission
    named = [submission.get("config_sha256"), *(result.get("config_sha256") for result in submission.get("seed_results", {}).values())]
    if None in named:
        return unknown("one configuration", f"config.json has sha256 {actual[:16]}..., but submission.json does not name it for every seed")
    other = sum(digest != actual for digest in named)
    return check("one configuration", not other, f"config.json has sha256 {actual[:16]}...; {other} of {len(named)} claims name another")


def seeds(entry):
    """Seeds are distinct and each has its result; the headline is their mean, the deviation is theirs."""
    submission, name = entry.submission, "seeds and statistics"
    listed, results = [str(seed) for seed in submission.get("seeds", [])], submission.get("seed_results", {})
    wrong = []
    if not listed or sorted(set(listed)) != sorted(listed) or sorted(listed) != sorted(results):
        wrong.append(f"seeds {listed} have results for {sorted(results)}")
    for key in ("val_loss", "val_bpb"):
        values = [result.get(key, math.nan) for result in results.values()]
        mean, spread = statistics.fmean(values or [math.nan]), statistics.stdev(values) if len(values) > 1 else 0.0
        for what, claimed, actual in ((key, submission.get(key), mean), (f"{key}_std", submission.get(f"{key}_std"), spread)):
            if claimed is None or not abs(claimed - actual) <= 1e-9:
                wrong.append(f"{what} {claimed} where the seeds give {actual:.8f}")
    evidence = f"{len(listed)} seeds; wrong: {'; '.join(wrong) or 'none'}"
    if not wrong and entry.config["track"]["track"] in RECORD_TRACKS and len(listed) < RECORD_SEEDS:
        return unknown(name, f"{evidence}; a record on this track shows at least {RECORD_SEEDS} seeds: add the other runs' results")
    return check(name, not wrong, evidence)


def reproduces(entry, printed, libraries, hardware):
    """The full run prints the recorded score: to 1e-6 bits per byte with the same `libraries` ({name: version}) on the
    same hardware, 1e-4 elsewhere.

    With several seeds the artifact here is one of theirs, and any of their results may be met.
    """
    submission = entry.submission
    same = libraries and libraries.items() <= submission.get("versions", {}).items() and submission.get("hardware") == hardware
    allowed = SAME_MACHINE if same else OTHER_MACHINE
    recorded = [result.get("val_bpb", math.inf) for result in submission.get("seed_results", {}).values()] or [submission["val_bpb"]]
    gap = min(abs(printed["val_bpb"] - value) for value in recorded)
    named = " ".join(f"{name} {version}" for name, version in libraries.items())
    where = f"same {' and '.join(libraries)} and hardware as recorded" if same else f"recorded elsewhere; here {hardware}, {named}"
    evidence = f"val_bpb {printed['val_bpb']:.8f}, recorded {submission['val_bpb']:.8f}: {gap:.2g} apart, {allowed:g} allowed ({where})"
    return check("reproduces the recorded score", gap <= allowed, evidence)


def training_seconds(entry):
    """The longest training of any seed in seconds, with what read training text after it, or None."""
    own = entry.submission.get("train_time_seconds")
    others = [result["train_time_s"] for result in entry.submission.get("seed_results", {}).values() if "train_time_s" in result]
    known = [seconds for seconds in (own, *others, *logged_seconds(entry, TRAIN_TIME)) if seconds is not None]
    return max(known) + entry.submission.get("calibration_seconds", 0.0) if known else None


def warm_up(entry):
    """What the log says of seconds spent before the training clock started, in words."""
    spent = logged_seconds(entry, WARM_UP)
    return f"; compiling and warm-up before the clock, with states restored and not counted: {max(spent):.1f}s" if spent else ""


def validation_split(entry, texts):
    """Shards, tokenizer and the text they decode to are what the manifests say, the record's and that beside the shards.

    `texts` are the decoded documents. A manifest without an entry about something says nothing about it.
    """
    manifests = [("the record's manifest", entry.manifest), ("the shards' manifest", read_manifest(str(entry.data)))]
    manifests = [(where, manifest) for where, manifest in manifests if manifest and manifest.get("files")]
    if not manifests:
        return unknown("validation split", "no manifest.json in the record or beside the shards; trit.data.prepare writes one")
    digest, wrong = hashlib.sha256(), []
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    shards = {Path(path).name: file_sha256(path) for path in entry.shards}
    tokenizer = tokenizer_sha256(entry.tokenizer)
    for where, manifest in manifests:
        made_by = manifest.get("tokenizer", {})
        named = {file["name"]: file.get("sha256") for file in manifest["files"] if "_val_" in file["name"]}
        different = [name for name, found in shards.items() if named.get(name, "") not in (found, None)]
        wrong += [f"{where}: {name}" for name in different + sorted(set(named) - set(shards))]
        if made_by.get("sha256", tokenizer) != tokenizer:
            wrong.append(f"{where}: tokenizer")
        if made_by.get("lossless") and manifest.get("splits", {}).get("val", {}).get("text_sha256", "") not in ("", digest.hexdigest()):
            wrong.append(f"{where}: decoded text")
    evidence = f"{len(shards)} shards, {len(texts)} documents, {len(manifests)} manifests; not as they say: {', '.join(wrong) or 'nothing'}"
    return check("validation split", not wrong, evidence)
