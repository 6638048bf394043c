"""Bytes counted from token ids equal the bytes of the decoded text, document by document and edge case by edge case."""

import numpy as np
import pytest
from data_fixtures import HARD_TEXTS, sample_documents, small_tokenizer

from trit.data.byte_count import byte_table, token_bytes

FAMILIES = ["byte260", "sp_bpe_512", "contest_bpe_1024"]


def counted(tokenizer, table, ids):
    return int(token_bytes(table, np.concatenate([[1], ids])[:-1], ids).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_counted_bytes_equal_decoded_bytes(family):
    tokenizer = small_tokenizer(family)
    table = byte_table(tokenizer.path, tokenizer.vocab_size)
    documents = [*HARD_TEXTS, *sample_documents()[:60]]
    for text, ids in zip(documents, tokenizer.encode_batch(documents), strict=True):
        assert counted(tokenizer, table, ids.astype(int)) == len(tokenizer.decode(ids).encode("utf-8")), text[:60]


@pytest.mark.parametrize("family", ["byte260", "sp_bpe_512"])
def test_lossless_tokenizers_give_the_text_back(family):
    tokenizer = small_tokenizer(family)
    assert tokenizer.lossless
    for text in [*HARD_TEXTS, *sample_documents()]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_contest_style_normalises_and_says_so():
    tokenizer = small_tokenizer("contest_bpe_1024")
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("x  \n\n y １２３ \u200b")) == "x y 123"


@pytest.mark.parametrize("family", ["sp_bpe_512", "contest_bpe_1024"])
def test_table_rows(family):
    tokenizer = small_tokenizer(family)
    pieces, size = tokenizer.pieces, tokenizer.vocab_size
    base, lead, boundary = byte_table(tokenizer.path, size + 7)
    assert len(base) == len(lead) == len(boundary) == size + 7
    assert (base.dtype, lead.dtype, boundary.dtype) == (np.int16, bool, bool)
    assert not base[:4].any() and not lead[:4].any(), "control and unknown ids count nothing"
    assert not base[size:].any() and not lead[size:].any() and boundary[size:].all(), "padding rows"
    byte = pieces.piece_to_id("<0xE9>")
    assert (base[byte], lead[byte], boundary[byte]) == (1, False, False), "a byte token is one byte, never U+FFFD"
    lone = pieces.piece_to_id("▁")
    assert (base[lone], lead[lone], boundary[lone]) == (0, True, False)
    assert boundary[3], "a space after the unknown token does not count"
    for i in range(size):
        piece = pieces.id_to_piece(i)
        if i > 3 and not pieces.is_byte(i):
            assert base[i] + lead[i] == len(piece.replace("▁", " ").encode("utf-8")) and lead[i] == piece.startswith("▁")
            assert not boundary[i]


def test_space_after_bos():
    contest, lossless = small_tokenizer("contest_bpe_1024"), small_tokenizer("sp_bpe_512")
    for tokenizer, expected in ((contest, [0, 1]), (lossless, [1, 1])):
        lone = tokenizer.pieces.piece_to_id("▁")
        letter = tokenizer.pieces.piece_to_id("a")
        table = byte_table(tokenizer.path, tokenizer.vocab_size)
        assert token_bytes(table, [1, letter], [lone, lone]).tolist() == expected
        assert token_bytes(table, [letter], [1]).tolist() == [0], "BOS as a target adds no bytes"
        assert token_bytes(table, [1], [letter]).tolist() == [1]


def test_newline_is_one_byte_of_its_own():
    tokenizer = small_tokenizer("sp_bpe_512")
    table = byte_table(tokenizer.path, tokenizer.vocab_size)
    newline = tokenizer.pieces.piece_to_id("\n")
    assert newline != 3 and table[0][newline] == 1
    assert [newline, newline] == tokenizer.encode("\n\n").tolist()


def test_byte260_table():
    base, lead, boundary = byte_table("byte260", 300)
    assert base.sum() == 256 and base[4:260].all() and not lead.any()
    assert boundary[:4].all() and not boundary[4:260].any() and boundary[260:].all()


def test_sum_over_a_stream_of_documents():
    """One stream with BOS between documents counts what the documents count one by one."""
    for family in FAMILIES:
        tokenizer = small_tokenizer(family)
        table = byte_table(tokenizer.path, 0)
        ids = tokenizer.encode_batch([*HARD_TEXTS, *sample_documents()[:10]])
        stream = np.concatenate([part for document in ids for part in ([1], document.astype(int))])
        expected = sum(counted(tokenizer, table, document.astype(int)) for document in ids)
        assert token_bytes(table, stream[:-1], stream[1:]).sum() == expected


@pytest.mark.parametrize("wrong", [-1, 260])
def test_foreign_id_refused(wrong):
    table = byte_table("byte260", 260)
    with pytest.raises(ValueError, match="260 rows"):
        token_bytes(table, [1, 5], [5, wrong])
    with pytest.raises(ValueError, match="260 rows"):
        token_bytes(table, [1, wrong], [5, 5])


def test_shapes_are_kept():
    table = byte_table("byte260", 260)
    assert token_bytes(table, np.zeros((2, 3), np.uint16), np.full((2, 3), 7, np.uint16)).tolist() == [[1] * 3] * 2
    assert token_bytes(table, np.zeros(0, int), np.zeros(0, int)).shape == (0,)
