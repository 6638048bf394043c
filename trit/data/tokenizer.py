"""Text to token ids and back. Input: an entry of tokenizer_specs.json and training text; output: a `Tokenizer`.

Kinds: `byte260` (id = byte + 4) and `sentencepiece_bpe`. Ids 0 to 3 are pad, BOS, EOS, unknown in both.
The sp_bpe_* entries keep every character of the text; the contest_bpe_* entries normalise as the contest's models do.
"""

import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import sentencepiece

from trit.data.manifest import tokenizer_sha256
from trit.data.token_ids import BOS_ID

SPECS_FILE = Path(__file__).resolve().parents[2] / "tokenizer_specs.json"
LINE_BYTES = 4000
TRAINER_DEFAULTS = {
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": BOS_ID,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
}


def find_spec(name, specs_file=SPECS_FILE):
    """The entry `name` of a specs file (a list, or an object with `tokenizers` or `tokenizer_specs`); ValueError lists the names."""
    specs = json.loads(Path(specs_file).read_text(encoding="utf-8"))
    if isinstance(specs, dict):
        specs = specs.get("tokenizers") or specs.get("tokenizer_specs") or []
    for spec in specs:
        if spec["name"] == name:
            return spec
    raise ValueError(f"tokenizer {name}: not in {specs_file}; possible: {', '.join(spec['name'] for spec in specs)}")


def training_lines(documents):
    """Yield the lines of `documents` that SentencePiece accepts: it silently drops long lines and those with its own marks."""
    for document in documents:
        for line in re.split("[\n\t\0\u2047\u2581\u2585]", document):
            data = line.encode("utf-8")
            while len(data) > LINE_BYTES:
                cut = data.rfind(b" ", 1, LINE_BYTES)
                if cut < 0:
                    cut = LINE_BYTES
                    while data[cut] & 0xC0 == 0x80:  # never inside a character
                        cut -= 1
                yield data[:cut].decode("utf-8")
                data = data[cut:]
            if data:
                yield data.decode("utf-8")


def train_model(spec, documents):
    """Train the SentencePiece model of `spec` on an iterable of training documents; returns the model file's bytes.

    The same documents in the same order give the same bytes. ValueError if the text is too small for the vocabulary.
    """
    settings = TRAINER_DEFAULTS | spec.get("trainer_overrides", {})
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(documents),
            model_writer=model,
            vocab_size=spec["vocab_size"],
            num_threads=1,
            minloglevel=2,
            **settings,
        )
    except (RuntimeError, OSError) as error:
        raise ValueError(f"tokenizer {spec['name']}: training failed ({error}); give more text or a smaller vocab_size") from None
    return model.getvalue()


def open_tokenizer(path, name=""):
    """The `Tokenizer` of the model file `path`, or of "byte260"."""
    return Tokenizer(str(path), name)


class Tokenizer:
    """One tokenizer: `name`, `kind`, `path` ("byte260" or the model file), `vocab_size`, `bos_id`, `sha256`, `lossless`."""

    def __init__(self, path, name=""):
        self.path = path
        self.bos_id = BOS_ID
        self.sha256 = tokenizer_sha256(path)
        self.pieces = None
        self.name, self.kind, self.vocab_size, self.lossless = "byte260", "byte260", 260, True
        if path != "byte260":
            self.pieces = load_pieces(path)
            self.name, self.kind = name or Path(path).stem, "sentencepiece_bpe"
            self.vocab_size = self.pieces.vocab_size()
            # A model that gives back this text collapses no white space and normalises nothing.
            probe = "  a\n\n １\t"
            self.lossless = self.pieces.decode(self.pieces.encode(probe)) == probe
            self.space_bytes = [self.pieces.piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()]

    def encode(self, text):
        """Token ids of `text`, uint16 (tokens,), without BOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """List of `encode(text)` for each text."""
        if not self.pieces:
            return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16) + 4 for text in texts]
        encoded = self.pieces.encode(list(texts))
        if self.lossless:
            # SentencePiece writes a space as U+2581 inside, so a literal one would come back as a space: spell its bytes.
            encoded = [self.spell_marks(text) if "\u2581" in text else ids for text, ids in zip(texts, encoded)]
        return [np.asarray(ids, np.uint16) for ids in encoded]

    def spell_marks(self, text):
        """Ids of a text in which each U+2581 becomes its three byte tokens."""
        ids = []
        for part in text.split("\u2581"):
            ids += self.space_bytes + self.pieces.encode(part)
        return ids[len(self.space_bytes) :]

    def decode(self, ids):
        """Text of the ids; control ids (below 4 for byte260) give nothing, broken UTF-8 gives U+FFFD: any ids may be printed."""
        ids = np.asarray(ids, np.int64).tolist()
        if self.pieces:
            return self.pieces.decode(ids)
        return bytes(i - 4 for i in ids if 4 <= i < 260).decode("utf-8", "replace")


def load_pieces(path):
    """SentencePiece processor of a model file; ValueError if it is missing, broken, or numbers its special ids otherwise."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: not a SentencePiece model ({str(error).splitlines()[0]}); give a .model file") from None
    special = pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id()
    if special != (0, 1, 2, 3):
        raise ValueError(f"{path}: pad, bos, eos, unk are {special}; shards need a model trained with 0, 1, 2, 3")
    if pieces.vocab_size() > 65536:
        raise ValueError(f"{path}: {pieces.vocab_size()} pieces do not fit 16-bit shards; at most 65536")
    return pieces


def spec_digest(spec):
    """SHA-256 of everything in a spec that decides the trained model, the SentencePiece version included."""
    facts = [spec["kind"], spec["vocab_size"], TRAINER_DEFAULTS | spec.get("trainer_overrides", {}), sentencepiece.__version__]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
