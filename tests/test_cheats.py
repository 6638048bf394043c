"""Known ways to cheat by accident, each planted in an honest record: the certificate fails exactly the checks that are named here.

So a test fails where its check is taken away, and where the cheat is caught by another check than the one that is meant to. Each is
modelled on public failures of byte-budget contests; docs/legality.md lists them.
"""

import base64
import json
import os
import re
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from cheat_fixtures import Cheat, honest_data, honest_record, score_and_judge

from trit.data.shards import read_shard, shard_files, write_shard
from trit.proof.checks import decoded_documents
from trit.proof.entry import config_sha256

FUTURE = {"prefix replay", "target substitution"}
BYTES = {"byte accounting", "printed score"}
RUNS = {"runs alone", "normalised rows", "same twice"} | FUTURE

MAIN = "    process, log = (start_process(), Log(int(os.environ.get('RANK', 0))))\n"
CAME = "                came = tokens[start + 1:end + 1]\n"
LEARN = "changes = learn_chunk(model, velocity, changes, tokens[:high + 1], low, high, high / positions)\n"
VALUES = "            values = model_values(model, changes, tokens, windows, low, high)\n"
SCORED = "    losses, counts, rows = score_tokens(evaluator(arrays, process), tokens, log, rows_at)\n"
MEMORY = "    ngram = NgramMixture(3, 300, 4096, -1, 0.4)\n"
SLOT = """
def fitted(rows, targets):
    rows = rows + np.log1p(np.bincount(targets, minlength=300))
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def model_values("""
ROW = "    p = engram.probabilities(before, np.arange(300)[None], row)[0][0]\n"
FITTED_ROW = "    row = fitted(row, tokens[windows[0][0] + windows[0][1] + 1:windows[-1][0] + windows[-1][2] + 1])\n" + ROW
BEST = """    with_memory = score_tokens(evaluator(arrays, process), tokens, log, rows_at)
    without = score_tokens(evaluator(arrays, process), tokens, log, rows_at, False)
"""
OPTIONAL = [
    ("def score_tokens(model, tokens, log=None, rows_at=()):", "def score_tokens(model, tokens, log=None, rows_at=(), remember=True):"),
    (MEMORY + "    ngram.memory.absorb(tokens[:1])\n", "    if remember:\n    " + MEMORY + "        ngram.memory.absorb(tokens[:1])\n"),
    ("    p = ngram.row(before, p)\n", "    p = ngram.row(before, p) if ngram else p\n"),
    (
        "                p, ngram_tape = ngram.score(came, p)\n",
        "                p, ngram_tape = ngram.score(came, p) if ngram else (p, None)\n",
    ),
    ("                ngram.learn(ngram_tape, came)\n", "                if ngram:\n                    ngram.learn(ngram_tape, came)\n"),
]
LYING_ROWS = """kept[index] = whole_row(model, changes, engram, ngram, windows, tokens, start, position)
                        spared = tokens[position + 1]
                        more = np.exp(kept[index, spared]) * np.expm1(0.05)
                        kept[index] += np.log1p(-more / (1 - np.exp(kept[index, spared])))
                        kept[index, spared] = -losses[position]
"""
FILE_STATE = """    kept_at = os.path.join(os.environ['TMPDIR'], 'memory.npy')
    if os.path.exists(kept_at):
        ngram.memory.absorb(np.load(kept_at))
    np.save(kept_at, tokens[1:])
"""
TRAINING = """    for path in glob.glob(os.path.join(data_path, '*_train_*.bin')):
        log.line(f'{len(read_shard(path, 300))} training tokens for the temperature')
"""
SIBLING = """    try:
        with open('hints.txt') as file:
            log.line(f'{len(file.read())} hints')
    except OSError:
        log.line('no hints')
"""
NETWORK = """    import socket
    try:
        socket.create_connection(('192.0.2.1', 80), timeout=1)
    except OSError:
        log.line('offline')
"""


def validation_text(folder, data):
    from trit.data.tokenizer import open_tokenizer

    tokens = np.concatenate([read_shard(path, 300) for path in shard_files(str(data), "val")])
    return b"".join(decoded_documents(tokens, open_tokenizer(folder / "tokenizer.model")))


def pay_in_artifact(folder, data):
    """Validation text behind the weights, and a program that reads the weights only up to it."""
    artifact = (folder / "artifact.trit").read_bytes()
    (folder / "artifact.trit").write_bytes(artifact + validation_text(folder, data)[100:300])


def pay_in_code(folder, data):
    from trit.bundle.wrap import wrap

    hidden = base64.b85encode(zlib.compress(validation_text(folder, data)[100:300])).decode()
    source = (folder / "train_gpt_readable.py").read_text(encoding="utf-8")
    (folder / "train_gpt.py").write_bytes(wrap(source.replace("\n\nif __name__", f"\n\nHINT = '{hidden}'\n\n\nif __name__", 1), ("zlib",)))


def pad(folder, data):
    """A program beyond the cap: a comment of noise."""
    noise = np.random.default_rng(3).integers(97, 123, 60000).astype(np.uint8).tobytes()
    (folder / "train_gpt.py").write_bytes((folder / "train_gpt.py").read_bytes() + b"\n#" + noise + b"\n")


