"""Quantised tensors <-> the bytes of the artifact. `docs/format.md` gives the container byte for byte.

The table of specs drives the decoding, never the file: shapes, grids and the number of symbols are known before a byte is read, so a
hostile file costs no more memory and time than the model itself. Whatever is wrong raises PackError with one sentence.
"""

import hashlib
import struct

import numpy as np

from trit.compress.entropy import Stream, decode_streams, encode_streams, lane_count, mode_known
from trit.compress.layouts import PackError, compress_stream, ensure_packable, expand_stream
from trit.compress.prune import kept_counts, kept_map
from trit.compress.quantize import SMALLEST_SCALE, QuantTensor, group_counts, group_layout, is_float, scale_table, stores_floats

PACK_MAGIC = b"TRIT"
PACK_VERSION = 2
PACK_HEADER = "<4sB8s8s"  # magic, version, fingerprint of the specs, checksum of everything but itself
PACK_HEADER_BYTES = 21
OTHER_CODER = 16  # modes from here on are methods of trit/compress/layouts.py
ROTATED = 16  # in the table of storages


def spec_fingerprint(cfg, specs):
    """8 bytes that differ between tables of tensors: sha256 over one text line a tensor, after one for the scales."""
    lines = [f"scales {cfg.quant.scale_steps}\n"]
    if cfg.compress.engram_keep:
        lines.append(f"kept {' '.join(map(str, kept_counts(cfg)))}\n")
    for s in specs:
        start = s.value if s.init == "constant" and s.scheme != "fp16" else 0
        lines.append(f"{s.name} {'x'.join(map(str, s.shape))} {s.scheme} {s.bits} {s.group_size} {start:g} {int(s.rotate)}\n")
    return hashlib.sha256("".join(lines).encode()).digest()[:8]


def grid_top(spec):
    """Largest code of a spec's symmetric grid."""
    return 1 if spec.scheme == "ternary" else 2 ** (spec.bits - 1) - 1


def real_entries(spec):
    """Mask (groups, group_size) of the positions that are weights and not padding; padding always trails."""
    groups, size, _ = group_layout(spec)
    counts = group_counts(spec)
    return np.arange(size) < np.resize(counts, (groups, 1))


def row_codes(spec):
    """Codes of a row of a table, with those that pad it where groups lie inside rows."""
    inside = spec.scheme != "fp16" and spec.group_size <= spec.shape[-1]
    return spec.shape[-1] + (group_layout(spec)[2] if inside else 0)


def kept_entries(spec, kept):
    """Mask of the codes, or of the 16-bit values, that stand for the rows `kept` (rows,) of a pruned table, in the layout of the codes."""
    if spec.scheme == "fp16":
        return np.repeat(kept[:, None], spec.shape[-1], 1)
    real = real_entries(spec)
    rows = real.reshape(-1, row_codes(spec))
    return (rows & np.append(kept, np.zeros(len(rows) - len(kept), bool))[:, None]).reshape(real.shape)


def filled_rows(spec, codes):
    """Mask (rows,) of the rows of a table that hold anything but zeros, of its codes or 16-bit values."""
    return codes.reshape(-1, row_codes(spec)).any(1)[: spec.shape[0]]


def kept_groups(spec, entries):
    """Mask (groups,) of a pruned table's groups whose scales are stored: those of kept rows, and all where groups span rows."""
    return entries.any(1) | (spec.group_size > spec.shape[-1])


def pruned_counts(cfg, spec):
    """(codes or 16-bit values, scales) that are stored of a pruned table."""
    rows, scales = sum(kept_counts(cfg)), 0 if spec.scheme == "fp16" else group_layout(spec)[0]
    return rows * spec.shape[-1], scales if spec.group_size > spec.shape[-1] else scales // spec.shape[0] * rows


