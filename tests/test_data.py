"""Shards and prepared folders: bad input is refused with its place, and nothing stays half-written."""

import json
import os
import shutil

import numpy as np
import pytest
from data_fixtures import sample_documents, small_tokenizer

from trit.data import prepare as prepare_module
from trit.data.corpus import open_corpus, pydocs, split
from trit.data.files import atomic_write
from trit.data.manifest import read_manifest, resolve_tokenizer
from trit.data.prepare import main, prepare
from trit.data.shards import read_shard, shard_files, write_shard
from trit.data.tokenizer import find_spec
from trit.proof.contamination import shared_documents

# Shards


def test_shard_round_trip_is_the_contest_format(tmp_path):
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.array([1, 2, 65535]))
    data = path.read_bytes()
    assert len(data) == 1024 + 6 and data[:12] == np.array([20240520, 1, 3], "<i4").tobytes() and not any(data[12:1024])
    tokens = read_shard(path, 65536)
    assert tokens.tolist() == [1, 2, 65535] and tokens.dtype == np.uint16 and not tokens.flags.writeable


def damaged(data, damage):
    header = np.frombuffer(data[:1024], "<i4").copy()
    if damage == "magic":
        header[0] = 20240521
    if damage == "version":
        header[1] = 2
    if damage == "negative":
        header[2] = -1
    if damage == "none":
        return header[:2].tobytes() + bytes(1016)
    if damage == "header":
        return data[:1000]
    return header.tobytes() + data[1024:] + {"short": b"", "long": b"\0\0", "odd": b"\0"}.get(damage, b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("magic", "magic 20240521 version 1 is no shard"),
        ("version", "version 2 is no shard"),
        ("negative", "header of -1 tokens"),
        ("none", "at least one token"),
        ("header", "1000 bytes is no shard"),
        ("long", "1046 bytes, but a header of 10 tokens asks for 1044"),
        ("odd", "1045 bytes"),
    ],
)
def test_bad_shards_are_refused(tmp_path, damage, message):
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.arange(10))
    path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.raises(ValueError, match=message) as caught:
        read_shard(path, 1024)
    assert str(path) in str(caught.value)


def test_truncated_shard_is_refused(tmp_path):
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.arange(10))
    os.truncate(path, 1040)
    with pytest.raises(ValueError, match="1040 bytes"):
        read_shard(path, 1024)


def test_foreign_id_is_named_with_its_position(tmp_path, monkeypatch):
    monkeypatch.setattr("trit.data.shards.CHECK_TOKENS", 4)
    path = tmp_path / "x_train_000000.bin"
    write_shard(path, np.array([5, 6, 7, 1, 2, 511, 512, 600]))
    assert len(read_shard(path, 601)) == 8
    with pytest.raises(ValueError, match="token 6 is 512, outside model.vocab_size=512"):
        read_shard(path, 512)
    # The smallest vocabulary that holds all ids is let in, the one below it is not.
    with pytest.raises(ValueError, match="token 7 is 600, outside model.vocab_size=600"):
        read_shard(path, 600)
    with pytest.raises(ValueError, match="token 1 is 70000"):
        write_shard(path, np.array([1, 70000]))
    with pytest.raises(ValueError, match="token 0 is -1"):
        write_shard(path, np.array([-1]))


def test_shard_files_are_sorted_and_their_absence_explained(tmp_path):
    for number in (2, 0, 1):
        write_shard(tmp_path / f"x_train_{number:06d}.bin", np.arange(3))
    assert [path[-5] for path in shard_files(tmp_path, "train")] == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"no \*_val_\*\.bin shards; make them with python -m trit\.data\.prepare"):
        shard_files(tmp_path, "val")


def test_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def broken():
        yield b"new"
        raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        atomic_write(path, broken())
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


# Prepared folders


@pytest.fixture
def text_files(tmp_path):
    """Two JSON-lines files of small documents, {"train": path, "val": path}."""
    parts = {"train": sample_documents()[:30], "val": sample_documents()[30:36]}
    for part, documents in parts.items():
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return {part: str(tmp_path / f"{part}.jsonl") for part in parts}