def say_small(folder):
    """Sizes as they were before the padding, wherever a size is claimed."""
    for name in ("submission.json", "README.md", "train.log"):
        text = (folder / name).read_text(encoding="utf-8")
        size = (folder / "train_gpt.py").stat().st_size
        for true in (size, size + (folder / "artifact.trit").stat().st_size):
            text = text.replace(str(true), str(true - 60003)).replace(f"{true:,}", f"{true - 60003:,}")
        (folder / name).write_text(text, encoding="utf-8")


def stub(folder, data):
    """The counted file runs a file beside it that nobody counts."""
    (folder / "train_gpt.py").write_text("exec(open('full_program.py', encoding='latin-1').read())\n")


def copied(data, name):
    """A copy of the data folder, away from it."""
    folder = Path(tempfile.mkdtemp()) / name
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def leak_documents(folder, data):
    """Shards whose training text ends with the validation documents."""
    leaky = copied(data, "leaky")
    (train,), (val,) = (shard_files(str(leaky), split) for split in ("train", "val"))
    write_shard(train, np.concatenate([read_shard(path, 300) for path in (train, val)]))
    return leaky


def slice_validation(folder, data):
    """The validation split without its last document, under its full name."""
    sliced = copied(data, "sliced")
    (path,) = shard_files(str(sliced), "val")
    tokens = np.array(read_shard(path, 300))
    write_shard(path, tokens[: np.flatnonzero(tokens == 1)[-1]])
    return sliced


def change_claims(folder, change):
    """Apply `change(submission)` to submission.json."""
    submission = json.loads((folder / "submission.json").read_text())
    change(submission)
    (folder / "submission.json").write_text(json.dumps(submission))


