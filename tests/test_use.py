"""An artifact in use: text that goes on, and files that come back bit for bit in as many bytes as the model's own bits say."""

import itertools
import math
import struct
import subprocess
import sys

import numpy as np
import pytest
from model_fixtures import evaluating, random_arrays
from record_fixtures import ROOT

from trit.config_load import save
from trit.data.tokenizer import train_model
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import make_artifact
from trit.use.__main__ import main
from trit.use.compress import HEADER, compress, decompress
from trit.use.generate import generated
from trit.use.opened import open_artifact, token_ids

GENERATOR = np.random.default_rng(0)
WORDS = ["the", "quick", "brown", "fox", "naïve", "größer", "counts", "each", "byte", "▁", "twice", "１", "in  two", "\ttabs", "\r\n"]
TEXT = " ".join(GENERATOR.choice(WORDS, 130)).encode()
FILES = {
    "text": TEXT,
    "empty": b"",
    "one byte": b"\xff",
    "one letter": b"a",
    "random bytes": GENERATOR.integers(0, 256, 600).astype(np.uint8).tobytes(),
    "text with broken lines": b"a line\n" + b"\xc3\x28 not text\n" + "grün\n".encode() + bytes(range(256)) + TEXT[:200],
}
LONG_TEXT = " ".join(GENERATOR.choice(WORDS, 350)).encode()


def record(folder, arch="unet", tokenizer=None, **settings):
    """A folder with a configuration and an artifact of random weights, and a tokenizer where its bytes are given."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = evaluating(arch, "plain", **{"vocab_size": 260} | settings)
    save(cfg, folder / "config.json")
    model = load_arch(arch)
    (folder / "artifact.trit").write_bytes(make_artifact(torch_ops, model, cfg, random_arrays(artifact_specs(model, cfg)), {}))
    if tokenizer:
        (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


def sentencepiece(**overrides):
    """A tokenizer of 400 pieces, as bytes of its model file."""
    spec = {"name": "t", "kind": "sentencepiece_bpe", "vocab_size": 400, "trainer_overrides": overrides}
    return train_model(spec, [TEXT.decode()] * 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Records of bytes and of pieces: that keep every character, that normalise, and that have no tokens for single bytes."""
    root = tmp_path_factory.mktemp("use")
    keeping = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return {
        "bytes": record(root / "bytes", "hybrid", layer_map="ak", koopman_state_dim=32, engram_buckets=64),
        "pieces": record(root / "pieces", tokenizer=sentencepiece(**keeping), vocab_size=400),
        "normalised": record(root / "normalised", tokenizer=sentencepiece(), vocab_size=400),
        "no bytes": record(root / "no_bytes", tokenizer=sentencepiece(byte_fallback=False), vocab_size=400),
    }


@pytest.mark.parametrize("name,file", list(itertools.product(["bytes", "pieces", "normalised"], FILES)))
def test_every_file_comes_back_in_the_models_own_bits(name, file, folders):
    opened, data = open_artifact(folders[name]), FILES[file]
    packed = compress(opened, data)
    assert decompress(open_artifact(folders[name]), packed.data) == data
    assert packed.tokens == len(token_ids(opened, data)) and not math.isnan(packed.bits)
    assert len(packed.data) <= packed.bits / 8 * 1.001 + 64
    if len(data) > 500:
        assert len(packed.data) >= packed.bits / 8