def stream_table(cfg, specs):
    """[Stream, ...] of the artifact: each tensor's codes and scale places; last the two bytes of all 16-bit floats, high bytes first.
    A pruned table's map of rows stands before its codes."""
    table, halves = [], 0
    for spec in specs:
        count = int(np.prod(spec.shape))
        if cfg.compress.engram_keep and spec.name == "engram.table":
            table.append(Stream(2, spec.shape[0], 1))
            count = pruned_counts(cfg, spec)[0]
        if not is_float(cfg, spec):
            table.append(Stream(2 * grid_top(spec) + 1, count, spec.shape[-1]))
            count = group_layout(spec)[0]
            if cfg.compress.engram_keep and spec.name == "engram.table":
                count = pruned_counts(cfg, spec)[1]
            if cfg.quant.scale_steps:
                table.append(Stream(29 * cfg.quant.scale_steps + 1, count, 1))
                count = 0
        halves += count
    return table + [Stream(256, halves, 1)] * 2 if stores_floats(cfg) and halves else table


def storage_byte(spec):
    """One byte that says how a tensor is stored: its bits (1 ternary, 0 float16), and whether it is rotated."""
    return {"ternary": 1, "fp16": 0}.get(spec.scheme, spec.bits) + ROTATED * spec.rotate


def stored_specs(cfg, specs, data):
    """The specs as the artifact stores them: with compress.allocate the file says each tensor's scheme, bits and rotation."""
    if cfg.compress.allocate:
        table = data[PACK_HEADER_BYTES : PACK_HEADER_BYTES + len(specs)]
        ensure_packable(len(table) == len(specs), f"the artifact is cut off: {len(data)} bytes do not hold {len(specs)} storages")
        known = {0: ("fp16", 16), 1: ("ternary", 2), **{bits: ("int", bits) for bits in range(2, 9)}}
        found = []
        for spec, byte in zip(specs, table):
            scheme = known.get(byte % ROTATED)
            good = byte < 2 * ROTATED and scheme is not None and (scheme[0] == "fp16" or spec.group_size > 0)
            ensure_packable(good, f"{spec.name}: storage {byte} is unknown")
            found.append(spec._replace(scheme=scheme[0], bits=scheme[1], rotate=byte >= ROTATED))
        return found
    return specs


def check_tensor(cfg, spec, tensor):
    """PackError unless the codes lie in the spec's layout and grid, padding is zero, and scales and halves are finite."""
    name, codes, scales = spec.name, tensor.codes, tensor.scales
    shape, kind = (tuple(spec.shape), np.float16) if is_float(cfg, spec) else (group_layout(spec)[:2], np.int8)
    good = codes.shape == shape and codes.dtype == kind
    ensure_packable(good, f"{name}: codes are {codes.dtype} of shape {codes.shape}, not {np.dtype(kind)} of shape {shape}")
    if is_float(cfg, spec):
        ensure_packable(np.isfinite(codes).all(), f"{name}: a value is not finite; 16-bit values end at 65504")
        return
    top = grid_top(spec)
    ensure_packable(codes.min() >= -top and codes.max() <= top, f"{name}: a code lies outside the grid from {-top} to {top}")
    ensure_packable(not codes[~real_entries(spec)].any(), f"{name}: a padding position is not zero")
    good = scales is not None and scales.shape == (shape[0], 1) and scales.dtype == np.float16
    ensure_packable(good, f"{name}: scales are not float16 of shape {(shape[0], 1)}, one for each group")
    good = np.isfinite(scales).all() and scales.min() >= SMALLEST_SCALE
    ensure_packable(good, f"{name}: a scale is not a finite number of at least {SMALLEST_SCALE:.1e}")


def stream_symbols(cfg, specs, tensors):
    """[symbols (count,), ...] of the streams of `stream_table`."""
    found, halves = [], []
    for spec in specs:
        codes, scales = tensors[spec.name]
        if cfg.compress.engram_keep and spec.name == "engram.table":
            kept = kept_map(cfg, filled_rows(spec, codes))
            entries = kept_entries(spec, kept)
            found.append(kept.astype(np.int16))
            codes = codes[entries]
        if not is_float(cfg, spec):
            if cfg.compress.engram_keep and spec.name == "engram.table":
                stored = kept_groups(spec, entries)
                ensure_packable((scales[~stored] == SMALLEST_SCALE).all(), f"{spec.name}: a row that is not kept has a scale")
                found.append(codes.astype(np.int16) + grid_top(spec))
                scales = scales[stored]
            else:
                found.append(codes[real_entries(spec)].astype(np.int16) + grid_top(spec))
            codes = scales
            if cfg.quant.scale_steps:
                table = scale_table(cfg.quant.scale_steps)
                places = np.minimum(table.searchsorted(scales[:, 0]), len(table) - 1)
                ensure_packable((table[places] == scales[:, 0]).all(), f"{spec.name}: a scale is not one of quant.scale_steps")
                found.append(places)
                continue
        halves.append(codes.reshape(-1))
    if stores_floats(cfg) and halves:
        planes = np.concatenate(halves).astype("<f2").view(np.uint8)
        found += [planes[1::2], planes[::2]]
    return found


