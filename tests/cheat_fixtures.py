"""A tiny honest record, and what it takes to plant a cheat in one: edit its program, score it again as its author would, file it.

The record's weights are drawn, not trained: every check is about how text is scored, not how well. Its tokenizer has byte-fallback
and leading-space pieces, its text needs both. Everything that learns while it scores is switched on.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from store import copy, stored

from trit.bundle.alone import Job, run_jobs
from trit.bundle.bundle import QUICK_CODECS, bundle
from trit.bundle.wrap import wrap
from trit.config import RunArgs
from trit.config_load import load
from trit.data.prepare import prepare
from trit.data.tokenizer import find_spec
from trit.eval import certify
from trit.eval.certify import judge, plan_runs
from trit.eval.score import Score
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.proof.claims import final_line
from trit.proof.entry import given_files, read_entry
from trit.report import record
from trit.submission import make_artifact
from trit.train.backend import Process

PIECES, CUTS, SEEDS = 300, 3, (7, 8, 11)
SETTINGS = [
    f"model.vocab_size={PIECES}", "model.num_layers=2", "model.model_dim=8", "model.num_heads=2", "model.num_kv_heads=1",
    "model.embed_dim=4", "model.partial_rope_dims=4", "model.yarn_max_len=64", "model.mlp_mult=1", "train.train_seq_len=16",
    "train.train_batch_tokens=64", "train.max_wallclock_seconds=0", "track.track=non_record_16mb", "track.cap_bytes=60000",
    "eval.eval_seq_len=16", "eval.eval_stride=8", "eval.eval_batch_seqs=3", "eval.eval_chunk_tokens=40", "eval.memory_chunk_tokens=10",
    "eval.ngram_order=3", "eval.ngram_nodes=4096", "eval.eval_engram_buckets=64", "eval.ttt_scope=scales", "eval.ttt_lr=0.05",
    "compress.calibration_tokens=64",
]  # fmt: skip
WORDS = "the quick brown fox jumps over a lazy dog and naïve people count each byte twice in the night — 漢字 ok"
RARE = " Ω≠"  # in the validation text alone: the tokenizer spells it in bytes


def write_text(folder):
    """Training and validation documents of random words, as JSON lines; the two share none. -> {split: path}"""
    generator, paths = np.random.default_rng(0), {}
    for split, count in (("train", 20), ("val", 3)):
        texts = [" ".join(generator.choice(WORDS.split(), 30)) + RARE * (split == "val") for _ in range(count)]
        paths[split] = folder / f"{split}.jsonl"
        paths[split].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {split: str(path) for split, path in paths.items()}


def make_data(folder, texts, name="shards"):
    """A data folder of `texts` {split: path}."""
    prepare(texts, str(folder / name), find_spec("sp_bpe_512") | {"vocab_size": PIECES}, say=lambda *_: None)
    return folder / name


def make_record(folder, data, preset=None, settings=SETTINGS, seed=7):
    """An honest record of random weights in `folder`, its scores still missing, as if of the run with that seed. -> folder"""
    config = load(preset, {}, settings)[0]
    arch = load_arch(config.model.name)
    specs, generator = artifact_specs(arch, config), np.random.default_rng(seed - 6)
    arrays = {name: x + generator.normal(0, 0.3, x.shape).astype(np.float32) for name, x in init_params(specs, 1).items()}
    artifact, counted = make_artifact(torch_ops, arch, config, arrays, {}), bundle(config, codecs=QUICK_CODECS)
    facts = dict.fromkeys(("trained_bpb", "gap", "eval_seconds", "calibration_seconds", "parameters", "bytes_tokenizer"), 0)
    facts |= {"score": Score(0.0, 0.0, 0, 0), "steps": 0, "train_seconds": 1.0, "bytes_code": 0, "bytes_model": 0, "categories": {}}
    facts |= {
        "author": "a",
        "github_id": "b",
        "name": "tiny",
        "blurb": "c",
        "hardware": "",
        "library": "torch",
        "comparison": {},
        "sha256_code": "",
        "sha256_model": "",
    }
    files = {"train_gpt.py": counted.wrapped, "train_gpt_readable.py": counted.readable.encode(), "artifact.trit": artifact}
    files |= {"requirements.txt": b"torch\n", "manifest.json": data / "manifest.json"}
    files["tokenizer.model"] = data / find_spec("sp_bpe_512")["filename"]
    place = record.start_record(folder, config, files)
    submission = record.submission_json(config, RunArgs(data_path=str(data), seed=seed), facts | {"data_path": str(data)})
    record.write_claims(place, submission, {"train.log": b""})
    return place.rename(folder)


def claim(folder, output, hardware):
    """Write into a record what its files and the `output` of its program say, as its author would."""
    submission, printed = json.loads((folder / "submission.json").read_text()), final_line(output)
    (seed,) = submission["seed_results"].values()
    for name in ("val_loss", "val_bpb"):
        submission[name] = seed[name] = printed[name]
    sizes = {name: (folder / name).stat().st_size for name in ("train_gpt.py", "artifact.trit")}
    submission["bytes_code"], submission["bytes_model"] = sizes.values()
    submission["bytes_total"], seed["artifact_bytes"] = sum(sizes.values()), sizes["artifact.trit"]
    submission["bytes_by_category"] = {"code": sizes["train_gpt.py"]}
    submission["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sizes}
    submission["hardware"] = hardware
    record.write_claims(folder, submission, {"train.log": b"step:1/1 train_time:1000ms\n" + output.encode()})


def honest_data():
    """The data folder of the honest records."""
    return stored("honest_data", lambda folder: folder.mkdir() or make_data(folder, write_text(folder)), __file__) / "shards"


def honest_record(seed=7):
    """An honest record whose scores are still missing."""
    return stored(f"honest_{seed}", lambda folder: make_record(folder, honest_data(), seed=seed), SETTINGS)


def scored_records():
    """Honest records of `SEEDS`, one after another, as their author scored them: {seed: folder}."""

    def make(root):
        (root / "scored").mkdir(parents=True)
        folders = [copy(honest_record(seed), root / f"seed_{seed}") for seed in SEEDS]
        environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "tokenizer.model", "OMP_NUM_THREADS": "1"}
        entries = [read_entry(folder, honest_data()) for folder in folders]
        jobs = [Job(str(entry.folder), entry.program, given_files(entry), environ) for entry in entries]
        for folder, result in zip(folders, run_jobs(jobs, root / "scored").results):
            assert result.returncode == 0, result.stderr
            claim(folder, result.stdout, record.hardware(Process(0, 1, "cpu")))
        shutil.rmtree(root / "scored")

    root = stored("scored", make, SETTINGS, SEEDS)
    return {seed: root / f"seed_{seed}" for seed in SEEDS}


class Cheat(NamedTuple):
    """`edits` are (old, new) in the readable program, each old text there exactly once; `failing` are the checks that must fail.

    `change(folder, data)` alters the record's files before its author scores it and may return another data folder to judge it with;
    `lie(folder)` alters its claims afterwards. `files` are what lies beside the program on its author's machine.
    """

    name: str
    failing: set
    edits: tuple = ()
    change: object = None
    lie: object = None
    files: dict = {}


def edited(source, edits):
    """The source with each edit applied; an edit whose old text is not there exactly once is a fault of the test."""
    for old, new in edits:
        assert source.count(old) == 1, f"{source.count(old)} times in the program, an edit needs it once: {old!r}"
        source = source.replace(old, new)
    return source


def plant(cheat, honest, data, root):
    """A copy of the `honest` record with a cheat in it, not scored yet. -> (folder, data folder)"""
    folder = copy(honest, root / re.sub(r"\W+", "_", cheat.name))
    if cheat.edits:
        source = edited((folder / "train_gpt_readable.py").read_text(encoding="utf-8"), cheat.edits)
        (folder / "train_gpt.py").write_bytes(wrap(source, ("zlib",)))
        submission = json.loads((folder / "submission.json").read_text())
        submission["versions"]["trit"] = "the author's"
        (folder / "submission.json").write_text(json.dumps(submission))
    return folder, cheat.change and cheat.change(folder, data) or data


def score_and_judge(cheats, honest, data, root):
    """Plant every cheat, score each as its author would, certify all. -> {name: [Check]}. Two isolated processes, one after another."""
    (root / "records").mkdir()
    planted = {cheat.name: plant(cheat, honest, data, root / "records") for cheat in cheats}
    jobs, where = {}, {}
    for cheat in cheats:
        entry = read_entry(*planted[cheat.name])
        files = given_files(entry) | {f"data/{Path(path).name}": path for path in entry.training} | cheat.files
        environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "tokenizer.model", "OMP_NUM_THREADS": "1"}
        jobs.setdefault((entry.program, entry.data), Job(cheat.name, entry.program, files, environ))
        where[cheat.name] = entry.program, entry.data
    (root / "author").mkdir()
    outputs = dict(zip(jobs, run_jobs(list(jobs.values()), root / "author").results))
    for cheat in cheats:
        result = outputs[where[cheat.name]]
        assert result.returncode == 0, f"{cheat.name}: {result.stderr[-1500:]}"
        claim(planted[cheat.name][0], result.stdout, record.hardware(Process(0, 1, "cpu")))
        if cheat.lie:
            cheat.lie(planted[cheat.name][0])
    entries = {cheat.name: read_entry(*planted[cheat.name]) for cheat in cheats}
    plans, same = {}, {}
    for cheat in cheats:
        entry = entries[cheat.name]
        runs = entry.program, entry.artifact, entry.data, str(entry.evaluation), CUTS if cheat.edits else 1
        same[cheat.name] = runs  # a lie about the very same runs is judged on the same results
        plans.setdefault(runs, plan_runs(entry, cuts=runs[-1]))
    (root / "judged").mkdir()
    session = run_jobs([job for plan in plans.values() for job in plan.jobs], root / "judged")
    results, first = {}, 0
    for runs, plan in plans.items():
        results[runs], first = session.results[first : first + len(plan.jobs)], first + len(plan.jobs)
    known, real = {}, certify.artifact_views

    def views(artifact, config, specs):
        """Most cheats ship the honest artifact: it is taken apart once."""
        if (artifact, config) not in known:
            known[artifact, config] = real(artifact, config, specs)
        return known[artifact, config]

    with mock.patch.object(certify, "artifact_views", views):
        return {name: judge(entry, plans[same[name]], session._replace(results=results[same[name]])) for name, entry in entries.items()}
