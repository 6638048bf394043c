"""Every file that is not exactly right is refused with a PackError that says why: damage, hostile streams, bombs, wrong tensors."""

import lzma
import tracemalloc

import brotli
import numpy as np
import pytest
from pack_fixtures import EXAMPLE, EXAMPLE_SPECS, SETTINGS, artifact, refusal, same, sealed, small_artifact, storage

from trit.compress import pack as packing
from trit.compress.entropy import decode_streams
from trit.compress.layouts import PackError
from trit.compress.pack import pack, stored_specs, unpack
from trit.compress.quantize import SMALLEST_SCALE, QuantTensor

ALL = storage(0, "all")


@pytest.mark.parametrize("cfg", [SETTINGS, storage(8, "all"), storage(8, "all", True)], ids=["plain", "all", "allocated"])
def test_every_truncation_extension_and_flip_is_refused(cfg, monkeypatch):
    """And before anything is decoded: the checksum is looked at first."""
    specs, _, data = small_artifact(cfg)
    decoded = []
    monkeypatch.setattr(packing, "decode_streams", lambda *given: decoded.append(given) or decode_streams(*given))
    for end in range(len(data)):
        refusal(cfg, specs, data[:end])
    for tail in (b"\0", b"TRIT", data):
        assert "checksum" in refusal(cfg, specs, data + tail)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            refusal(cfg, specs, bytes(flipped))
    assert not decoded
    for tail in (b"\0", b"TRIT", data):
        refusal(cfg, specs, sealed(data + tail))
    assert decoded


