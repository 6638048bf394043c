"""Records of several seeds become one: python -m trit.report.seeds RECORD RECORD RECORD [--name NAME]

In: finished records of one configuration and one counted file, each of its own seed. Out: a record whose score is their mean and whose
artifact is the largest of theirs, certified as it stands. Mixed settings, a seed twice and too few of them are refused.
"""

import statistics
from pathlib import Path

import numpy as np

from trit.config_load import from_dict
from trit.console import Parser, command
from trit.console import say as tell
from trit.eval.certify import certify
from trit.proof.claims import RECORD_SEEDS, RECORD_TRACKS
from trit.proof.entry import read_entry, read_json
from trit.report import record
from trit.report.leaderboard import write_leaderboard

COPIED = ("train_gpt.py", "train_gpt_readable.py", "artifact.trit", "requirements.txt", "manifest.json", "tokenizer.model")
LARGEST = ("bytes_total", "round_trip_gap", "train_time_seconds", "calibration_seconds", "eval_time_seconds")


def different_settings(one, other, path=""):
    """["section.key: value, value"] of two nested configurations where they differ."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [f"{path}: {one!r}, {other!r}"]
    keys = sorted(one.keys() | other.keys())
    return [line for key in keys for line in different_settings(one.get(key), other.get(key), f"{path}.{key}" if path else key)]


def check_alike(entries):
    """ValueError unless the records are of one configuration and program, of different seeds, each certified, and enough of them."""
    base = entries[0]
    for entry in entries:
        if len(entry.submission.get("seeds", [])) != 1:
            raise ValueError(f"{entry.folder}: seeds {entry.submission.get('seeds')}; give the records of single runs")
        if lines := different_settings(base.config, entry.config):
            raise ValueError(f"{base.folder} and {entry.folder} have other settings: {'; '.join(lines[:3])}. Train the seeds alike")
        if entry.program != base.program:
            raise ValueError(f"{base.folder} and {entry.folder} have other counted files; build both with the same version of the package")
        verdicts = entry.submission.get("compliance", {})
        if not verdicts:
            raise ValueError(f"{entry.folder}: no certificate; build it again with build_submission.py")
        if not np.array_equal(entry.tokens, base.tokens):
            raise ValueError(f"{base.folder} and {entry.folder} were scored on other validation text")
    seeds = [entry.submission["seeds"][0] for entry in entries]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {seeds}: one is there twice; train another with seed=...")
    if len(seeds) < 2:
        raise ValueError("a single record needs no merging; give several")
    if base.config["track"]["track"] in RECORD_TRACKS and len(seeds) < RECORD_SEEDS:
        raise ValueError(f"{len(seeds)} seeds; the track {base.config['track']['track']} asks for at least {RECORD_SEEDS}")


def merged(entries, name):
    """(the entry whose artifact is shipped, submission.json of all): the mean of the scores, the largest of sizes and times."""
    shipped = max(entries, key=lambda entry: len(entry.artifact))
    said = [entry.submission for entry in entries]
    results = {str(one["seeds"][0]): one["seed_results"][str(one["seeds"][0])] for one in said}
    found = shipped.submission | {"name": name, "seeds": [one["seeds"][0] for one in said], "seed_results": results}
    for key in ("val_loss", "val_bpb"):
        values = [result[key] for result in results.values()]
        found |= {key: statistics.fmean(values), f"{key}_std": statistics.stdev(values)}
    found["pre_quant_val_bpb"] = statistics.fmean(one["pre_quant_val_bpb"] for one in said)
    return shipped, found | {key: max(one[key] for one in said) for key in LARGEST}


def merge(folders, root, name, data=None, say=tell):
    """(folder of the merged record or None where a check failed, its checks). ValueError where the records do not belong together."""
    entries = [read_entry(folder, data) for folder in folders]
    check_alike(entries)
    shipped, submission = merged(entries, name)
    files = {file: shipped.folder / file for file in COPIED if (shipped.folder / file).exists()}
    folder = record.new_folder(root, shipped.config["track"]["track"], name)
    temporary = record.start_record(folder, from_dict(shipped.config), files)
    logs = {f"train_seed{entry.submission['seeds'][0]}.log": (entry.folder / "train.log").read_bytes() for entry in entries}
    record.write_claims(temporary, submission, logs)
    certificate = certify(read_entry(temporary, data or shipped.data), say=say)
    return record.file_record(temporary, folder, certificate.checks, certificate.made_by)[0], certificate.checks


def main(arguments=None):
    """Command line of this module: the merged record's folder is the last line."""
    parser = Parser(prog="python -m trit.report.seeds", description="Merge records of several seeds into one.", answers=True)
    parser.add_argument("folders", nargs="+", metavar="RECORD")
    parser.add_argument("--name", help="name of the merged record; that of the first with its seeds' number by default")
    parser.add_argument("--records", default="records", help="where it is filed")
    parser.add_argument("--data", help="folder of the validation shards; by default the one the records name")
    options = parser.parse_args(arguments)
    with command(options.json, "stopped; nothing was filed") as answer:
        first = read_json(Path(options.folders[0]) / "submission.json").get("name") or Path(options.folders[0]).name
        name = options.name or f"{first}_{len(options.folders)}_seeds"
        folder, found = merge(options.folders, options.records, name, options.data)
        answer |= {"folder": folder, "summary": record.verdict_counts(found), "checks": found}
        failed = [item for item in found if item.verdict == "fail"]
        if failed:
            raise ValueError("nothing was filed: " + "; ".join(f"{item.name}: {item.evidence}" for item in failed))
        print(record.verdict_line(found))
        write_leaderboard(options.records)
        print(folder)
        answer["submission"] = read_json(folder / "submission.json")


if __name__ == "__main__":
    main()
