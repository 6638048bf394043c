"""Corpora and tokenizers: fixed order, nothing lost, and bad input is refused with its place."""

import json

import pytest
import zstandard
from data_fixtures import sample_documents, small_tokenizer

from trit.data.corpus import open_corpus, pydocs, split
from trit.data.tokenizer import find_spec, open_tokenizer, train_model, training_lines

# Corpora


def test_pydocs_is_english_and_deterministic():
    documents = pydocs()
    assert 1_500_000 < sum(len(text.encode("utf-8")) for text in documents) < 4_000_000
    assert len(set(documents)) == len(documents) > 300
    assert any("Module heapq" in text or "heapq" in text for text in documents)
    pydocs.cache_clear()
    assert pydocs() == documents


def test_split_is_by_document_and_stable():
    train, val = split(pydocs())
    assert 0.02 < len(val) / len(pydocs()) < 0.09
    assert not set(train) & set(val) and len(train) + len(val) == len(pydocs())
    assert split(reversed(pydocs())) == (train[::-1], val[::-1])


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.zst"])
def test_jsonl_reads_plain_and_compressed(tmp_path, name):
    lines = "".join(json.dumps({"text": text, "source": "x"}) + "\n" for text in ("one", "  ", "zwei\nß")).encode()
    # Two frames: files that were appended to must be read to their end.
    data = lines if name.endswith("l") else zstandard.compress(lines) + zstandard.compress(b'{"text": "three"}')
    (tmp_path / name).write_bytes(data)
    expected = ["one", "zwei\nß"] + ["three"] * name.endswith("zst")
    assert list(open_corpus(tmp_path / name)) == expected


def test_frames_may_end_inside_a_line(tmp_path):
    data = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "zwei\nß", "three")).encode()
    for cut in range(len(data) + 1):
        (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(data[:cut]) + zstandard.compress(data[cut:]))
        assert list(open_corpus(tmp_path / "c.jsonl.zst")) == ["one", "zwei\nß", "three"], cut


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "half', r":2: not JSON"),
        (b'{"body": "x"}', r":2: no field text"),
        (b'{"text": 7}', r":2: no field text"),
        (b"[1]", r":2: no field text"),
        (b'{"text": "\xff"}', r":2: invalid UTF-8 at byte 10"),
        (b'{"text": "\\ud800"}', r":2: text holds half a surrogate"),
    ],
)
def test_broken_json_line_is_named(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message) as caught:
        list(open_corpus(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"not zstd at all", zstandard.compress(b'{"text": "a"}\n' * 9)[:-1], b""])
def test_damaged_zstd_is_named(tmp_path, data):
    path = tmp_path / "c.jsonl.zst"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged zstd"):
        list(open_corpus(path))


def test_text_folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name, text in (("b/z.txt", "last"), ("a.txt", "first"), ("b/a.txt", "middle"), ("note.md", "no"), ("empty.txt", " \n")):
        (tmp_path / name).write_text(text)
    assert list(open_corpus(tmp_path)) == ["first", "middle", "last"]
    (tmp_path / "c.txt").write_bytes(b"abc\xe9")
    with pytest.raises(ValueError, match=r"c\.txt: invalid UTF-8 at byte 3"):
        list(open_corpus(tmp_path))


def test_empty_and_unknown_corpora(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d").mkdir()
    for name in ("c.jsonl", "d"):
        with pytest.raises(ValueError, match="no documents with text"):
            list(open_corpus(tmp_path / name))
    with pytest.raises(ValueError, match=r"possible: packagedocs, pydocs, a \.jsonl"):
        open_corpus(tmp_path / "missing.jsonl")


# Tokenizers


def test_training_lines_lose_no_text_and_stay_short():
    documents = ["x " * 5000 + "\ty\n", "é" * 6000, "a\0b▁c"]
    lines = list(training_lines(documents))
    assert max(len(line.encode("utf-8")) for line in lines) <= 4000
    assert "".join(lines) == "".join(documents).translate(dict.fromkeys(map(ord, "\n\t\0▁")))


def test_tokenizer_training_is_deterministic():
    spec = find_spec("sp_bpe_512") | {"vocab_size": 400}
    assert train_model(spec, sample_documents()[:20]) == train_model(spec, list(sample_documents()[:20]))


def test_tokenizer_errors(tmp_path):
    with pytest.raises(ValueError, match="possible: byte260, sp_bpe_512"):
        find_spec("sp_bpe_513")
    (tmp_path / "x.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        open_tokenizer(tmp_path / "x.model")
    with pytest.raises(ValueError, match="training failed"):
        train_model(find_spec("sp_bpe_512") | {"vocab_size": 10}, ["abc"])


def test_special_ids_must_be_the_contests(tmp_path):
    foreign = find_spec("sp_bpe_512") | {"vocab_size": 400, "trainer_overrides": {"pad_id": -1, "bos_id": 0, "eos_id": 1, "unk_id": 2}}
    (tmp_path / "x.model").write_bytes(train_model(foreign, sample_documents()[:20]))
    with pytest.raises(ValueError, match="trained with 0, 1, 2, 3"):
        open_tokenizer(tmp_path / "x.model")


def test_byte260_decodes_anything():
    tokenizer = small_tokenizer("byte260")
    assert tokenizer.encode("Aé").tolist() == [69, 199, 173]
    assert tokenizer.decode([1, 69, 199, 173, 2, 299]) == "Aé"
    assert tokenizer.decode([199]) == "\ufffd"
