"""The manifest of a data folder: which tokenizer made its shards. Input: folder and tokenizer path; output: what to use."""

import hashlib
import json
import os

MANIFEST_NAME = "manifest.json"


def file_sha256(path):
    """SHA-256 of a file, as hexadecimal text, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def tokenizer_sha256(path):
    """SHA-256 that identifies a tokenizer: of its model file, or of the word "byte260"."""
    return hashlib.sha256(b"byte260").hexdigest() if path == "byte260" else file_sha256(path)


def read_manifest(data_path):
    """The manifest of the folder `data_path` as a dictionary, or None where there is none; ValueError if it is not JSON."""
    path = os.path.join(data_path, MANIFEST_NAME)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON manifest ({error}); make the folder again with python -m trit.data.prepare") from None


def resolve_tokenizer(data_path, tokenizer_path=""):
    """Path of the tokenizer model of the shards in `data_path`, or "byte260"; a given `tokenizer_path` is checked against them."""
    manifest = read_manifest(data_path)
    made_by = (manifest or {}).get("tokenizer")
    if not made_by and not tokenizer_path:
        raise ValueError(f"{data_path}: no {MANIFEST_NAME} names its tokenizer; set tokenizer_path or use python -m trit.data.prepare")
    if not tokenizer_path:
        tokenizer_path = os.path.join(data_path, made_by["file"]) if made_by["file"] else "byte260"
    if tokenizer_path != "byte260" and not os.path.isfile(tokenizer_path):
        raise ValueError(f"{tokenizer_path}: no such tokenizer; tokenizer_path is a SentencePiece .model file or byte260")
    if made_by and tokenizer_sha256(tokenizer_path) != made_by["sha256"]:
        raise ValueError(
            f"tokenizer {tokenizer_path} does not belong to the shards in {data_path}, which were made with {made_by['name']}"
            f" (sha256 {made_by['sha256'][:12]}...); leave tokenizer_path empty to use theirs"
        )
    return tokenizer_path


def check_vocabulary(data_path, vocab_size):
    """ValueError where the model's vocabulary is not that of the tokenizer which made the shards (unknown without a manifest)."""
    manifest = read_manifest(data_path)
    if manifest and manifest["tokenizer"]["vocab_size"] != vocab_size:
        found = manifest["tokenizer"]["vocab_size"]
        raise ValueError(f"model.vocab_size={vocab_size}, but the shards in {data_path} have {found} pieces; set model.vocab_size={found}")