@pytest.mark.parametrize("count", [200, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cfg", [SETTINGS, storage(8, "all", True)], ids=["plain", "allocated"])
def test_resealed_damage_never_raises_anything_else(cfg, count):
    specs, _, data = small_artifact(cfg)
    generator = np.random.default_rng(6)
    for _ in range(count):
        damaged = bytearray(data)
        for place in generator.integers(21, len(data), generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        try:
            data_now = sealed(bytes(damaged))
            stored = stored_specs(cfg, specs, data_now)
            tensors = unpack(cfg, stored, data_now)
        except PackError:
            continue
        for spec in stored:
            packing.check_tensor(cfg, spec, tensors[spec.name])  # what is accepted is at least storable


def test_each_fault_has_its_sentence():
    specs, _, data = small_artifact()
    assert "not an artifact" in refusal(SETTINGS, specs, b"") and "not an artifact" in refusal(SETTINGS, specs, b"PK\3\4" + data[4:])
    assert "version [1] is not the known version 2" in refusal(SETTINGS, specs, data[:4] + b"\1" + data[5:])
    assert "cut off: 20 bytes" in refusal(SETTINGS, specs, data[:20])
    assert "damaged: its checksum" in refusal(SETTINGS, specs, data[:-1] + bytes([data[-1] ^ 1]))
    for change in ({"name": "v"}, {"shape": (10, 50)}, {"group_size": 32}, {"scheme": "int"}, {"rotate": True}):
        assert "another configuration" in refusal(SETTINGS, [specs[0]._replace(**change), *specs[1:]], data)
    moved = specs[0]._replace(init="constant", value=1.0)
    assert "another configuration" in refusal(SETTINGS, [moved, *specs[1:]], data)
    assert "another configuration" in refusal(storage(4), specs, data)
    assert "mode 255 is unknown for a stream of 450 symbols below 3" in refusal(SETTINGS, specs, sealed(data[:21] + b"\xff" + data[22:]))
    assert "cut off: 23 bytes where 4 streams" in refusal(SETTINGS, specs, sealed(data[:23]))
    assert "lanes of its coder" in refusal(SETTINGS, specs, sealed(data[:30]))
    assert "ends before its symbols do, or goes on" in refusal(SETTINGS, specs, sealed(data[:-4]))
    assert "ends before its symbols do, or goes on" in refusal(SETTINGS, specs, sealed(data + bytes(4)))


def test_unknown_storages_are_refused():
    cfg = storage(8, allocate=True)
    specs, _, data = small_artifact(cfg)
    for byte in (9, 15, 32, 33, 255):
        with pytest.raises(PackError, match=f"w: storage {byte} is unknown"):
            stored_specs(cfg, specs, data[:21] + bytes([byte]) + data[22:])
    with pytest.raises(PackError, match="do not hold 3 storages"):
        stored_specs(cfg, specs, data[:23])


# w's codes, then the two bytes of its scales and of b, all by other coders; the lane's state is untouched
EXAMPLE_STREAMS = [(0x50, b"\xc8\x02"), (0x10, b"84\x3c\xc0"), (0x10, b"\0\0\0\0")]


def body(streams):
    """What follows the header where every stream is another coder's."""
    lengths = b"".join(len(data).to_bytes(4, "little") for _, data in streams)
    return bytes(method for method, _ in streams) + lengths + b"".join(data for _, data in streams) + (1 << 31).to_bytes(8, "little")


@pytest.mark.parametrize(
    "index, method, stream, text",
    [
        (0, 0x50, b"\xf3\x02", "exactly 6 codes of a grid of 3"),  # 243 is five trits and a carry
        (0, 0x50, b"\xc8\x05", "exactly 6 codes"),  # padding digits filled
        (0, 0x50, b"\xc8", "exactly 6 codes"),
        (0, 0x50, b"\xc8\x02\x00", "does not end after the at most 2 bytes"),
        (0, 0x60, b"\xcc\xb1", "exactly 6 codes"),  # a sign bit too many
        (0, 0x60, b"\xcd\xb0", "exactly 6 codes"),  # a mask bit too many
        (0, 0x10, b"\2\0\1\1\2\2", "mode 16 is unknown"),
        (0, 0x53, b"\xc8\x02", "mode 83 is unknown"),
        (1, 0x90, b"84\x3c\xc0", "mode 144 is unknown"),  # halves have no column order
        (0, 0x51, b"\xff\xff", "compressed stream is damaged"),
        (0, 0x52, b"\xc8\x02", "compressed stream is damaged"),
        (0, 0x51, b"", "does not end"),
        (0, 0x52, b"", "does not end"),
        (0, 0x51, brotli.compress(b"\xc8\x02")[:-1], "does not end"),
        (0, 0x51, brotli.compress(b"\xc8\x02") + b"\0", "compressed stream is damaged"),
        (1, 0x10, b"\x7c4\x3c\xc0", "not finite"),  # infinity
        (1, 0x10, b"\x7e4\x3c\xc0", "not finite"),  # NaN
        (1, 0x10, b"\xb44\x3c\xc0", "w: a scale is below"),  # negative
        (1, 0x10, b"\x004\x3c\xc0", "w: a scale is below"),  # zero
        (1, 0x10, b"\x034\x3c\xc0", "w: a scale is below"),  # below the smallest normal number
        (1, 0x10, b"84\x7c\x3c", "not finite"),
    ],
)
def test_hostile_streams_with_a_right_checksum(index, method, stream, text):
    streams = list(EXAMPLE_STREAMS)
    assert same(unpack(ALL, EXAMPLE_SPECS, artifact(ALL, EXAMPLE_SPECS, body(streams))), EXAMPLE)
    streams[index] = (method, stream)
    assert text in refusal(ALL, EXAMPLE_SPECS, artifact(ALL, EXAMPLE_SPECS, body(streams)))


def test_lengths_beyond_the_file_are_refused():
    for lengths in (b"\xff\xff\xff\xff" * 3, b"\x7f\0\0\0" + bytes(8), b"\2\0"):
        data = artifact(ALL, EXAMPLE_SPECS, b"\x50\x10\x10" + lengths)
        assert "cut off" in refusal(ALL, EXAMPLE_SPECS, data) or "streams need more" in refusal(ALL, EXAMPLE_SPECS, data)


@pytest.mark.parametrize("compressor", [1, 2])
def test_bombs_are_refused_without_memory(compressor):
    zeros = bytes(50_000_000)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    bomb = brotli.compress(zeros, quality=5) if compressor == 1 else lzma.compress(zeros, lzma.FORMAT_RAW, filters=filters)
    assert len(bomb) < 10_000
    del zeros
    streams = [(0x50 | compressor, bomb), *EXAMPLE_STREAMS[1:]]
    tracemalloc.start()
    text = refusal(ALL, EXAMPLE_SPECS, artifact(ALL, EXAMPLE_SPECS, body(streams)))
    assert "does not end after the at most 2 bytes" in text
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_pack_refuses_what_it_could_not_give_back():
    def refused(name, codes, scales, cfg=SETTINGS):
        with pytest.raises(PackError) as caught:
            pack(cfg, EXAMPLE_SPECS, {**EXAMPLE, name: QuantTensor(codes, scales)})
        return str(caught.value)

    codes, scales = EXAMPLE["w"]
    assert "outside the grid from -1 to 1" in refused("w", codes * 2, scales)
    assert "padding position" in refused("w", np.ones((2, 4), np.int8), scales)
    assert "codes are int64 of shape (2, 4), not int8" in refused("w", codes.astype(np.int64), scales)
    assert "not int8 of shape (2, 4)" in refused("w", codes[:1], scales)
    assert "scales are not float16 of shape (2, 1)" in refused("w", codes, scales.astype(np.float32))
    assert "scales are not float16" in refused("w", codes, None)
    for bad in (0, -1, np.inf, np.nan, SMALLEST_SCALE / 2):
        assert "a scale is not a finite number" in refused("w", codes, np.array([[1], [bad]], np.float16))
    for bad in (0.3, 65504, 1.001):
        assert "a scale is not one of quant.scale_steps" in refused("w", codes, np.array([[1], [bad]], np.float16), storage(8))
    assert "b: a value is not finite" in refused("b", np.array([1, np.inf], np.float16), None)
    assert "differ in extra" in refused("extra", codes, scales)
    with pytest.raises(PackError, match="differ in b"):
        pack(SETTINGS, EXAMPLE_SPECS, {"w": EXAMPLE["w"]})
