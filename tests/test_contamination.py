"""Validation documents among training shards are found, whatever the cuts; equal hashes alone accuse nobody."""

import numpy as np
import pytest

from trit.data.shards import write_shard
from trit.proof import contamination
from trit.proof.contamination import DocumentHasher, SharedDocument, TokenStream, shared_documents


def write_documents(folder, split, documents, shard_tokens, head=()):
    """Shards of documents (sequences of ids without BOS) in pieces of `shard_tokens`; returns their paths."""
    stream = np.concatenate([np.array(head, int)] + [np.array([1, *document], int) for document in documents])
    paths = [folder / f"x_{split}_{number:06d}.bin" for number in range(-(-len(stream) // shard_tokens))]
    for number, path in enumerate(paths):
        write_shard(path, stream[number * shard_tokens : (number + 1) * shard_tokens])
    return paths


def random_documents(generator, count, longest):
    """Documents of few different ids, so that many are equal, empty or begin alike."""
    return [tuple(generator.integers(2, 4, generator.integers(0, longest)).tolist()) for _ in range(count)]


@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_a_plain_comparison(seed, tmp_path):
    generator = np.random.default_rng(seed)
    training, validation = (random_documents(generator, count, 1 + 6 * (seed + 1)) for count in (200, 60))
    training += [tuple(range(2, 80))]
    validation += [tuple(range(2, 80)), tuple(range(3, 90))]
    shards = [write_documents(tmp_path, split, documents, int(generator.integers(5, 300))) for split, documents in
              (("train", training), ("val", validation))]  # fmt: skip
    known, wanted = set(training), set(validation)
    shared = [document for document in validation if document and document in known]
    for piece in (7, 64, 1 << 12):
        found = shared_documents(*shards, piece_tokens=piece)
        assert (found.validation, found.training) == (len(validation), len(training))
        assert found.shared == len(shared) and found.short == sum(len(document) < 32 for document in shared)
        assert found.copies == sum(bool(document) and document in wanted for document in training)
        for example in found.examples:
            assert validation[example.validation] == training[example.training] and example.tokens == len(training[example.training])
        assert found.examples[0] == SharedDocument(60, 200, 78, tuple(range(2, 10)))
        good, sentence = found.summary()
        assert not good and f"{len(shared)} of 62 validation documents" in sentence and "is training document 200 (78 tokens)" in sentence


def test_clean_shards_pass(tmp_path):
    generator = np.random.default_rng(0)
    parts = {split: [generator.integers(2, 1000, 50) for _ in range(40)] for split in ("train", "val")}
    found = shared_documents(*(write_documents(tmp_path, split, parts[split], 333) for split in parts))
    assert found.shared == found.copies == 0 and found.summary()[0] and not found.examples


def test_hashes_do_not_depend_on_where_pieces_are_cut(tmp_path):
    documents = random_documents(np.random.default_rng(1), 50, 40)
    paths = write_documents(tmp_path, "train", documents, 90, head=(5, 6, 7))
    outcomes = []
    for piece in (1, 2, 13, 5000):
        columns = [np.concatenate(column) for column in zip(*DocumentHasher(5000).documents(TokenStream(paths)), strict=True)]
        again = DocumentHasher(5000)
        again.piece = piece
        outcomes.append([np.concatenate(column).tolist() for column in zip(*again.documents(TokenStream(paths)), strict=True)])
        assert outcomes[-1] == [column.tolist() for column in columns]
    starts, lengths, hashes = outcomes[0]
    assert lengths == [3, *map(len, documents)] and starts[:2] == [0, 4]
    assert len(set(hashes)) == len({(5, 6, 7), *documents})


@pytest.fixture
def one_hash(monkeypatch):
    """All documents have the same hash."""
    monkeypatch.setattr(DocumentHasher, "documents", lambda self, stream, real=DocumentHasher.documents: (
        (starts, lengths, np.zeros_like(hashes)) for starts, lengths, hashes in real(self, stream)))  # fmt: skip


def test_equal_hashes_of_different_documents_are_no_accusation(tmp_path, one_hash):
    documents = [tuple(np.random.default_rng(seed).integers(2, 99, 40).tolist()) for seed in range(12)]
    training = [*documents[:7], documents[8][:30]]  # the last is only the beginning of another
    train, val = (write_documents(tmp_path, split, part, 100) for split, part in (("train", training), ("val", documents[6:])))
    found = shared_documents(train, val)
    assert (found.shared, found.copies, found.short) == (1, 1, 0) and found.examples[0].validation == 0 and found.examples[0].training == 6


def test_long_documents_are_compared_in_pieces(tmp_path, monkeypatch, one_hash):
    monkeypatch.setattr(contamination, "PIECE_TOKENS", 100)
    document = np.random.default_rng(0).integers(2, 9, 1000)
    other = document.copy()
    other[-1] += 1
    val = write_documents(tmp_path, "val", [document], 170)
    assert shared_documents(write_documents(tmp_path, "train", [other, document], 310), val, 64).copies == 1


def test_bad_shards_are_refused(tmp_path):
    good = write_documents(tmp_path, "train", [(5, 6)], 100)
    (tmp_path / "x_val_000000.bin").write_bytes(b"no shard")
    with pytest.raises(ValueError, match="is no shard"):
        shared_documents(good, [tmp_path / "x_val_000000.bin"])
