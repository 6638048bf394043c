"""Quantised tensors <-> the bytes of the artifact. `docs/format.md` gives the container byte for byte.

The table of specs drives the decoding, never the file: shapes, grids and the most bytes a stream may expand to are known before a
byte is read, so a hostile file costs no more memory than the model itself. Whatever is wrong raises PackError with one sentence.
"""

import hashlib
import lzma
import struct

import brotli
import numpy as np

from trit.compress.quantize import SMALLEST_SCALE, QuantTensor, group_counts, group_layout

PACK_MAGIC = b"TRIT"
PACK_VERSION = 1
PACK_HEADER = "<4sB8s8s"  # magic, version, fingerprint of the specs, checksum of everything but itself
STREAM_HEADER = "<BI"  # method (order << 7 | layout << 4 | compressor), length in the file
MASK_LAYOUT = 6  # one bit a trit says whether it is kept, one bit a kept trit gives its sign; layouts 1 to 5 are digits a byte
BITS_LAYOUT = 7  # as many bits as the grid needs, high bit first
BY_COLUMN = 128  # each tensor's codes stand column by column: columns often differ in scale more than rows do
STORED = 0
BROTLI = 1
LZMA = 2


class PackError(ValueError):
    """The bytes are not an artifact of this configuration, or the tensors cannot be stored in one."""


def ensure_packable(holds, message):
    """PackError with `message` unless `holds`."""
    if not holds:
        raise PackError(message)


def spec_fingerprint(specs):
    """8 bytes that differ between tables of tensors: sha256 over one text line a tensor."""
    lines = [f"{s.name} {'x'.join(map(str, s.shape))} {s.scheme} {s.bits} {s.group_size} {s.group}\n" for s in specs]
    return hashlib.sha256("".join(lines).encode()).digest()[:8]


def spec_kinds(specs):
    """{(scheme, bits, optimiser group): [spec, ...]} in order of first appearance: tensors of a kind share their streams."""
    kinds = {}
    for spec in specs:
        kinds.setdefault((spec.scheme, spec.bits, spec.group), []).append(spec)
    return kinds


def grid_top(spec):
    """Largest code of a spec's symmetric grid."""
    return 1 if spec.scheme == "ternary" else 2 ** (spec.bits - 1) - 1


def real_entries(spec):
    """Mask (groups, group_size) of the positions that are weights and not padding; padding always trails."""
    return np.arange(spec.group_size) < group_counts(spec)


def stream_table(specs):
    """[(base, count), ...]: the artifact's streams, each `count` digits below `base`. Codes first, then the two bytes of the halves."""
    table = []
    for (scheme, _, _), members in spec_kinds(specs).items():
        count = sum(int(np.prod(spec.shape)) for spec in members)
        if scheme != "fp16":
            table.append((2 * grid_top(members[0]) + 1, count))
            count = sum(group_layout(spec)[0] for spec in members)
        table += [(256, count), (256, count)]
    return table


def stream_layouts(base):
    """Ways to write digits below `base` as bytes that are worth trying (measured on Gaussian weights: docs/format.md)."""
    if base == 3:
        return 5, MASK_LAYOUT
    if base < 17:
        return 1, 2
    return (1, BITS_LAYOUT) if base < 128 else (1,)