def pack(cfg, specs, tensors):
    """{name: QuantTensor} of a table of specs (as stored) -> the artifact. Equal tensors give equal bytes."""
    names = {spec.name for spec in specs}
    ensure_packable(names == set(tensors), f"tensors and specs differ in {', '.join(sorted(names ^ set(tensors)))}")
    for spec in specs:
        check_tensor(cfg, spec, tensors[spec.name])
    streams, symbols = stream_table(cfg, specs), stream_symbols(cfg, specs, tensors)
    others = {}
    if cfg.compress.coders == "all":
        others = {i: compress_stream(stream, part) for i, (stream, part) in enumerate(zip(streams, symbols)) if stream.base < 257}
    modes, others, coded = encode_streams(streams, symbols, others)
    body = bytes(storage_byte(spec) for spec in specs) if cfg.compress.allocate else b""
    body += bytes(modes) + b"".join(struct.pack("<I", len(other)) for other in others) + b"".join(others) + coded
    head = struct.pack("<4sB8s", PACK_MAGIC, PACK_VERSION, spec_fingerprint(cfg, specs))
    return head + hashlib.sha256(head + body).digest()[:8] + body


def check_header(cfg, specs, data):
    """PackError unless magic, version, fingerprint and checksum are right."""
    ensure_packable(data[:4] == PACK_MAGIC, f"not an artifact: it starts with {data[:4]!r}, not {PACK_MAGIC!r}")
    ensure_packable(data[4:5] == bytes([PACK_VERSION]), f"format version {list(data[4:5])} is not the known version {PACK_VERSION}")
    ensure_packable(
        len(data) >= PACK_HEADER_BYTES, f"the artifact is cut off: {len(data)} bytes where the header alone has {PACK_HEADER_BYTES}"
    )
    _, _, fingerprint, checksum = struct.unpack_from(PACK_HEADER, data)
    wanted = spec_fingerprint(cfg, specs)
    text = f"packed for another configuration: the file's tensors have fingerprint {fingerprint.hex()}, this configuration's {wanted.hex()}"
    ensure_packable(fingerprint == wanted, text)
    good = hashlib.sha256(data[:13] + data[PACK_HEADER_BYTES:]).digest()[:8] == checksum
    ensure_packable(good, "the artifact is damaged: its checksum does not match its bytes")


def read_streams(cfg, specs, data):
    """Artifact -> ([mode, ...], {stream: bytes of another coder}, bytes of the entropy coder), the header checked."""
    check_header(cfg, specs, data)
    streams = stream_table(cfg, specs)
    at = PACK_HEADER_BYTES + (len(specs) if cfg.compress.allocate else 0)
    modes, at = list(data[at : at + len(streams)]), at + len(streams)
    ensure_packable(at <= len(data), f"the artifact is cut off: {len(data)} bytes where {len(streams)} streams have modes")
    others = {}
    if cfg.compress.coders == "all":
        other = [i for i, mode in enumerate(modes) if mode >= OTHER_CODER]
        ensure_packable(at + 4 * len(other) <= len(data), "the artifact is cut off inside the lengths of its streams")
        lengths = struct.unpack_from(f"<{len(other)}I", data, at)
        at += 4 * len(other)
        ensure_packable(at + sum(lengths) <= len(data), f"the artifact has {len(data)} bytes where its streams need more")
        for i, length in zip(other, lengths):
            others[i], at = data[at : at + length], at + length
    for stream, mode in zip(streams, modes):
        good = mode_known(stream, mode) or (cfg.compress.coders == "all" and mode >= OTHER_CODER)
        ensure_packable(good, f"mode {mode} is unknown for a stream of {stream.count} symbols below {stream.base}")
    return modes, others, data[at:]