def test_the_bits_are_those_of_the_models_rows(folders):
    """One lane, windows of half the length: counted by hand."""
    opened, data = open_artifact(folders["bytes"]), TEXT[:100]
    ids, bits = token_ids(opened, data), 0.0
    half = opened.window // 2
    given = np.concatenate([[1], ids, np.zeros(opened.window, np.int32)]).astype(np.int32)
    for at, token in enumerate(ids):
        end = (at // half + 1) * half
        start = max(0, end - opened.window)
        bits -= opened.rows(given[None, start:end], 0)[0, at - start, token] / math.log(2)
    assert compress(opened, data, lanes=1).bits == pytest.approx(bits, rel=1e-4)


def test_lanes_change_the_size_a_little_and_nothing_else(folders):
    opened, text = open_artifact(folders["bytes"]), LONG_TEXT
    sizes = []
    for lanes in (1, 3, 12):
        packed = compress(opened, text, lanes)
        assert decompress(opened, packed.data) == text and struct.unpack_from(HEADER, packed.data)[3] == lanes
        sizes.append(len(packed.data))
    assert max(sizes) < 1.05 * min(sizes)


def test_what_no_token_spells_is_stored(folders):
    opened, data = open_artifact(folders["no bytes"]), FILES["random bytes"]
    assert token_ids(opened, data) is None
    packed = compress(opened, data)
    assert math.isnan(packed.bits) and decompress(opened, packed.data) == data
    assert len(packed.data) < len(data) + 64


def test_damage_another_artifact_and_other_files_are_refused(folders):
    opened, packed = open_artifact(folders["bytes"]), compress(open_artifact(folders["bytes"]), TEXT).data
    with pytest.raises(ValueError, match="compressed with the artifact"):
        decompress(open_artifact(folders["pieces"]), packed)
    for wrong in (b"", packed[:20], b"PK" + packed[2:]):
        with pytest.raises(ValueError, match="not a file that trit.use compressed"):
            decompress(opened, wrong)
    for place in range(4, len(packed), len(packed) // 7):
        damaged = bytearray(packed)
        damaged[place] ^= 0x10
        with pytest.raises(ValueError):
            decompress(opened, bytes(damaged))
    for cut in (len(packed) - 4, len(packed) - 1, 40):
        with pytest.raises(ValueError):
            decompress(opened, packed[:cut])
    # What a header may ask for is bounded.
    head = struct.pack(HEADER, b"TRZ1", 1, 1 << 31, 65535, opened.window, opened.digest, b"\0" * 8)
    with pytest.raises(ValueError, match="is none of this model's"):
        decompress(opened, head + b"\0" * 8)
    stored = struct.pack(HEADER, b"TRZ1", 0, 10, 0, 0, opened.digest, b"\0" * 8)
    bomb = compress(open_artifact(folders["no bytes"]), b"\xff" * 10_000_000).data[struct.calcsize(HEADER) :]
    with pytest.raises(ValueError, match="not the file that was compressed"):
        decompress(opened, stored + bomb)


def test_the_commands_work_in_processes_of_their_own(folders, tmp_path):
    (tmp_path / "file").write_bytes(TEXT[:100])

    def use(*arguments):
        command = [sys.executable, "-m", "trit.use", str(folders["pieces"]), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)

    done = use("compress", tmp_path / "file", tmp_path / "packed")
    assert done.returncode == 0 and "bits per byte, the model's own" in done.stderr and not done.stdout, done.stderr
    back = use("decompress", tmp_path / "packed", tmp_path / "back")
    assert back.returncode == 0 and (tmp_path / "back").read_bytes() == TEXT[:100], back.stderr
    for wrong, words in (
        (("decompress", tmp_path / "file", tmp_path / "x"), "not a file that"),
        (("compress", tmp_path / "absent", "x"), "absent"),
    ):
        failed = use(*wrong)
        assert failed.returncode == 1 and failed.stderr.startswith("error: ") and words in failed.stderr
    assert not (tmp_path / "x").exists()


def test_both_libraries_open_the_same_artifact(folders):
    sides = [open_artifact(folders["bytes"], library) for library in ("torch", "mlx")]
    ids = np.arange(40).reshape(2, 20)
    assert np.abs(sides[0].rows(ids, 5) - sides[1].rows(ids, 5)).max() < 1e-4
    packed = compress(sides[1], TEXT[:300]).data
    assert decompress(sides[1], packed) == TEXT[:300]


def test_text_goes_on_as_the_model_has_it(folders, capsys):
    opened = open_artifact(folders["bytes"])
    one, two, other = ("".join(generated(opened, "the", 30, 1.0, 0, seed)) for seed in (1, 1, 2))
    assert one == two != other
    # At temperature 0 every token is the likeliest one after what stands before it, in the last window where that is longer.
    for beginning in ("the", "the quick brown fox counts " * opened.window):
        greedy = list(generated(opened, beginning, 12, 0.0))
        ids = [1, *opened.tokenizer.encode(beginning).tolist()]
        given = len(ids)
        for _ in range(12):
            ids.append(int(opened.rows(np.array([ids[-opened.window :]]), 0)[0, -1].argmax()))
        wanted = list(itertools.takewhile(lambda i: opened.spelled[i] is not None, ids[given:]))
        assert "".join(greedy) == b"".join(opened.spelled[i] for i in wanted).decode("utf-8", "replace")
    main([str(folders["bytes"]), "generate", "the", "--tokens", "5", "--top-k", "1"])
    assert capsys.readouterr().out.startswith("the")
    with pytest.raises(ValueError, match="must be 0 or more"):
        list(generated(opened, "the", 5, -1.0))


def test_draws_follow_temperature_and_top_k(folders):
    from trit.use.generate import chosen

    row = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))
    generator = np.random.default_rng(0)
    for temperature, top_k in ((1.0, 0), (0.5, 0), (1.0, 2)):
        p = np.exp(row / temperature) * (np.arange(4) < (top_k or 4))
        found = np.bincount([chosen(row, generator, temperature, top_k) for _ in range(4000)], minlength=4) / 4000
        assert np.abs(found - p / p.sum()).max() < 0.03


def test_a_folder_that_is_no_record_is_one_error(tmp_path, folders):
    with pytest.raises(SystemExit, match="no config.json; give a record's folder"):
        main([str(tmp_path), "generate", "x"])
    lone = record(tmp_path / "lone", vocab_size=64)
    with pytest.raises(SystemExit, match="no tokenizer.model beside it"):
        main([str(lone), "generate", "x"])


@pytest.mark.slow
def test_a_megabyte_comes_back(tmp_path):
    """Of every kind of byte, by a model small enough for a test."""
    small = {"num_layers": 1, "model_dim": 16, "num_heads": 2, "num_kv_heads": 1, "embed_dim": 8, "eval_seq_len": 16, "train_seq_len": 16}
    opened = open_artifact(record(tmp_path / "small", eval_stride=8, **small))
    data = (TEXT * 40)[: 1 << 19] + np.random.default_rng(1).integers(0, 256, 1 << 19).astype(np.uint8).tobytes()
    packed = compress(opened, data, lanes=2000)
    assert len(packed.data) <= packed.bits / 8 * 1.001 + 64
    assert decompress(opened, packed.data) == data