def layout_size(base, count, layout):
    """Bytes that `count` digits take in a layout; for the mask layout the most they can take."""
    if layout == MASK_LAYOUT:
        return 2 * -(-count // 8)
    return -(-count * base.bit_length() // 8) if layout == BITS_LAYOUT else -(-count // layout)


def write_digits(digits, base, layout):
    """uint8 digits below `base` -> bytes."""
    if layout == MASK_LAYOUT:
        return np.packbits(digits != 1).tobytes() + np.packbits(digits[digits != 1] > 1).tobytes()
    if layout == BITS_LAYOUT:
        return np.packbits(np.unpackbits(digits[:, None], axis=1)[:, 8 - base.bit_length() :]).tobytes()
    digits = np.concatenate([digits, np.zeros(-len(digits) % layout, np.uint8)])
    total = digits[layout - 1 :: layout]
    for place in range(layout - 2, -1, -1):
        total = total * np.uint8(base) + digits[place::layout]
    return total.tobytes()


def read_digits(data, base, count, layout):
    """Inverse of `write_digits`: (count,) uint8. PackError unless writing the result again gives `data`."""
    raw = np.frombuffer(data.ljust(layout_size(base, count, layout), b"\0"), np.uint8)
    if layout == MASK_LAYOUT:
        kept = np.unpackbits(raw[: -(-count // 8)])[:count] > 0
        digits = np.ones(count, np.uint8)
        digits[kept] = 2 * np.unpackbits(raw[-(-count // 8) :])[: kept.sum()]
    elif layout == BITS_LAYOUT:
        width = base.bit_length()
        places = np.unpackbits(raw)[: count * width].reshape(count, width)
        digits = np.packbits(places, axis=1)[:, 0] >> np.uint8(8 - width)
    else:
        digits, rest = np.empty((len(raw), layout), np.uint8), raw.astype(np.uint16)
        for place in range(layout):
            rest, digits[:, place] = np.divmod(rest, base)
        digits = digits.reshape(-1)[:count]
    again = write_digits(digits, base, layout)
    ensure_packable(digits.max() < base and again == data, f"a stream does not hold exactly {count} codes of a grid of {base} values")
    return digits


def compress_stream(orders, base):
    """uint8 digits, in row order and where allowed also in column order -> (method byte, bytes), the smallest of all choices.

    A fast setting of the compressor picks order and layout.
    """
    best = None
    for order, digits in enumerate(orders):
        for layout in stream_layouts(base):
            raw = write_digits(digits, base, layout)
            for compressor, data in (STORED, raw), (BROTLI, brotli.compress(raw, quality=9, lgwin=24)):
                if not best or len(data) < len(best[1]):
                    best = (order * BY_COLUMN | layout << 4 | compressor, data, raw)
    method, raw = best[0] & 240, best[2]
    thorough = brotli.compress(raw, quality=11, lgwin=24)
    filtered = lzma.compress(raw, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": max(4096, len(raw))}])
    return min(best[:2], (method | BROTLI, thorough), (method | LZMA, filtered), key=lambda choice: len(choice[1]))


def expand_stream(method, data, base, count):
    """Inverse of `compress_stream`; decompression stops where the stream outgrows its codes, so bombs cost no memory."""
    layout, compressor = method >> 4 & 7, method & 15
    ensure_packable(
        layout in stream_layouts(base) and compressor <= LZMA and (base < 256 or method < BY_COLUMN),
        f"method byte {method} is unknown for a grid of {base} values in format version {PACK_VERSION}",
    )
    limit, complete = layout_size(base, count, layout), True
    try:
        if compressor == BROTLI:
            decoder = brotli.Decompressor()
            data = decoder.process(data, output_buffer_limit=limit + 1)
            complete = decoder.is_finished()
        elif compressor == LZMA:
            decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": max(4096, limit)}])
            data = decoder.decompress(data, limit + 1)
            complete = decoder.eof and not decoder.unused_data
    except (brotli.error, lzma.LZMAError) as fault:
        raise PackError(f"a compressed stream is damaged: {fault}") from None
    ensure_packable(complete and len(data) <= limit, f"a stream does not end after the at most {limit} bytes that {count} codes need")
    return read_digits(data, base, count, layout)


def check_tensor(spec, tensor):
    """PackError unless the codes lie in the spec's layout and grid, padding is zero, and scales and halves are finite."""
    name, codes, scales = spec.name, tensor.codes, tensor.scales
    shape, kind = (tuple(spec.shape), np.float16) if spec.scheme == "fp16" else (group_layout(spec)[:2], np.int8)
    good = codes.shape == shape and codes.dtype == kind
    ensure_packable(good, f"{name}: codes are {codes.dtype} of shape {codes.shape}, not {np.dtype(kind)} of shape {shape}")
    if spec.scheme == "fp16":
        ensure_packable(np.isfinite(codes).all(), f"{name}: a value is not finite; 16-bit values end at 65504")
        return
    top = grid_top(spec)
    ensure_packable(codes.min() >= -top and codes.max() <= top, f"{name}: a code lies outside the grid from {-top} to {top}")
    ensure_packable(not codes[~real_entries(spec)].any(), f"{name}: a padding position is not zero")
    good = scales is not None and scales.shape == (shape[0], 1) and scales.dtype == np.float16
    ensure_packable(good, f"{name}: scales are not float16 of shape {(shape[0], 1)}, one for each group")
    good = np.isfinite(scales).all() and scales.min() >= SMALLEST_SCALE
    ensure_packable(good, f"{name}: a scale is not a finite number of at least {SMALLEST_SCALE:.1e}")


def pack(specs, tensors):
    """{name: QuantTensor} of a table of specs -> the artifact. Equal tensors give equal bytes."""
    names = {spec.name for spec in specs}
    ensure_packable(names == set(tensors), f"tensors and specs differ in {', '.join(sorted(names ^ set(tensors)))}")
    for spec in specs:
        check_tensor(spec, tensors[spec.name])
    streams = []
    for (scheme, _, _), members in spec_kinds(specs).items():
        halves = [tensors[spec.name].codes if scheme == "fp16" else tensors[spec.name].scales for spec in members]
        if scheme != "fp16":
            top = grid_top(members[0])
            digits = [tensors[spec.name].codes[real_entries(spec)].view(np.uint8) + np.uint8(top) for spec in members]
            turned = [part.reshape(-1, spec.shape[-1]).T.reshape(-1) for part, spec in zip(digits, members, strict=True)]
            streams.append(compress_stream([np.concatenate(digits), np.concatenate(turned)], 2 * top + 1))
        planes = np.concatenate([half.reshape(-1) for half in halves]).astype("<f2").view(np.uint8)
        streams += [compress_stream([planes[1::2]], 256), compress_stream([planes[::2]], 256)]
    body = b"".join([struct.pack(STREAM_HEADER, method, len(data)) for method, data in streams] + [data for _, data in streams])
    head = struct.pack("<4sB8s", PACK_MAGIC, PACK_VERSION, spec_fingerprint(specs))
    return head + hashlib.sha256(head + body).digest()[:8] + body


def read_streams(specs, data):
    """Artifact -> [(method byte, offset, length), ...] as its header announces them, everything outside the streams checked."""
    table = stream_table(specs)
    offset = struct.calcsize(PACK_HEADER) + len(table) * struct.calcsize(STREAM_HEADER)
    ensure_packable(data[:4] == PACK_MAGIC, f"not an artifact: it starts with {bytes(data[:4])!r}, not {PACK_MAGIC!r}")
    ensure_packable(data[4:5] == bytes([PACK_VERSION]), f"format version {list(data[4:5])} is not the known version {PACK_VERSION}")
    ensure_packable(len(data) >= offset, f"the artifact is cut off: {len(data)} bytes where the header alone has {offset}")
    _, _, fingerprint, checksum = struct.unpack_from(PACK_HEADER, data)
    wanted = spec_fingerprint(specs)
    text = f"packed for another configuration: the file's tensors have fingerprint {fingerprint.hex()}, this configuration's {wanted.hex()}"
    ensure_packable(fingerprint == wanted, text)
    streams = []
    for i in range(len(table)):
        method, length = struct.unpack_from(STREAM_HEADER, data, struct.calcsize(PACK_HEADER) + i * struct.calcsize(STREAM_HEADER))
        streams.append((method, offset, length))
        offset += length
    ensure_packable(len(data) == offset, f"the artifact has {len(data)} bytes where its header announces {offset}")
    good = hashlib.sha256(data[:13] + data[21:]).digest()[:8] == checksum
    ensure_packable(good, "the artifact is damaged: its checksum does not match its bytes")
    return streams


def unpack(specs, data):
    """Artifact -> {name: QuantTensor}, exactly the tensors that were packed; PackError where the file is not one of these specs."""
    data = bytes(data)
    found = zip(stream_table(specs), read_streams(specs, data), strict=True)
    streams = ((method, expand_stream(method, data[start : start + size], *shape)) for shape, (method, start, size) in found)
    tensors = {}
    for (scheme, _, _), members in spec_kinds(specs).items():
        method, digits = (0, None) if scheme == "fp16" else next(streams)
        high, low = next(streams)[1], next(streams)[1]
        halves = np.stack([low, high], 1).view("<f2")[:, 0].astype(np.float16)
        for spec in members:
            if scheme == "fp16":
                values, halves = np.split(halves, [int(np.prod(spec.shape))])
                tensors[spec.name] = QuantTensor(values.reshape(spec.shape), None)
            else:
                part, digits = np.split(digits, [int(np.prod(spec.shape))])
                scales, halves = np.split(halves, [group_layout(spec)[0]])
                if method >= BY_COLUMN:
                    part = part.reshape(spec.shape[-1], -1).T.reshape(-1)
                codes = np.zeros(group_layout(spec)[:2], np.int8)
                codes[real_entries(spec)] = part.view(np.int8) - np.int8(grid_top(spec))
                tensors[spec.name] = QuantTensor(codes, scales[:, None])
            check_tensor(spec, tensors[spec.name])
    return tensors
