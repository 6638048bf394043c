"""The certificate's checks one by one, on made-up measurements; its command line on a tiny record."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cheat_fixtures import honest_data, scored_records
from store import copy

from trit.bundle.alone import Event, JobResult, Session
from trit.data.byte_count import byte_table
from trit.data.tokenizer import open_tokenizer
from trit.eval import certify
from trit.proof import checks, claims, rebuild
from trit.proof.entry import config_sha256, read_entry, track_limits
from trit.proof.replay import cut_points, plan_replay, replay_length
from trit.proof.touched import touched_checks
from trit.report.record import package_sha256

ROOT = Path(__file__).resolve().parent.parent
EVALUATION = {
    "eval_seq_len": 16,
    "eval_stride": 8,
    "eval_batch_seqs": 3,
    "eval_chunk_tokens": 40,
    "memory_chunk_tokens": 10,
    "eval_segment_tokens": 0,
}
BYTES = byte_table("byte260", 260)


def ids(*texts):
    """byte260 tokens of documents."""
    return np.concatenate([np.array([1, *(np.frombuffer(text, np.uint8) + 4)]) for text in texts])


def causal(tokens):
    """A made-up scorer: the loss depends on the target and on the three tokens before it."""
    past = np.stack([np.pad(tokens, (k, 0))[: len(tokens) - 1] for k in range(3)])
    return (past * np.array([[1], [3], [7]])).sum(0) % 11 + tokens[1:] / 100


def leaky(tokens):
    """Sees the token after the target."""
    return causal(tokens) + np.append(tokens[2:], 0)


def prefix_replay(score, tokens, vocab_size, cuts, seed=0):
    """Replace the tail of `tokens` from each index in `cuts` by noise: every loss before it must stay the same, bit for bit.

    `score` maps tokens (n,) to losses (n - 1,).
    """
    generator, tokens, runs = np.random.default_rng(seed), np.asarray(tokens), []
    for first in cuts:
        changed = tokens.copy()
        changed[first:] = generator.integers(0, vocab_size, len(tokens) - first)
        runs.append((first, score(changed)))
    return checks.prefix_kept("prefix replay", score(tokens), runs, 0.0)


def test_prefix_replay_passes_a_causal_scorer_and_catches_a_leak():
    tokens = np.random.default_rng(1).integers(0, 50, 300)
    assert prefix_replay(causal, tokens, 50, [2, 17, 100, 299]).verdict == "pass"
    assert prefix_replay(leaky, tokens, 50, [17]).verdict == "fail"
    assert prefix_replay(causal, tokens, 50, []).verdict == "fail"  # nothing was tried
    short = checks.prefix_kept("x", np.ones(5), [(3, np.ones(4))], 0.0)
    assert short.verdict == "fail" and "4 losses instead of 5" in short.evidence
    within = [(4, np.array([1.0, 1.0005, 1.0, 9.0, 9.0]))]
    assert [checks.prefix_kept("x", np.ones(5), within, t).verdict for t in (0.0, 1e-3)] == ["fail", "pass"]
    nothing = [(4, np.array([1.0, np.nan, 1.0, 9.0, 9.0]))]
    assert checks.prefix_kept("x", np.ones(5), nothing, 1e-3).verdict == "fail"


def test_byte_counts_are_those_of_the_decoded_text():
    tokenizer = open_tokenizer("byte260")

    def verdict(tokens, printed):
        documents, texts = checks.split_documents(tokens), checks.decoded_documents(tokens, tokenizer)
        return checks.byte_accounting(documents, texts, BYTES, printed).verdict

    text = ids("naïve text".encode(), b"and more")
    assert verdict(text, 19) == "pass" and verdict(text, 20) == "fail"
    assert verdict(ids("naïve".encode()[:-3]), 4) == "fail"  # ends inside a character: decoding replaces it
    assert [len(d) for d in checks.split_documents([1, 5, 6, 1, 7, 1])] == [3, 2, 1]


def test_the_contests_splits_are_recognised():
    assert checks.contest_constants(1000, 3000, 5) is None
    assert checks.contest_constants(62_021_845, 151_080_891, 50_000).verdict == "pass"
    assert checks.contest_constants(62_021_845, 155_000_000, 50_000).verdict == "fail"
    assert checks.contest_constants(62_021_845, 151_080_891, 49_000).verdict == "fail"
    assert "10,000 documents" in checks.contest_constants(9_662_464, 1, 1).evidence


def test_every_position_once_and_the_printed_score():
    losses = np.array([1.0, 2.0, 3.0])
    assert checks.scored_once(losses, 3, 3).verdict == "pass"
    for wrong in ((losses, 4, 3), (losses, 4, 4), (losses, 3, 4), (np.array([1.0, np.inf, 1.0]), 3, 3)):
        assert checks.scored_once(*wrong).verdict == "fail"
    bits = 6 / math.log(2) / 5
    assert checks.printed_score(losses, 5, 2.0, round(bits, 8)).verdict == "pass"
    assert checks.printed_score(losses, 5, 2.00001, bits).verdict == "fail"
    assert checks.printed_score(losses, 6, 2.0, bits).verdict == "fail"
    assert checks.printed_score(losses, 5, math.nan, bits).verdict == "fail"


def test_rows_must_sum_to_one_and_give_the_losses():
    generator = np.random.default_rng(2)
    logits, targets = generator.normal(size=(20, 9)), generator.integers(0, 9, 20)
    rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -rows[np.arange(20), targets]
    assert checks.normalised(rows, losses, targets).verdict == "pass"
    assert checks.normalised(rows, losses - 0.01, targets).verdict == "fail"
    assert checks.normalised(rows + 0.01, losses - 0.01, targets).verdict == "fail"
    assert checks.normalised(np.full_like(rows, -np.inf), losses, targets).verdict == "fail"
    assert "ROWS_AT" in checks.normalised([], [], []).evidence
    probe = (rows[0], rows[0], 3, -rows[0, 3])
    assert checks.target_free([probe], 0.0).verdict == "pass"
    assert checks.target_free([(rows[0], rows[1], 3, -rows[0, 3])], 0.0).verdict == "fail"
    assert checks.target_free([(rows[0], rows[0], 3, 0.1 - rows[0, 3])], 0.0).verdict == "fail"
    assert checks.target_free([], 0.0).verdict == "fail"


def test_small_checks():
    assert checks.within_budget(10, 90, 100).verdict == "pass" and checks.within_budget(11, 90, 100).verdict == "fail"
    assert checks.within_time("x", 5, 4).verdict == "fail" and checks.within_time("x", 5, 0).verdict == "pass"
    assert checks.same_losses("x", np.ones(3), np.ones(3), "a").verdict == "pass"
    assert checks.same_losses("x", np.ones(3), np.ones(3) + 1e-12, "a").verdict == "fail"
    assert checks.same_losses("x", np.ones(3), np.ones(2), "a").verdict == "fail"
    assert checks.same_losses("x", np.zeros(0), np.ones(2), "a").verdict == "fail"
    assert checks.same_losses("x", np.ones(2), np.array([1.0, np.nan]), "a").verdict == "fail"
    row = np.log([0.5, 0.25, 0.25])
    assert checks.target_free([(row, row, 1, -row[1])], 0.0).verdict == "pass"
    for probes in ([], [(row, row, 1, 0.5)], [(row, row[::-1], 1, -row[1])]):
        assert checks.target_free(probes, 0.0).verdict == "fail"


def test_replays_cover_every_border():
    tokens = np.random.default_rng(0).integers(0, 50, 1000)
    length = replay_length(EVALUATION, 1000)
    assert length == 127 and replay_length(EVALUATION, 50) == 50
    cuts = cut_points(EVALUATION, length, 99, np.random.default_rng(0))
    # first targets of window and chunk, of the next memory chunk and window; their neighbours; the last token
    assert {8, 16, 17, 24, 27, 41, 42, 80, length - 1} <= set(cuts) and min(cuts) >= 2
    replay = plan_replay(EVALUATION, tokens[:length], 50, 6)
    assert len(replay.probes) == 6
    for first, changed in replay.probes:
        assert (changed[:first] == replay.tokens[:first]).all() and changed[first] != replay.tokens[first]
        assert first - 1 in replay.rows_at and len(changed) == length
    again = plan_replay(EVALUATION, tokens[:length], 50, 6)
    assert all((a.tokens == b.tokens).all() for a, b in zip(replay.probes, again.probes))
    assert plan_replay(EVALUATION, tokens[:8], 50, 6).probes
    halves = plan_replay(EVALUATION, tokens[:length] % 2, 2, 20)
    assert all(changed[first] != halves.tokens[first] for first, changed in halves.probes), "a token drawn twice is another one"


@pytest.mark.parametrize("segment", [17, 40, 100])
def test_replays_cover_several_segments(segment):
    evaluation = EVALUATION | {"eval_segment_tokens": segment}
    length, stride = replay_length(evaluation, 10000), segment - 16
    assert length > segment + 2 * stride and length > 3 * 40
    cuts = cut_points(evaluation, length, 99, np.random.default_rng(0))
    assert {segment, segment + 1, segment + stride, length - 1} <= set(cuts)


FOLDER, HOME, PYTHON = "/run/0", "/run/home", "/python"


@pytest.mark.parametrize(
    ("event", "failing"),
    [
        (Event("open", f"{FOLDER}/train_gpt.py", False, "the program", 0.1), None),
        (Event("open", f"{FOLDER}/train_gpt.py", True, "the program", 0.1), "no other files"),
        (Event("open", f"{FOLDER}/losses", True, "the program", 0.1), None),
        (Event("open", f"{FOLDER}/hints.bin", False, "the program", 0.1), "no other files"),
        (Event("open", "/run/1/losses", False, "the program", 0.1), "no other files"),
        (Event("open", "/home/me/notes.txt", False, "torch", 0.1), "no other files"),
        (Event("open", f"{HOME}/cache", True, "torch", 0.1), None),
        (Event("open", f"{PYTHON}/lib/json.py", False, "import", 0.1), None),
        (Event("open", f"{PYTHON}/lib/json.py", False, "the program", 0.1), "no other files"),
        (Event("open", f"{PYTHON}/lib/pydoc_data/topics.py", False, "import", 0.1), "no other files"),
        (Event("open", f"{PYTHON}/lib/site-packages/matplotlib/colors.py", False, "import", 0.1), "no other files"),
        (Event("open", f"{PYTHON}/lib/site-packages/scipy/stats.py", False, "import", 0.1), None),
        (Event("open", f"{PYTHON}/lib/json.py", True, "torch", 0.1), "no other files"),
        (Event("open", "/proc/self/maps", False, "torch", 0.1), None),
        (Event("open", "/proc/12/environ", False, "the program", 0.1), "no other files"),
        (Event("open", "/dev/urandom", False, "numpy", 0.1), None),
        (Event("open", "/dev/shm/kept", True, "the program", 0.1), "no other files"),
        (Event("os.rename", f"{FOLDER}/losses.partial", True, "the program", 0.1), None),
        (Event("glob.glob", "data/*_val_*.bin", False, "the program", 0.1), None),
        (Event("glob.glob", "data/*_train_*.bin", False, "the program", 0.1), "no training data at evaluation"),
        (Event("open", "/data/fineweb_train_000000.bin", False, "the program", 0.1), "no training data at evaluation"),
        (Event("open", f"{PYTHON}/lib/torch/_train_step.py", False, "import", 0.1), None),
        (Event("socket.getaddrinfo", "example.org 80", False, "the program", 0.1), "no network"),
        (Event("subprocess.Popen", "['cat', 'x']", False, "the program", 0.1), "no processes"),
        (Event("subprocess.Popen", "['/usr/bin/g++', 'kernel.cpp']", False, "torch", 0.1), None),
        (Event("subprocess.Popen", "['/usr/bin/curl', 'x']", False, "torch", 0.1), "no processes"),
        (Event("os.fork", "", False, "the program", 0.1), "no processes"),
        (Event("ctypes.dlopen", f"{PYTHON}/lib/libtorch.so", False, "torch", 0.1), None),
        (Event("ctypes.dlopen", "own.so", False, "the program", 0.1), "no processes"),
    ],
)
def test_what_may_be_touched(event, failing):
    result = JobResult(Path(FOLDER), (f"{FOLDER}/train_gpt.py",), 0, "", "", 1.0, (event,))
    session = Session([result], "audit hook", (PYTHON,), HOME, {}, "cpu", False)
    assert [item.name for item in touched_checks(session) if item.verdict == "fail"] == ([failing] if failing else [])


def test_a_run_that_failed_has_no_scores(tmp_path):
    """Also where it wrote losses before it failed; rows are cut to whole ones."""
    losses, rows = np.arange(3.0), np.arange(7.0)
    losses.tofile(tmp_path / certify.LOSSES)
    done = JobResult(tmp_path, (), 0, "", "", 1.0, ())
    found = certify.read_scores(done, 3)
    assert np.array_equal(found.losses, losses) and found.rows.shape == (0, 3)
    rows.tofile(tmp_path / certify.ROWS)
    assert certify.read_scores(done, 3).rows.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert certify.read_scores(done._replace(returncode=1), 3) is None
    (tmp_path / certify.LOSSES).unlink()
    assert certify.read_scores(done, 3) is None


def test_the_log_is_read_at_the_start_of_lines_only():
    log = 'log.line(f"final_ternary_roundtrip_exact val_loss:1 val_bpb:2")\nfinal_int8_zlib_roundtrip_exact val_loss:1.5 val_bpb:2.5\n'
    assert claims.final_line(log + "final_ternary_roundtrip_exact val_loss:1.25 val_bpb:2.25 eval_time:5ms\n  final_") == {
        "val_loss": 1.25,
        "val_bpb": 2.25,
    }
    assert claims.final_line("nothing") is None
    assert claims.final_line("final_ternary_roundtrip_exact val_loss:nan val_bpb:inf")["val_bpb"] == math.inf


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """(record folder with its author's claims, data folder)."""
    return copy(scored_records()[7], tmp_path_factory.mktemp("honest") / "record"), honest_data()


def test_limits_are_the_stricter_of_record_and_track(honest):
    config = read_entry(*honest).config
    assert track_limits(config) == {"cap_bytes": 60000, "train_seconds": 0, "eval_seconds": 0}
    config["track"] = {"track": "10min_16mb", "cap_bytes": 99_000_000, "train_seconds": 0.0, "eval_seconds": 30.0}
    assert track_limits(config) == {"cap_bytes": 16_000_000, "train_seconds": 600.0, "eval_seconds": 30.0}
    assert config_sha256({"a": 1, "b": [2.5]}) == config_sha256(json.loads('{"b":\n[2.5], "a": 1}'))


def test_seeds_and_their_statistics(honest):
    entry = read_entry(*honest)
    submission = entry.submission
    first, second = ({"val_loss": loss, "val_bpb": bpb} for loss, bpb in ((1.0, 2.0), (3.0, 4.0)))
    both = submission | {"seeds": [1, 2], "seed_results": {"1": first, "2": second}}
    both |= {"val_loss": 2.0, "val_bpb": 3.0, "val_loss_std": math.sqrt(2), "val_bpb_std": math.sqrt(2)}
    assert claims.seeds(entry._replace(submission=both)).verdict == "pass"
    for wrong in ({"val_bpb": 2.0}, {"val_bpb_std": 0.0}, {"seeds": [1, 1]}, {"seeds": [1]}, {"seed_results": {}}):
        assert claims.seeds(entry._replace(submission=both | wrong)).verdict == "fail", wrong
    record_track = entry.config | {"track": entry.config["track"] | {"track": "10min_16mb"}}
    assert claims.seeds(entry._replace(config=record_track)).verdict == "unknown"
    assert claims.config_hash(entry._replace(submission=both)).verdict == "unknown"


def test_a_rebuild_proves_only_what_it_can(honest, monkeypatch):
    entry = read_entry(*honest)
    entry.submission["versions"]["trit"] = package_sha256()

    class Built:
        wrapped, sha256 = entry.program, "0"

    monkeypatch.setattr(rebuild, "bundle", lambda config, library, shake, codecs, remember: Built)
    assert rebuild.same_build(entry).verdict == "pass"
    other = entry._replace(program=b"edited")
    assert rebuild.same_build(other).verdict == "fail"
    foreign = entry.submission | {"versions": {"trit": "another"}}
    assert rebuild.same_build(other._replace(submission=foreign)).verdict == "unknown"
    assert rebuild.same_build(entry._replace(config=entry.config | {"more": {}})).verdict == "unknown"
    assert rebuild.same_build(entry._replace(submission=entry.submission | {"library": "../x"})).verdict == "unknown"


REBUILD = """
import sys
from trit.bundle.bundle import bundle
from trit.config_load import from_dict, load, to_dict
from trit.proof import rebuild
from types import SimpleNamespace
config = load("configs/demo.toml", {}, ["eval.evaluation_only=true"])[0]
program = open(sys.argv[1], "rb").read() if len(sys.argv) > 1 else bundle(config, codecs=rebuild.ALL_CODECS).wrapped
sys.stdout.buffer.write(program) if len(sys.argv) == 1 else print(
    rebuild.same_build(SimpleNamespace(program=program, config=to_dict(config), submission={})))
"""


def test_a_rebuild_gives_the_same_bytes_whatever_the_hash_seed(tmp_path):
    for seed, arguments in (("1", []), ("2", [str(tmp_path / "train_gpt.py")])):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", REBUILD, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=300)
        (tmp_path / "train_gpt.py").write_bytes(done.stdout) if not arguments else None
    assert b"verdict='pass'" in done.stdout and b"shaken, sha256" in done.stdout


def test_a_stranger_judges_a_record(honest, tmp_path, capsys, monkeypatch):
    record, data = honest
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = {path.name: path.read_bytes() for path in record.iterdir()}
    assert certify.main([str(record), "--data", str(data), "--json"]) == 0
    printed = capsys.readouterr()
    certificate, printed = json.loads(printed.out), printed.err
    assert {item["verdict"] for item in certificate["checks"]} == {"pass"} and certificate["made_by"]["replayed_tokens"] == 127
    assert certificate["summary"] == {"pass": len(certificate["checks"]), "fail": 0, "unknown": 0}
    names = [item["name"] for item in certificate["checks"]]
    assert len(names) == len(set(names)) >= 27 and all(f"pass    {name}: " in printed for name in names)
    assert {path.name: path.read_bytes() for path in record.iterdir()} == before


def test_what_is_absent_is_unknown_and_what_is_wrong_fails(honest, tmp_path, capsys, monkeypatch):
    record, data = honest
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(certify, "same_build", lambda entry: checks.unknown("rebuild is identical", "not here"))
    (tmp_path / "data").mkdir()
    for path in data.glob("*_val_*"):
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    assert certify.main([str(record), "--data", str(tmp_path / "data"), "--quick", "--tokens", "60"]) == 0
    printed = capsys.readouterr().out
    assert "unknown no validation documents in training: no training shards" in printed and "--train-data" in printed
    assert "unknown reproduces the recorded score" in printed and "4 unknown (not proven" in printed
    (record / "requirements.txt").rename(record / "elsewhere.txt")
    assert certify.main([str(record), "--data", str(data), "--quick", "--tokens", "60"]) == 1
    assert "fail    record is complete: missing files: requirements.txt" in capsys.readouterr().out
    (record / "elsewhere.txt").rename(record / "requirements.txt")


def test_what_cannot_be_judged_says_what_is_missing(honest, tmp_path, capsys):
    record, data = honest
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "empty")], "no train_gpt.py, so this is no record"),
        ([str(record), "--data", str(tmp_path / "empty")], "no *_val_*.bin shards"),
    ):
        with pytest.raises(SystemExit) as ended:
            certify.main(arguments)
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_every_check_is_explained(honest):
    entry = read_entry(*honest)
    plan = certify.plan_runs(entry)
    missing = JobResult(Path("/nowhere"), (), 1, "", "", 1.0, ())
    names = {item.name for item in certify.judge(entry, plan, Session([missing] * len(plan.jobs), "", (), "", {}, "cpu", False))}
    names |= {"contest constants", "rebuild is identical", "round trip", "package agrees", "validation text unread before the artifact"}
    page = (Path(certify.__file__).parents[2] / "docs" / "legality.md").read_text()
    assert not [name for name in names if f"**{name}**" not in page]


def test_the_page_lists_every_planted_cheat():
    from test_cheats import CHEATS

    page = (Path(certify.__file__).parents[2] / "docs" / "legality.md").read_text()
    rows = page.partition("## Planted cheats")[2]
    absent = [cheat.name for cheat in CHEATS[1:] if cheat.name not in rows and "validation text in the" not in cheat.name]
    assert not absent and all(name in rows for cheat in CHEATS for name in cheat.failing - {"same twice"})
