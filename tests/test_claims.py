"""What a record claims against what was measured, claim by claim, on an entry that is made up."""

import hashlib
import math

import numpy as np
import pytest

from trit.proof import claims, rebuild
from trit.proof.checks import split_documents
from trit.proof.entry import Entry, track_limits
from trit.report.record import package_sha256

LIBRARIES, HARDWARE = {"torch": "2.0"}, "1 x cpu (some)"


def entry(track="non_record_16mb", **said):
    """An `Entry` with a program, an artifact, and what its submission.json says beside their true hashes."""
    program, artifact = b"program", b"artifact"
    named = {"train_gpt.py": hashlib.sha256(program).hexdigest(), "artifact.trit": hashlib.sha256(artifact).hexdigest()}
    config = {"model": {"vocab_size": 260}, "eval": {}, "track": {"track": track}}
    submission = {"sha256": named, "val_bpb": 1.5, "versions": LIBRARIES, "hardware": HARDWARE} | said
    return Entry(None, program, artifact, config, submission, {}, "", "", None, [], np.zeros(0), "byte260", [])


def test_hashes_are_those_of_the_files():
    assert claims.recorded_hashes(entry()).verdict == "pass"
    for name in ("train_gpt.py", "artifact.trit"):
        named = entry().submission["sha256"]
        other = claims.recorded_hashes(entry(sha256=named | {name: hashlib.sha256(b"another").hexdigest()}))
        assert other.verdict == "fail" and f"differing: {name}" in other.evidence
        assert claims.recorded_hashes(entry(sha256={name: named[name]})).verdict == "unknown"


@pytest.mark.parametrize(
    "gap, hardware, libraries, verdict",
    [
        (0.0, HARDWARE, LIBRARIES, "pass"),
        (9e-7, HARDWARE, LIBRARIES, "pass"),
        (2e-6, HARDWARE, LIBRARIES, "fail"),
        (-2e-6, HARDWARE, LIBRARIES, "fail"),
        (2e-6, "another", LIBRARIES, "pass"),
        (2e-6, HARDWARE, {"torch": "2.1"}, "pass"),
        (2e-6, HARDWARE, {}, "pass"),
        (2e-4, "another", LIBRARIES, "fail"),
        (math.inf, "another", LIBRARIES, "fail"),
    ],
)
def test_the_same_machine_must_give_the_same_score_and_another_nearly(gap, hardware, libraries, verdict):
    assert claims.reproduces(entry(), {"val_bpb": 1.5 + gap}, libraries, hardware).verdict == verdict
    seeds = entry(val_bpb=3.0, seed_results={"1": {"val_bpb": 1.5}, "2": {"val_bpb": 4.5}})
    assert claims.reproduces(seeds, {"val_bpb": 4.5 + gap}, libraries, hardware).verdict == verdict


@pytest.mark.parametrize("values", [(1.0, 3.0), (2.0, 2.5, 4.5)])
def test_the_deviation_of_seeds_is_that_of_a_sample(values):
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    results = {str(seed): {"val_loss": value, "val_bpb": value} for seed, value in enumerate(values)}
    for freedom, verdict in ((len(values) - 1, "pass"), (len(values), "fail")):
        spread = math.sqrt(squares / freedom)
        said = {"val_loss": mean, "val_bpb": mean, "val_loss_std": spread, "val_bpb_std": spread}
        found = claims.seeds(entry(seeds=list(range(len(values))), seed_results=results, **said))
        assert found.verdict == verdict, found


@pytest.mark.parametrize("built, verdict", [(b"program", "pass"), (b"another", "fail"), (b"other", "fail")])
def test_only_the_same_bytes_are_a_rebuild(built, verdict, monkeypatch):
    class Built:
        wrapped, sha256 = built, "0"

    monkeypatch.setattr(rebuild, "from_dict", lambda config: None)
    monkeypatch.setattr(rebuild, "bundle", lambda config, **how: Built)
    assert rebuild.same_build(entry(versions={"trit": package_sha256()})).verdict == verdict
    assert rebuild.same_build(entry(versions={"trit": "another"})).verdict == verdict.replace("fail", "unknown")


def test_of_two_limits_the_stricter_holds_and_0_is_none():
    config = entry("10min_16mb").config
    for own, wanted in ((99_000_000, 16_000_000), (1_000, 1_000), (0, 16_000_000)):
        config["track"] |= {"cap_bytes": own, "train_seconds": 0.0, "eval_seconds": 30.0}
        assert track_limits(config) == {"cap_bytes": wanted, "train_seconds": 600.0, "eval_seconds": 30.0}


@pytest.mark.parametrize("tokens", [[1, 5, 6, 1, 7], [5, 6, 1, 7, 1], [5, 6], [1], [1, 1]])
def test_documents_begin_at_each_bos_and_a_text_may_begin_inside_one(tokens):
    parts = split_documents(np.array(tokens))
    assert np.concatenate(parts).tolist() == tokens
    assert all(1 not in part[1:] for part in parts) and all(part[0] == 1 for part in parts[1:])