def make(corpora, out, name="byte260", lines=None, **settings):
    spec = find_spec(name)
    spec = spec if name == "byte260" else spec | {"vocab_size": 400}
    return prepare(corpora, out, spec, say=lines.append if lines is not None else lambda line: None, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_prepared_shards_hold_the_documents(tmp_path, text_files):
    out = tmp_path / "data" / "small"
    manifest = make(text_files, out, shard_tokens=20_000)
    assert len(shard_files(out, "train")) == manifest["splits"]["train"]["files"] > 1
    for part in ("train", "val"):
        stream = np.concatenate([read_shard(path, 260) for path in shard_files(out, part)])
        documents = [bytes((ids - 4).tolist()).decode() for ids in np.split(stream, np.flatnonzero(stream == 1))[1:] for ids in [ids[1:]]]
        assert documents == list(open_corpus(text_files[part]))
        facts = manifest["splits"][part]
        assert facts["counted_bytes"] == facts["text_bytes"] == sum(len(text.encode()) for text in documents)
        assert facts["tokens"] == len(stream) and facts["documents"] == len(documents) and not facts["byte_mismatches"]
    assert resolve_tokenizer(out) == "byte260"
    assert os.listdir(out.parent) == ["small"]


def test_prepare_is_deterministic_and_idempotent(tmp_path, text_files):
    lines, first, second = [], tmp_path / "one" / "set", tmp_path / "two" / "set"
    make(text_files, first, "sp_bpe_512", lines)
    before = contents(first)
    make(text_files, second, "sp_bpe_512", lines)
    assert contents(second) == before and "complete already" not in " ".join(lines)
    make(text_files, first, "sp_bpe_512", lines)
    assert "complete already" in lines[-1] and contents(first) == before


def test_prepare_again_after_damage_or_change(tmp_path, text_files):
    out = tmp_path / "data"
    make(text_files, out, shard_tokens=20_000)
    before = contents(out)
    os.truncate(shard_files(out, "train")[0], 1100)
    make(text_files, out, shard_tokens=20_000)
    assert contents(out) == before
    make(text_files, out, shard_tokens=1_000_000)
    assert len(shard_files(out, "train")) == 1, "shards of the earlier folder must not stay"


def test_error_leaves_the_old_folder_and_nothing_half_written(tmp_path, text_files, monkeypatch):
    out = tmp_path / "data" / "set"
    make(text_files, out)
    before = contents(out)
    with open(text_files["train"], "a") as file:
        file.write('{"text": "one more"}\n{"text": "broken')
    with pytest.raises(ValueError, match=r"train\.jsonl:32: not JSON"):
        make(text_files, out)
    with open(text_files["train"], "a") as file:
        file.write('"}')

    def full_disk(path, tokens):
        raise OSError("no space left")

    monkeypatch.setattr(prepare_module, "write_shard", full_disk)
    with pytest.raises(OSError, match="no space"):
        make(text_files, out)
    with pytest.raises(OSError, match="no space"):
        make(text_files, out.parent / "fresh")
    assert os.listdir(out.parent) == ["set"] and contents(out) == before


def test_foreign_folder_is_not_replaced(tmp_path, text_files):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("keep")
    with pytest.raises(ValueError, match="no data folder"):
        make(text_files, tmp_path / "data")


@pytest.mark.parametrize("name", ["byte260", "sp_bpe_512"])
def test_training_documents_of_the_validation_split_are_dropped(name, tmp_path, text_files):
    """Also the ones that a normalising tokenizer would make equal; shards and tokenizer are those of the clean corpus."""
    lines = []
    clean = make(text_files, tmp_path / "clean" / "set", name, lines)
    assert clean["dropped_documents"] == 0 and not any("dropped" in line for line in lines)
    held_out = sample_documents()[30]
    with open(text_files["train"], "a") as file:
        for text in (held_out, "  " + held_out.replace(" ", "\n ") + "\n", held_out.replace("1", "１")):
            file.write(json.dumps({"text": text}) + "\n")
    manifest = make(text_files, tmp_path / "data" / "set", name, lines)
    assert manifest.pop("dropped_documents") == 3 and "dropped: 3 training documents" in " ".join(lines)
    assert manifest == {key: value for key, value in clean.items() if key != "dropped_documents"}
    before, after = contents(tmp_path / "clean" / "set"), contents(tmp_path / "data" / "set")
    assert {name: data for name, data in before.items() if name != "manifest.json"}.items() <= after.items()
    shards = [shard_files(tmp_path / "data" / "set", part) for part in ("train", "val")]
    assert shared_documents(*shards).summary()[0]


def test_nothing_but_validation_documents_to_train_on(tmp_path, text_files):
    with pytest.raises(ValueError, match="no document falls into the train split"):
        make({"train": text_files["val"], "val": str(shutil.copy(text_files["val"], tmp_path / "copy.jsonl"))}, tmp_path / "data")


def test_split_without_validation_documents(tmp_path):
    train = next(text for text in pydocs() if not split([text])[1])
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": train}) + "\n")
    corpus = str(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match="no document falls into the val split"):
        make({"train": corpus, "val": corpus}, tmp_path / "data")


def test_tokenizer_mismatch_is_refused(tmp_path, text_files):
    make(text_files, tmp_path / "sp", "sp_bpe_512")
    own = resolve_tokenizer(tmp_path / "sp")
    assert resolve_tokenizer(tmp_path / "sp", own) == own
    other = small_tokenizer("contest_bpe_1024").path
    for foreign in (other, "byte260"):
        with pytest.raises(ValueError, match="does not belong to the shards"):
            resolve_tokenizer(tmp_path / "sp", foreign)
    with pytest.raises(ValueError, match="no such tokenizer"):
        resolve_tokenizer(tmp_path / "sp", str(tmp_path / "none.model"))
    bare = tmp_path / "bare"
    bare.mkdir()
    assert resolve_tokenizer(bare, other) == other
    with pytest.raises(ValueError, match="set tokenizer_path or use"):
        resolve_tokenizer(bare)
    (bare / "manifest.json").write_text('{"version": 9}')
    with pytest.raises(ValueError, match="set tokenizer_path or use"):
        resolve_tokenizer(bare)
    (bare / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not a JSON manifest"):
        resolve_tokenizer(bare, other)


def test_command_line(tmp_path, text_files, capsys):
    arguments = ["--train", text_files["train"], "--val", text_files["val"], "--out", str(tmp_path / "data")]
    assert main([*arguments, "--vocab-file", small_tokenizer("contest_bpe_1024").path]) is None
    manifest = read_manifest(tmp_path / "data")
    assert manifest["tokenizer"]["file"] == "contest_bpe_1024.model" and manifest["splits"]["val"]["byte_mismatches"] == 0
    with pytest.raises(SystemExit, match="^error: tokenizer nonsense: not in"):
        main([*arguments, "--tokenizer", "nonsense"])
    assert "tokens per byte" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--train", "x", "--out", str(tmp_path / "data")])
