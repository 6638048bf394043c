"""python -m trit.data.prepare: a corpus and a tokenizer in, a folder of token shards out.

The folder holds shards, the tokenizer's model and manifest.json. It is built beside its place and renamed when whole, so a
folder that exists is complete. Each document is BOS and its ids, without EOS; documents may straddle shards. A training document
that is a validation document too, white space and compatibility characters aside, is dropped.
"""

import hashlib
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np

from trit.console import CLOCK_FORMAT, Parser, command, counted, progress, say
from trit.data.byte_count import byte_table, token_bytes
from trit.data.corpus import open_corpus, read_part
from trit.data.files import atomic_write
from trit.data.manifest import MANIFEST_NAME, file_sha256, read_manifest, tokenizer_sha256
from trit.data.shards import shard_length, write_shard
from trit.data.token_ids import BOS_ID
from trit.data.tokenizer import SPECS_FILE, find_spec, open_tokenizer, spec_digest, train_model

SHARD_TOKENS = 100_000_000
TOKENIZER_BYTES = 20_000_000
BATCH_DOCUMENTS = 64


def read_split(corpora, part, held_out=frozenset(), dropped=None):
    """Documents of `part` ("train" or "val"); `corpora` maps both parts to corpus names: one name for both is split.

    Documents whose `text_key` is in `held_out` are left out; the list `dropped`, where given, takes their keys.
    """
    one = corpora["train"] == corpora["val"]
    empty = True
    for document in read_part(corpora[part], part) if one else open_corpus(corpora[part]):
        if held_out and (key := text_key(document)) in held_out:
            if dropped is not None:
                dropped.append(key)
            continue
        empty = False
        yield document
    if empty:
        raise ValueError(
            f"corpus {corpora[part]}: no document falls into the {part} split; give --train and --val files, or more documents"
        )


def text_key(document):
    """16 bytes that equal documents share, also those that a normalising tokenizer makes equal: NFKC, white space collapsed."""
    text = " ".join(unicodedata.normalize("NFKC", document).split())
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def survey(documents):
    """Documents, UTF-8 bytes and SHA-256 of a sequence of documents, read once."""
    count, size, digest = 0, 0, hashlib.sha256()
    for document in documents:
        data = document.encode("utf-8")
        count, size = count + 1, size + len(data)
        digest.update(len(data).to_bytes(8, "little") + data)
    return {"documents": count, "text_bytes": size, "text_sha256": digest.hexdigest()}


def sample(documents, share):
    """About `share` of the documents, chosen by their hash (another one than the split's) in their order."""
    for document in documents:
        digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8, person=b"tokenizer").digest()
        if int.from_bytes(digest, "big") < share * 2**64:
            yield document


def make_tokenizer(spec, vocab_file, folder, documents, text_bytes, tokenizer_bytes):
    """Train, copy or name the tokenizer; returns it, its model lying in `folder`.

    `documents` iterates over the training documents, which have `text_bytes` in all.
    """
    if vocab_file:
        target = folder / Path(vocab_file).name
        atomic_write(target, Path(vocab_file).read_bytes())
        return open_tokenizer(target)
    if spec["kind"] in ("byte260", "byte", "pure_byte"):
        return open_tokenizer("byte260")
    if spec["kind"] not in ("sentencepiece_bpe", "sentencepiece"):
        raise ValueError(f"tokenizer {spec['name']}: unknown kind {spec['kind']}; possible: byte260, sentencepiece_bpe")
    share = min(1.0, tokenizer_bytes / text_bytes)
    model = spec.get("reuse_model_path")
    model = Path(model).read_bytes() if model else train_model(spec, sample(documents, share))
    if spec.get("sha256", hashlib.sha256(model).hexdigest()) != hashlib.sha256(model).hexdigest():
        raise ValueError(f"tokenizer {spec['name']}: its model's sha256 is not the one in tokenizer_specs.json; retrain or mend the entry")
    atomic_write(folder / spec["filename"], model)
    return open_tokenizer(folder / spec["filename"], spec["name"])