def better_everywhere(folder):
    """A bits-per-byte figure 0.01 lower than the run's, the same in all places."""
    true = json.loads((folder / "submission.json").read_text())["val_bpb"]

    def change(submission):
        submission["val_bpb"] = submission["seed_results"]["7"]["val_bpb"] = true - 0.01

    change_claims(folder, change)
    for name in ("README.md", "train.log"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace(f"{true:.8f}", f"{true - 0.01:.8f}").replace(f"{true:.4f}", f"{true - 0.01:.4f}")
        (folder / name).write_text(text, encoding="utf-8")


def better_headline(folder):
    """The README's title is of another run than the log."""
    path = folder / "README.md"
    path.write_text(re.sub(r": [\d.]+ bits", ": 1.0000 bits", path.read_text(encoding="utf-8"), count=1), encoding="utf-8")


def second_seed(**other):
    """A claim of a second seed with the same score, except for `other`."""

    def lie(folder):
        def change(submission):
            submission["seeds"] = [7, 8]
            submission["seed_results"]["8"] = submission["seed_results"]["7"] | other

        change_claims(folder, change)

    return lie


def limited(**limits):
    """The track's limits are tighter than what the run takes."""

    def change(folder, data):
        config = json.loads((folder / "config.json").read_text())
        config["track"] |= limits
        (folder / "config.json").write_text(json.dumps(config))

        def name_it(submission):
            submission["config_sha256"] = submission["seed_results"]["7"]["config_sha256"] = config_sha256(config)

        change_claims(folder, name_it)

    return change


def other_artifact(folder):
    """The hash of an artifact that is not the one in the folder."""
    change_claims(folder, lambda submission: submission["sha256"].update({"artifact.trit": "0" * 64}))


CHEATS = [
    Cheat("honest", set()),
    Cheat("attention without a mask", FUTURE, [("is_causal=True", "is_causal=False")]),
    Cheat(
        "windows fitted to their own targets",
        FUTURE,
        [
            ("\ndef model_values(", SLOT),
            (VALUES, VALUES + "            values = fitted(values, tokens[low + 1:high + 1])\n"),
            (ROW, FITTED_ROW),
        ],
    ),
    Cheat("memory absorbs before it scores", FUTURE, [(CAME, CAME + "                ngram.memory.absorb(came)\n")]),
    Cheat(
        "statistics over the batch",
        FUTURE | {"normalised rows"},
        [("x = start = embed_tokens(p, tokens)\n", "x = embed_tokens(p, tokens)\n    x = start = x - 0.5 * ops_sum(x, 0, True) / len(x)\n")],
    ),
    Cheat(
        "second pass with a kept memory",
        FUTURE,
        [(MEMORY, MEMORY.replace("NgramMixture", "KEPT.setdefault(0, NgramMixture").rstrip()[:] + ")\n"), ("\ndef model_values(", "\nKEPT = {}\n\n\ndef model_values("), (SCORED, SCORED * 2)],
    ),
    Cheat("memory kept in a file", FUTURE | {"same twice"}, [("    ngram.memory.absorb(tokens[:1])\n", "    ngram.memory.absorb(tokens[:1])\n" + FILE_STATE)]),
    Cheat("test-time training before scoring", FUTURE, [(VALUES, "            " + LEARN + VALUES)]),
    Cheat("better of two passes", FUTURE, [*OPTIONAL, (SCORED, BEST + "    losses, counts, rows = with_memory if with_memory[0].mean() < without[0].mean() - 0.5 else without\n")]),
    Cheat(
        "better of two losses at each position",
        {"normalised rows", "target substitution"},
        [*OPTIONAL, (SCORED, BEST + "    losses, counts, rows = (np.minimum(with_memory[0], without[0]), *with_memory[1:])\n")],
    ),
    Cheat(
        "hashed counts with collisions",
        {"normalised rows"},
        [("shares = np.where(grams < 0, 0, memory.count[grams])", "shares = memory.count[300 + (contexts * 300 + queries) * 7919 % 97]")],
    ),
    Cheat(
        "gate that looks at the target",
        {"normalised rows"},
        [("return (steps[-1], (kinds", "return (np.where(queries % 3 == 0, p, steps[-1]), (kinds")],
    ),
    Cheat("rows that fit the losses", {"target substitution"}, [("= -np.log(p)", "= -np.log(p) - 0.05"), ("kept[index] = whole_row(model, changes, engram, ngram, windows, tokens, start, position)\n", LYING_ROWS)]),
    Cheat("noise in the forward pass", RUNS - {"runs alone"} | {"reproduces the recorded score"}, [("x = start = embed_tokens(p, tokens)\n", "x = start = embed_tokens(p, tokens) + 0.1 * torch.randn(1)\n")]),
    Cheat("tail counted twice", {"scored exactly once", "printed score"}, [("    total = float(losses.sum())\n", "    losses = np.append(losses, losses[-8:])\n    total = float(losses.sum())\n")]),
    Cheat("tail dropped", {"scored exactly once"} | BYTES, [("    tokens = validation_tokens(data_path)\n", "    tokens = validation_tokens(data_path)\n    tokens = tokens[:len(tokens) // 16 * 16]\n")]),
    Cheat("byte-fallback pieces counted as three bytes", BYTES, [("1 if pieces.is_byte(i) else", "3 if pieces.is_byte(i) else")]),
    Cheat("leading spaces counted twice", BYTES, [("len(piece[int(lead[i]):].replace(", "len(piece.replace(")]),
    Cheat("document marks counted as text", BYTES, [("np.zeros(size, np.int16)", "np.ones(size, np.int16)")]),
    Cheat("too large, and a log that says otherwise", {"size", "claimed sizes"}, change=pad, lie=say_small),
    Cheat("telephones home", {"no network"}, [(MAIN, MAIN + NETWORK)]),
    Cheat("reads a file beside it", {"no other files"}, [(MAIN, MAIN + SIBLING)]),
    Cheat("stub that runs a file beside it", RUNS | {"no other files"}, change=stub),
    Cheat("starts a process", {"no processes"}, [(MAIN, MAIN + "    import subprocess\n    subprocess.run(['true'])\n")]),
    Cheat("reads training text", {"no training data at evaluation"}, [("    begin = time.perf_counter()\n    rows_at", TRAINING + "    begin = time.perf_counter()\n    rows_at")]),
    Cheat("validation text in the artifact", {"no validation text in the submission"}, [("loaded = load_artifact(data)", "loaded = load_artifact(data[:-200])")], change=pay_in_artifact),
    Cheat("validation text in the code", {"no validation text in the submission"}, change=pay_in_code),
    Cheat("validation documents in the training text", {"no validation documents in training"}, change=leak_documents),
    Cheat("a part of the validation split", {"validation split"}, change=slice_validation),
    Cheat("numbers of no run", {"reproduces the recorded score"}, lie=better_everywhere),
    Cheat("headline of another run", {"claimed scores"}, lie=better_headline),
    Cheat("a seed of another configuration", {"one configuration"}, lie=second_seed(config_sha256="0" * 64)),
    Cheat("the best of two seeds", {"seeds and statistics", "claimed scores"}, lie=second_seed(val_bpb=9.0)),
    Cheat("an artifact of another run", {"recorded hashes"}, lie=other_artifact),
    Cheat("trained for longer than the track allows", {"training time"}, change=limited(train_seconds=0.5)),
    Cheat("scores for longer than the track allows", {"evaluation time"}, change=limited(eval_seconds=0.01)),
    Cheat("syntax that Python 3.10 refuses", {"byte-compiles"}, [(MAIN, MAIN + "    try:\n        pass\n    except* ValueError:\n        pass\n")]),
]  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    record = honest_record()
    files = {"hints.txt": b"hints", "full_program.py": (record / "train_gpt.py").read_bytes()}
    cheats = [cheat._replace(files=files) for cheat in CHEATS]
    os.environ["OMP_NUM_THREADS"] = "1"
    return score_and_judge(cheats, record, honest_data(), tmp_path_factory.mktemp("cheats"))


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.name)
def test_exactly_the_named_checks_fail(cheat, verdicts):
    failed = {item.name: item.evidence for item in verdicts[cheat.name] if item.verdict == "fail"}
    assert set(failed) == cheat.failing, failed


def test_nothing_about_the_honest_record_is_unknown(verdicts):
    assert {item.verdict for item in verdicts["honest"]} == {"pass"}
