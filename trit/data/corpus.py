"""Documents of text. Input: the name of a corpus or a path; output: iterators of non-empty strings in a fixed order.

Corpora: `packagedocs` (docstrings of the pinned packages), `pydocs` (the English in every Python installation), JSON lines, also
compressed, and folders of text files.
"""

import hashlib
import json
import os
from pathlib import Path

import zstandard

from trit.data.docstrings import pydocs
from trit.data.package_docs import packagedocs

VALIDATION_SHARE = 0.05


def jsonl(path):
    """Yield the `text` of each line of a .jsonl or .jsonl.zst file; ValueError with file and line on a broken line."""
    with open(path, "rb") as file:
        number = 0
        try:
            for number, line in enumerate(zstd_lines(file) if str(path).endswith(".zst") else file, 1):
                text = json_text(line, f"{path}:{number}") if line.strip() else ""
                if text.strip():
                    yield text
        except zstandard.ZstdError as error:
            raise ValueError(f"{path}: damaged zstd stream after line {number} ({error}); fetch or compress the file again") from None


def zstd_lines(file):
    """Yield the lines (bytes) of a compressed file of any number of frames; ZstdError if it ends inside one."""
    frame, rest = zstandard.ZstdDecompressor().decompressobj(), b""
    while data := file.read(1 << 20):
        while data:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            *lines, rest = (rest + frame.decompress(data)).split(b"\n")
            yield from lines
            data = frame.unused_data
    if not frame.eof:
        raise zstandard.ZstdError("the file is cut off")
    yield rest


def json_text(line, place):
    """The `text` of one JSON line (bytes); `place` begins the error message."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: invalid UTF-8 at byte {error.start} of the line; convert the file to UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error}); each line must be one object with the field text") from None
    text = record.get("text") if isinstance(record, dict) else None
    if text is None or not isinstance(text, str):
        raise ValueError(f"{place}: no field text with a string; each line must be one object with the field text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: text holds half a surrogate pair at character {error.start}, which is not valid UTF-8") from None
    return text


def text_folder(path):
    """Yield each .txt file under the folder `path`, in the order of their relative paths; ValueError on invalid UTF-8."""
    for file in sorted(Path(path).rglob("*.txt")):
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: invalid UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        if text.strip():
            yield text


def open_corpus(name_or_path):
    """Iterator of the documents of `packagedocs`, `pydocs`, a .jsonl or .jsonl.zst file, or a folder of .txt files; ValueError if empty."""
    name = str(name_or_path)
    if name == "packagedocs":
        documents = (document for part in packagedocs().values() for document in part)
    elif name == "pydocs":
        documents = iter(pydocs())
    elif os.path.isdir(name):
        documents = text_folder(name)
    elif name.endswith((".jsonl", ".jsonl.zst")) and os.path.isfile(name):
        documents = jsonl(name)
    else:
        raise ValueError(
            f"corpus {name}: no such corpus; possible: packagedocs, pydocs, a .jsonl or .jsonl.zst file, a folder of .txt files"
        )
    return refuse_empty(documents, name)


def refuse_empty(documents, name):
    """The same documents; ValueError at the end if there was none."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise ValueError(f"corpus {name}: no documents with text; give it at least one")


def is_validation(document):
    """Whether a document belongs to the validation split: a fixed twentieth of all possible texts, by hash."""
    digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < VALIDATION_SHARE * 2**64


def split(documents):
    """(train, validation): two lists of the documents, in order; equal texts always fall on the same side."""
    parts = [], []
    for document in documents:
        parts[is_validation(document)].append(document)
    return parts


def read_part(name_or_path, part):
    """Iterator of the documents of one part ("train" or "val") of a corpus, which splits itself (`packagedocs`) or is split by hash."""
    if str(name_or_path) == "packagedocs":
        return iter(packagedocs()[part])
    return (document for document in open_corpus(name_or_path) if is_validation(document) == (part == "val"))
