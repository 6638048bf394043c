"""Validation text inside an artifact or a counted file is found in every plain encoding, and honest files raise no alarm."""

import base64
import lzma
import zlib
from pathlib import Path

import brotli
import numpy as np
import pytest
from pack_fixtures import SETTINGS, random_specs, random_tensors

from trit.bundle.wrap import wrap
from trit.compress.pack import pack
from trit.compress.quantize import QuantTensor
from trit.params import ParamSpec
from trit.proof import paid_prefix
from trit.proof.paid_prefix import Windows, symbol_values, text_runs
from trit.proof.views import artifact_views, code_views

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 1024
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ,.-0123456789ABCDEFGHIJKL", np.uint8)


def split(seed, text_bytes=4000, tokens=1500, vocab=VOCAB):
    """(token ids, text) of a validation split. The two need not belong together: they are looked for apart."""
    generator = np.random.default_rng(seed)
    return generator.integers(2, vocab, tokens), LETTERS[generator.integers(0, len(LETTERS), text_bytes)].tobytes()


def bits_of(ids, width, order):
    """Bits (uint8 0 or 1) of ids in `width` bits each, as the bytes of `order` ("big" or "little") hold them."""
    bits = np.asarray(ids)[:, None] >> (np.arange(width) if order == "little" else np.arange(width)[::-1]) & 1
    return bits.reshape(-1).astype(np.uint8)


