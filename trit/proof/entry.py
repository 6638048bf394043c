"""A finished entry as a stranger finds it: a record folder, and a folder with the validation shards. Input: paths; output: an `Entry`.

Nothing in it is believed: it holds the bytes that are judged and the claims that are compared with them.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trit.config_load import read_tracks
from trit.data.manifest import MANIFEST_NAME, read_manifest
from trit.data.shards import read_shard, shard_files, shard_header

LIMITS = ("cap_bytes", "train_seconds", "eval_seconds")
PROGRAM, ARTIFACT, TOKENIZER = "train_gpt.py", "artifact.trit", "tokenizer.model"
EVALUATION_DEFAULTS = {"eval_chunk_tokens": 1024, "memory_chunk_tokens": 1024, "eval_segment_tokens": 0}  # what older records do


class Entry(NamedTuple):
    """`program` and `artifact` are bytes; `config`, `submission` and `manifest` plain values; `log` and `readme` text.

    `shards` are the paths of the validation split, `tokens` (n,) all of it; `tokenizer` is a path or "byte260"; `training` lists
    training shards and may be empty; `data` is the folder of the shards.
    """

    folder: Path
    program: bytes
    artifact: bytes
    config: dict
    submission: dict
    manifest: dict
    log: str
    readme: str
    data: Path
    shards: list
    tokens: np.ndarray
    tokenizer: str
    training: list

    @property
    def vocab_size(self):
        return self.config["model"]["vocab_size"]

    @property
    def evaluation(self):
        """Settings of the evaluation."""
        return EVALUATION_DEFAULTS | self.config["eval"]


def read_json(path):
    """A JSON object of a record; ValueError says what is wrong with the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: missing; a record folder holds it (build_submission.py writes one)") from None
    except ValueError as fault:
        raise ValueError(f"{path}: not JSON ({fault})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object; build the record again with build_submission.py")
    return found


def read_text(folder, *patterns):
    """Text of all files of a folder that match, one after the other; empty where there are none."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def find_data(folder, submission, data):
    """The folder of the validation shards: `data` if given, else what the record names; ValueError if there are none."""
    place = Path(data) if data else folder / submission.get("data_path", "")
    if not data and not (submission.get("data_path") and place.is_dir()):
        named = submission.get("data_path", "none")
        raise ValueError(
            f"{folder}: the shards it names ({named}) are not here; give their folder with --data (trit.data.prepare makes it)"
        )
    return place


def read_entry(folder, data=None, training=None):
    """`Entry` of a record folder. `data` and `training` are folders of shards; by default the record's own, and `data`.

    ValueError says what is missing and how to get it.
    """
    folder = Path(folder)
    for name in (PROGRAM, ARTIFACT):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: no {name}, so this is no record; give a folder such as records/<track>/<date>_<name>")
    config, submission = read_json(folder / "config.json"), read_json(folder / "submission.json")
    if absent := [name for name in ("model", "eval", "track") if not isinstance(config.get(name), dict)]:
        raise ValueError(f"{folder}/config.json: no settings of {', '.join(absent)}; build the record again with build_submission.py")
    place = find_data(folder, submission, data)
    shards = shard_files(str(place), "val")
    tokens = np.concatenate([read_shard(path, config["model"]["vocab_size"]) for path in shards])
    manifest = read_manifest(str(folder)) or {}
    tokenizer = folder / TOKENIZER
    named = manifest.get("tokenizer", {}).get("file", "")
    if not tokenizer.exists() and named:
        tokenizer = place / named
    return Entry(
        folder,
        (folder / PROGRAM).read_bytes(),
        (folder / ARTIFACT).read_bytes(),
        config,
        submission,
        manifest,
        read_text(folder, "train*.log"),
        read_text(folder, "README.md"),
        place,
        shards,
        tokens,
        str(tokenizer) if tokenizer.exists() or named else "byte260",
        find_training(training or place),
    )


def find_training(folder):
    """Training shards in a folder, an empty list where there are none."""
    try:
        return shard_files(str(folder), "train")
    except ValueError:
        return []


def config_sha256(config):
    """SHA-256 of a configuration (nested plain values), whatever its layout on disk."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def track_limits(config):
    """{cap_bytes, train_seconds, eval_seconds}: the stricter of the record's settings and of the track they name. 0 is no limit."""
    official, limits = read_tracks().get(config["track"]["track"], {}), {}
    for name in LIMITS:
        values = [value for value in (config["track"][name], official.get(name, 0)) if value]
        limits[name] = min(values, default=0)
    return limits


def given_files(entry, tokens=None):
    """{name: path or bytes} of what the counted file is given beside itself: artifact, tokenizer, manifest, validation shards.

    With `tokens` the validation split is one shard of those.
    """
    files = {ARTIFACT: entry.artifact}
    if entry.tokenizer != "byte260":
        files[TOKENIZER] = entry.tokenizer
    if (entry.data / MANIFEST_NAME).exists():
        files[f"data/{MANIFEST_NAME}"] = entry.data / MANIFEST_NAME
    if tokens is None:
        return files | {f"data/{Path(path).name}": path for path in entry.shards}
    return files | {f"data/{Path(entry.shards[0]).name}": shard_header(len(tokens)) + np.asarray(tokens, "<u2").tobytes()}