def read_pruned(cfg, spec, parts, halves, at):
    """(QuantTensor, place in `halves` behind it) of a pruned table, from its streams and the 16-bit numbers from `at` on."""
    kept = next(parts) > 0
    held, counts = kept.reshape(len(kept_counts(cfg)), -1).sum(1), kept_counts(cfg)
    ensure_packable((held == counts).all(), f"{spec.name}: the map keeps {held.tolist()} rows of the tables, not {counts}")
    entries, scales = kept_entries(spec, kept), None
    codes = np.zeros(entries.shape, np.float16 if spec.scheme == "fp16" else np.int8)
    if spec.scheme == "fp16":
        count = pruned_counts(cfg, spec)[0]
        codes[entries], at = halves[at : at + count], at + count
    else:
        codes[entries] = next(parts).astype(np.int16) - grid_top(spec)
        stored = kept_groups(spec, entries)
        scales = np.full((len(codes), 1), SMALLEST_SCALE, np.float16)
        if cfg.quant.scale_steps:
            scales[stored, 0] = scale_table(cfg.quant.scale_steps)[next(parts)]
        else:
            values, at = halves[at : at + stored.sum()], at + stored.sum()
            ensure_packable(values.min() >= SMALLEST_SCALE, f"{spec.name}: a scale is below {SMALLEST_SCALE:.1e}")
            scales[stored, 0] = values
    good = (kept_map(cfg, filled_rows(spec, codes)) == kept).all()
    ensure_packable(good, f"{spec.name}: the map keeps a row of zeros where another row of zeros comes first")
    return QuantTensor(codes, scales), at


def unpack(cfg, specs, data):
    """Artifact -> {name: QuantTensor}, exactly the tensors that were packed; PackError where the file is not one of these specs
    (as stored)."""
    data = bytes(data)
    streams = stream_table(cfg, specs)
    modes, others, coded = read_streams(cfg, specs, data)
    good = len(coded) % 4 == 0 and len(coded) >= 8 * lane_count(streams)
    ensure_packable(good, f"the artifact is cut off: {len(coded)} bytes for {lane_count(streams)} lanes of its coder")
    try:
        found = decode_streams(streams, modes, coded)
    except IndexError:
        raise PackError("the artifact ends before its symbols do, or goes on behind them") from None
    if cfg.compress.coders == "all":
        for i, other in others.items():
            found[i] = expand_stream(streams[i], modes[i], other)
    parts, tensors, at = iter(found), {}, 0
    if cfg.compress.engram_keep:
        halves = None
    if stores_floats(cfg) and streams[-1].base == 256:
        halves = np.stack([found[-1], found[-2]], 1).astype(np.uint8).view("<f2")[:, 0].astype(np.float16)
        ensure_packable(np.isfinite(halves).all(), "a 16-bit number is not finite")
    for spec in specs:
        if cfg.compress.engram_keep and spec.name == "engram.table":
            tensors[spec.name], at = read_pruned(cfg, spec, parts, halves, at)
            continue
        codes = scales = None
        if not is_float(cfg, spec):
            codes = np.zeros(group_layout(spec)[:2], np.int8)
            codes[real_entries(spec)] = next(parts).astype(np.int16) - grid_top(spec)
            if cfg.quant.scale_steps:
                scales = scale_table(cfg.quant.scale_steps)[next(parts)][:, None]
        if stores_floats(cfg) and scales is None:
            count = int(np.prod(spec.shape)) if codes is None else len(codes)
            values, at = halves[at : at + count], at + count
            if codes is None:
                codes = values.reshape(spec.shape)
            else:
                ensure_packable(values.min() >= SMALLEST_SCALE, f"{spec.name}: a scale is below {SMALLEST_SCALE:.1e}")
                scales = values[:, None]
        tensors[spec.name] = QuantTensor(codes, scales)
    return tensors