def write_split(documents, tokenizer, folder, prefix, shard_tokens, bar):
    """Encode `documents` into shards `folder/prefix_%06d.bin`; returns (list of file records, accounting of the split)."""
    table = byte_table(tokenizer.path, tokenizer.vocab_size)
    files, pending, held = [], [], 0
    account = {"tokens": 0, "counted_bytes": 0, "byte_mismatches": 0}

    def flush(last=False):
        nonlocal pending, held
        while held >= shard_tokens or (last and held):
            tokens = np.concatenate(pending)
            path = folder / f"{prefix}_{len(files):06d}.bin"
            write_shard(path, tokens[:shard_tokens])
            files.append({"name": path.name, "tokens": min(held, shard_tokens), "sha256": file_sha256(path)})
            pending = [tokens[shard_tokens:]]
            held = len(pending[0])

    def encode(batch):
        nonlocal held
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            tokens = np.concatenate([np.array([BOS_ID], np.uint16), ids])
            counted = int(token_bytes(table, tokens[:-1], tokens[1:]).sum())
            account["tokens"] += len(tokens)
            account["counted_bytes"] += counted
            account["byte_mismatches"] += counted != len(tokenizer.decode(ids).encode("utf-8"))
            pending.append(tokens)
            held += len(tokens)
            bar.update(len(text.encode("utf-8")))
        flush()

    batch = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH_DOCUMENTS:
            encode(batch)
            batch = []
    encode(batch)
    flush(last=True)
    return files, account


def is_complete(folder, inputs):
    """Whether `folder` was made from the same inputs and holds every file of its manifest, whole."""
    manifest = read_manifest(folder)
    if not manifest or manifest.get("inputs") != inputs:
        return False
    try:
        shards_whole = all(shard_length(folder / file["name"]) == file["tokens"] for file in manifest["files"])
        model = manifest["tokenizer"]["file"]
        return shards_whole and (not model or tokenizer_sha256(folder / model) == manifest["tokenizer"]["sha256"])
    except (OSError, ValueError):
        return False