def trits_of(numbers, count, order, zero=0):
    """Trits, one a byte, of numbers in `count` trits each; the digit 0 is the byte `zero`."""
    places = 3 ** (np.arange(count) if order == "low" else np.arange(count)[::-1])
    return ((np.asarray(numbers)[:, None] // places % 3).reshape(-1) + zero).astype(np.uint8)


# {name in the report: (reference, ids or text -> symbols of a stream of bytes, bits or trits)}
ENCODERS = {
    "text, UTF-8": ("text", lambda text: text),
    "ids, low byte": ("ids", lambda ids: ids & 255),
    "ids, 16 bits little-endian": ("ids", lambda ids: np.frombuffer(ids.astype("<u2").tobytes(), np.uint8)),
    "ids, 16 bits big-endian": ("ids", lambda ids: np.frombuffer(ids.astype(">u2").tobytes(), np.uint8)),
    "ids, 10 bits each, high first": ("ids", lambda ids: bits_of(ids, 10, "big")),
    "ids, 10 bits each, low first": ("ids", lambda ids: bits_of(ids, 10, "little")),
    "text, 5 trits each, low first": ("text", lambda text: trits_of(text, 5, "low")),
    "text, 6 trits each, high first": ("text", lambda text: trits_of(text, 6, "high")),
    "ids, 7 trits each, high first": ("ids", lambda ids: trits_of(ids, 7, "high")),
    "ids, 7 trits each, low first": ("ids", lambda ids: trits_of(ids, 7, "low")),
}


def surrounded(name, symbols, generator, before, after):
    """A view in which `symbols` lie between `before` and `after` random symbols of the same kind (bytes, bits or trits)."""
    top = 2 if "bits each" in name else 3 if "trits" in name else 256
    noise = [generator.integers(0, top, count) for count in (before, after)]
    stream = np.concatenate([noise[0], np.asarray(symbols), noise[1]]).astype(np.uint8)
    return np.packbits(stream, bitorder="little" if "low first" in name else "big").tobytes() if top == 2 else stream.tobytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_the_shortest_run_that_counts_is_found_at_every_offset(name, monkeypatch):
    monkeypatch.setattr(paid_prefix, "BLOCK_PLACES", 512)  # runs cross the borders of blocks
    ids, text = split(0)
    reference, encode = ENCODERS[name]
    whole, shortest = (np.frombuffer(text, np.uint8), 64) if reference == "text" else (ids, 24)
    generator = np.random.default_rng(1)
    for trial in range(24):
        position, before = int(generator.integers(0, len(whole) - shortest)), int(generator.integers(0, 900))
        run = encode(whole[position : position + shortest])
        view = surrounded(name, run, generator, before, 0 if trial % 4 == 0 else int(generator.integers(0, 900)))
        begin = before // 8 if "bits each" in name else before
        for found in text_runs({"honest": generator.bytes(2000), "guilty": view}, ids, text, VOCAB):
            assert found.view == "guilty" and found.symbols >= shortest
            if found.encoding == name:
                break
        else:
            pytest.fail(f"not found at offset {before}")
        assert position - 4 <= found.position <= position and found.symbols - (position - found.position) - shortest <= 4
        assert begin - 8 <= found.byte <= begin


@pytest.mark.parametrize("name", ENCODERS)
def test_one_symbol_less_does_not_count(name):
    ids, text = split(2)
    reference, encode = ENCODERS[name]
    run = np.frombuffer(text, np.uint8)[7:70] if reference == "text" else ids[7:30]
    guard = {"text": [0] * 40, "ids": [1] * 40}[reference]  # nothing of the split
    symbols = encode(np.concatenate([guard, run, guard]))
    assert not text_runs({"view": surrounded(name, symbols, np.random.default_rng(0), 0, 0)}, ids, text, VOCAB)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pieces", [(1 << 17, 1 << 14), (64, 8)])
def test_the_whole_split_is_one_run(name, pieces, monkeypatch):
    for setting, value in zip(("BLOCK_PLACES", "EXTEND_SYMBOLS"), pieces, strict=True):
        monkeypatch.setattr(paid_prefix, setting, value)
    ids, text = split(3, 900, 500)
    reference, encode = ENCODERS[name]
    symbols = encode(np.frombuffer(text, np.uint8) if reference == "text" else ids)
    found = text_runs({"view": surrounded(name, symbols, np.random.default_rng(0), 13, 21)}, ids, text, VOCAB)
    assert [(run.encoding, run.position, run.symbols) for run in found if run.encoding == name] == [
        (name, 0, 900 if reference == "text" else 500)
    ]


def test_byte_tokens_count_like_text():
    text = split(4)[1]
    ids = np.frombuffer(text, np.uint8).astype(int) + 4
    view = b"\xff" * 9 + bytes((ids[100:170]).tolist()) + b"\xff" * 9
    assert [(run.encoding, run.symbols) for run in text_runs({"view": view}, ids, text, 260)] == [("ids, low byte", 70)]
    assert not text_runs({"view": b"\xff" * 9 + bytes(ids[100:160].tolist()) + b"\xff" * 9}, ids, text, 260)
    packed = np.packbits(bits_of(ids[5:200], 9, "big")).tobytes()
    assert [(run.encoding, run.symbols) for run in text_runs({"view": packed}, ids, text, 260)] == [("ids, 9 bits each, high first", 195)]


def test_limit_and_repeated_text():
    ids, text = split(5)
    view = b"\0".join([text[100:400]] * 20)
    assert len(text_runs({"a": view, "b": view}, ids, text, VOCAB, limit=4)) == 8
    # A text that repeats itself: every copy in the view is told, by one of its places.
    found = text_runs({"view": b"\0".join([text[100:400]] * 3)}, ids, text * 2, VOCAB)
    assert sorted({run.byte for run in found}) == [0, 301, 602] and all(run.symbols == 300 for run in found)


def test_runs_around_boilerplate_are_found():
    """The only window inside a run may begin elsewhere in the split too, in other company."""
    generator = np.random.default_rng(0)
    blocks = [split(seed)[1][:36] for seed in range(5)]
    text = b"".join(blocks[i] + bytes([65 + i]) * int(generator.integers(0, 3)) for i in generator.integers(0, 5, 400))
    for _ in range(60):
        position = int(generator.integers(0, len(text) - 64))
        view = generator.bytes(50) + text[position : position + 64] + generator.bytes(50)
        (run,) = {(run.byte, run.symbols) for run in text_runs({"view": view}, np.arange(2), text, VOCAB) if run.symbols >= 64}
        assert run[0] in range(48, 51) and run[1] in range(64, 68)


# Honest files


def test_random_views_raise_no_alarm():
    generator = np.random.default_rng(0)
    ids, text = split(6, 200_000, 80_000)
    honest = {"bytes": generator.bytes(100_000), "trits": generator.integers(-1, 2, 100_000, np.int8).tobytes(), "none": b"", "one": b"x"}
    honest |= {str(size): generator.bytes(size) for size in range(2, 60)}
    assert not text_runs(honest, ids, text, VOCAB)
    assert not text_runs(honest, ids[:0], b"", VOCAB) and not text_runs(honest, ids[:20], text[:60], VOCAB)


@pytest.mark.parametrize("seed", range(4))
def test_honest_artifacts_raise_no_alarm(seed):
    generator = np.random.default_rng(seed)
    specs = random_specs(generator)
    tensors = random_tensors(specs, generator)
    assert not text_runs(artifact_views(pack(SETTINGS, specs, tensors), SETTINGS, specs), *split(7, 50_000, 20_000), VOCAB)


def test_dull_text_raises_no_alarm():
    """Rulers, blanks, tables and repeated tokens stand in honest files and in any text."""
    dull = b"=" * 500 + b" " * 500 + b"-=" * 300 + b"| --- | --- |\n" * 50 + b"\0" * 500 + b"0, " * 200
    ids = np.array([5] * 300 + [5, 7] * 300 + [2, 3, 2, 4] * 100 + [0] * 300)
    honest = {"text": dull, "ids": ids.astype("<u2").tobytes(), "low": bytes(ids.tolist()), "zeros": bytes(5000), "one": b"\1" * 5000}
    honest["packed"] = np.packbits(bits_of(ids, 10, "big")).tobytes()
    assert not text_runs(honest, ids, dull, VOCAB)
    assert not text_runs(honest, np.arange(700) % 7, dull, 7)


def test_our_own_code_raises_no_alarm():
    source = "\n".join(path.read_text() for path in sorted((ROOT / "trit" / "eval").glob("*.py")))
    words = np.random.default_rng(0).choice(sorted({word for word in source.split() if len(word) < 20}), 20_000)
    assert not text_runs(code_views(wrap(source, ("zlib",))), split(8)[0], " ".join(words).encode(), VOCAB)


def test_windows_of_few_symbols_are_left_out():
    values = symbol_values()
    assert len(Windows(np.arange(3000) % 7, 24, 8, values).hashes) == 0
    periodic = Windows(np.arange(3000) % 8, 24, 8, values)
    assert len(periodic.hashes) == 230 and len(set(periodic.hashes.tolist())) == 8, "one hash for each phase of the period"
    assert len(Windows(np.arange(11), 24, 1, values).hashes) == 0 and len(Windows(np.arange(12), 24, 1, values).hashes) == 1


# Artifacts and counted files


def plant(scheme, codes, bits=8):
    """(specs, settings, artifact) of one honest tensor and one whose codes (or halves) are the given ones."""
    generator = np.random.default_rng(0)
    specs = [
        ParamSpec("honest", (20, 50), group="matrix", scheme="ternary", bits=2, group_size=50),
        ParamSpec("guilty", (len(codes) // 70, 70), group="embed", scheme=scheme, bits=bits, group_size=0 if scheme == "fp16" else 70),
    ]
    tensors = random_tensors(specs, generator)
    codes = codes[: len(codes) // 70 * 70].reshape(-1, 70)
    tensors["guilty"] = QuantTensor(codes, None if scheme == "fp16" else np.full((len(codes), 1), 0.5, np.float16))
    return specs, SETTINGS, pack(SETTINGS, specs, tensors)


def test_text_in_the_codes_of_an_artifact_is_found():
    ids, text = split(9)
    planted = {
        "text as 8-bit codes": plant("int", np.frombuffer(text, np.int8)),
        "text as digits": plant("int", (np.frombuffer(text, np.uint8).astype(int) - 127).astype(np.int8)),
        "text as trits": plant("ternary", trits_of(np.frombuffer(text, np.uint8), 5, "low", -1).view(np.int8), 2),
        "ids as trits": plant("ternary", trits_of(ids, 7, "high", -1).view(np.int8), 2),
        "ids as halves": plant("fp16", ids.astype(np.uint16).view(np.float16)),
    }
    for what, (specs, cfg, data) in planted.items():
        found = text_runs(artifact_views(data, cfg, specs), ids, text, VOCAB)
        assert found and max(run.symbols for run in found) > 1000, what
        assert what.split()[0] in {run.encoding.split(",")[0] for run in found}, what
    assert "guilty, codes" in {run.view for run in text_runs(artifact_views(*planted["text as 8-bit codes"][::-1]), ids, text, VOCAB)}


def test_text_in_a_counted_file_is_found():
    ids, text = split(10)
    line = text[300:500].decode()
    latin = brotli.compress(text).decode("latin-1")
    sources = {
        "comment": f"# {line}\nx = 1\n",
        "literal": f"x = {line!r}\n",
        "pieces": "x = [" + ", ".join(repr(line[i : i + 20]) for i in range(0, 200, 20)) + "]\n",
        "numbers": f"x = {ids[50:90].tolist()}\n",
        "one number": f"x = {int.from_bytes(text[:200], 'big'):#x}\n",
        "zlib": f"import zlib\nx = zlib.decompress({zlib.compress(text)!r})\n",
        "brotli in latin-1": f"x = {latin!r}\n",
        "lzma in base85": f"x = {base64.b85encode(lzma.compress(text)).decode()!r}\n",
        "raw lzma in base64": f"x = {base64.b64encode(lzma.compress(text, lzma.FORMAT_RAW, filters=[{'id': lzma.FILTER_LZMA2}])).decode()!r}\n",
        "ids in ascii85": f"x = {base64.a85encode(ids.astype('<u2').tobytes()).decode()!r}\n",
        "packed ids": f"x = {np.packbits(bits_of(ids, 10, 'little'), bitorder='little').tobytes()!r}\n",
        "hexadecimal": f"x = {text[:100].hex()!r}\n",
        "source in a literal": f"exec({zlib.compress(f'y = {base64.b64encode(text[:300])!r}'.encode())!r})\n",
    }
    for name, source in sources.items():
        for file in (source.encode(), wrap(source, ("zlib",))):
            found = text_runs(code_views(file), ids, text, VOCAB)
            assert found and max(run.symbols for run in found) >= (40 if name == "numbers" else 96), name
    packed = zlib.compress(f"y = {base64.b64encode(text[:300])!r}".encode())
    deep = zlib.compress(zlib.compress(zlib.compress(packed)))
    assert not text_runs(code_views(f"x = {deep!r}\n".encode()), ids, text, VOCAB), "as deep as is searched"
    assert text_runs(code_views(f"x = {deep!r}\nz = {packed!r}\n".encode()), ids, text, VOCAB), "what was met too deep is met again"
    assert not text_runs(code_views(b"def broken(:\n"), ids, text, VOCAB)
    assert list(code_views(b"x = 1\n")) == ["counted file"]
    assert not text_runs(code_views(b"x = " + repr(zlib.compress(bytes(10_000_000))).encode()), ids, text, VOCAB)