def prepare(corpora, out, spec=None, vocab_file="", shard_tokens=SHARD_TOKENS, tokenizer_bytes=TOKENIZER_BYTES, say=say):
    """Make the data folder `out` and return its manifest.

    `corpora` is {"train": name, "val": name} (see `open_corpus`); equal names are split by `read_part`.
    `spec` is an entry of tokenizer_specs.json, or `vocab_file` an existing .model. `tokenizer_bytes` bounds the training
    text a tokenizer is trained on, `shard_tokens` the length of a shard. The same inputs give the same files.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_NAME).exists())):
        raise ValueError(f"{out}: exists and is no data folder; give --out a new name")
    if shard_tokens <= 0 or tokenizer_bytes <= 0:
        raise ValueError(f"shard_tokens={shard_tokens} and tokenizer_bytes={tokenizer_bytes} must be positive")
    documents = counted(read_split(corpora, "val"), "validation documents", unit=" documents")
    dropped, held_out = [], {"train": {text_key(document) for document in documents}, "val": frozenset()}
    facts = {}
    for part in ("train", "val"):
        documents = read_split(corpora, part, held_out[part], dropped)
        facts[part] = survey(counted(documents, f"reading {part}", unit=" documents"))
    identity = file_sha256(vocab_file) if vocab_file else [spec_digest(spec), spec.get("reuse_model_path"), tokenizer_bytes]
    texts = [facts[part]["text_sha256"] for part in ("train", "val")]
    inputs = hashlib.sha256(json.dumps([texts, identity, shard_tokens]).encode()).hexdigest()
    if is_complete(out, inputs):
        say(f"{out}: complete already, nothing to do")
        return read_manifest(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, old = out.parent / f".{out.name}.partial", out.parent / f".{out.name}.old"
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir()
    try:
        say(
            f"tokenizer: {vocab_file or spec['name']}, {facts['train']['documents']} training documents, {facts['train']['text_bytes']} bytes"
        )
        documents = read_split(corpora, "train", held_out["train"])
        with progress("tokenizer", bar_format=CLOCK_FORMAT):
            tokenizer = make_tokenizer(spec, vocab_file, partial, documents, facts["train"]["text_bytes"], tokenizer_bytes)
        if spec and tokenizer.vocab_size != spec["vocab_size"]:
            say(f"tokenizer: {tokenizer.vocab_size} pieces where {spec['vocab_size']} were asked for: the text gives no more")
        manifest = {
            "version": 1,
            "name": out.name,
            "corpus": {part: Path(corpora[part]).name for part in corpora},
            "tokenizer": {
                "name": tokenizer.name,
                "kind": tokenizer.kind,
                "file": "" if tokenizer.path == "byte260" else Path(tokenizer.path).name,
                "sha256": tokenizer.sha256,
                "vocab_size": tokenizer.vocab_size,
                "bos_id": tokenizer.bos_id,
                "lossless": tokenizer.lossless,
            },
            "append_eos": False,
            "shard_size": shard_tokens,
            "splits": {},
            "files": [],
        }
        for part in ("train", "val"):
            size = facts[part]["text_bytes"]
            with progress(part, size, "B") as bar:
                documents = read_split(corpora, part, held_out[part])
                files, account = write_split(documents, tokenizer, partial, f"{out.name}_{part}", shard_tokens, bar)
            manifest["splits"][part] = facts[part] | account | {"files": len(files)}
            manifest["files"] += files
            share = account["tokens"] / max(account["counted_bytes"], 1)
            say(f"{part}: {facts[part]['documents']} documents, {size} bytes, {account['tokens']} tokens, {share:.4f} tokens per byte")
            if account["byte_mismatches"]:
                say(
                    f"warning: {account['byte_mismatches']} {part} documents count other bytes than they decode to; do not quote a score from them"
                )
        manifest["dropped_documents"] = len(dropped)
        if dropped:
            say(f"dropped: {len(dropped)} training documents that are validation documents too")
        manifest["inputs"] = inputs
        atomic_write(partial / MANIFEST_NAME, (json.dumps(manifest, indent=1) + "\n").encode())
        if out.exists():
            os.replace(out, old)
        os.replace(partial, out)
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def main(arguments=None):
    """Command line of this module."""
    parser = Parser(prog="python -m trit.data.prepare", description="Turn text into a folder of token shards.", answers=True)
    parser.add_argument(
        "--corpus", default="pydocs", help="packagedocs, pydocs, a .jsonl or .jsonl.zst file, or a folder of .txt files; split"
    )
    parser.add_argument("--train", help="training corpus, where validation is a separate one")
    parser.add_argument("--val", help="validation corpus, with --train")
    parser.add_argument("--tokenizer", default="sp_bpe_512", help="entry of the tokenizer specs")
    parser.add_argument("--specs", default=SPECS_FILE, help="tokenizer specs, tokenizer_specs.json by default")
    parser.add_argument("--vocab-file", default="", help="existing SentencePiece .model, instead of --tokenizer")
    parser.add_argument("--out", required=True, help="data folder to make")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS, help="tokens in a shard")
    parser.add_argument(
        "--tokenizer-bytes", type=int, default=TOKENIZER_BYTES, help="most bytes of training text a tokenizer is trained on"
    )
    options = parser.parse_args(arguments)
    if bool(options.train) != bool(options.val):
        parser.error("--train and --val go together; without them --corpus is split")
    corpora = {"train": options.train or options.corpus, "val": options.val or options.corpus}
    with command(options.json, f"stopped; {options.out} is as it was") as answer:
        try:
            spec = None if options.vocab_file else find_spec(options.tokenizer, options.specs)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"{options.specs}: no tokenizer specs ({fault}); tokenizer_specs.json shows how they look") from None
        manifest = prepare(corpora, options.out, spec, options.vocab_file, options.shard_tokens, options.tokenizer_bytes)
        answer |= {"folder": options.out, **manifest}


if __name__ == "__main__":
    main()
