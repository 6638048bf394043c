import collections, concurrent.futures, glob, hashlib, json, math, numpy as np, os, sentencepiece, struct, time, torch, torch.distributed as distributed, torch.nn.functional as functional, warnings, zlib
from collections import deque
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple
ops_CHUNK = 8


def ops_chunked_scan(stack, pad, a, b, reverse):
    batch, length, width = b.shape
    steps = min(ops_CHUNK, length)
    chunks = -(-length // steps)
    missing = chunks * steps - length
    if missing:
        a, b = (pad(a, 0, missing), pad(b, 0, missing))
    a, b = (a.reshape(batch, chunks, steps, width), b.reshape(batch, chunks, steps, width))
    order = list(range(steps))[::-1 if reverse else 1]
    state, decay = (b[:, :, order[0]], a[:, :, order[0]])
    states, decays = ([state], [decay])
    for step in order[1:]:
        state = a[:, :, step] * state + b[:, :, step]
        states.append(state)
        if chunks > 1:
            decay = a[:, :, step] * decay
            decays.append(decay)
    result = stack(states[::-1 if reverse else 1], 2)
    if chunks > 1:
        ends = ops_chunked_scan(stack, pad, decay, state, reverse)
        before = pad(ends[:, 1:], 0, 1) if reverse else pad(ends[:, :-1], 1, 0)
        result = result + stack(decays[::-1 if reverse else 1], 2) * before[:, :, None]
    return result.reshape(batch, chunks * steps, width)[:, :length]


def ops_scan_gradients(stack, pad, a, states, gradient):
    of_b = ops_chunked_scan(stack, pad, pad(a[:, 1:], 0, 1), gradient, True)
    return (of_b * pad(states[:, :-1], 1, 0), of_b)


def ops_pad_time(x, before, after):
    return functional.pad(x, (0, 0, before, after))


class ops_LinearScan(torch.autograd.Function):

    @staticmethod
    def forward(ctx, decays, inputs):
        states = ops_chunked_scan(torch.stack, ops_pad_time, decays, inputs, False)
        ctx.save_for_backward(decays, states)
        return states

    @staticmethod
    def backward(ctx, gradient):
        return ops_scan_gradients(torch.stack, ops_pad_time, *ctx.saved_tensors, gradient)


def ops_from_numpy(array, like=None):
    return torch.tensor(array, device=None if like is None else like.device)


def ops_constant(values, like):
    return like.new_tensor(values, dtype=torch.float32)


def ops_to_numpy(x):
    x = x.detach()
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def ops_cast(x, dtype):
    return x.to(getattr(torch, dtype))


def ops_zeros(shape, like):
    return like.new_zeros(shape)


def ops_arange(count, like):
    return torch.arange(float(count), device=like.device)


def ops_reshape(x, shape):
    return x.reshape(shape)


def ops_swap_last(x):
    return x.mT


def ops_concat(parts, axis):
    return torch.cat(parts, axis)


def ops_stack(parts, axis):
    return torch.stack(parts, axis)


def ops_pad(x, widths):
    return functional.pad(x, [count for pair in reversed(widths) for count in pair])


def ops_take(table, indices):
    return functional.embedding(indices, table)


def ops_where(condition, a, b):
    return torch.where(condition, a, b)


def ops_sum(x, axis=None, keepdims=False):
    return torch.sum(x, axis, keepdim=keepdims)


def ops_mean(x, axis=None, keepdims=False):
    return torch.mean(x, axis, keepdim=keepdims)


def ops_max(x, axis=None, keepdims=False):
    return torch.amax(x) if axis is None else torch.amax(x, axis, keepdim=keepdims)


def ops_abs(x):
    return torch.abs(x)


def ops_sign(x):
    return torch.sign(x)


def ops_round(x):
    return torch.round(x)


def ops_clip(x, low, high):
    return torch.clamp(x, low, high)


def ops_maximum(x, low):
    return torch.clamp_min(x, low)


def ops_exp(x):
    return torch.exp(x)


def ops_log(x):
    return torch.log(x)


def ops_sqrt(x):
    return torch.sqrt(x)


def ops_rsqrt(x):
    return torch.rsqrt(x)


def ops_sigmoid(x):
    return torch.sigmoid(x)


def ops_leaky_relu(x, slope):
    return functional.leaky_relu(x, slope)


def ops_linear(x, weight):
    return functional.linear(x, weight)


def ops_rms_norm(x):
    return functional.rms_norm(x, x.shape[-1:], eps=1e-06)


def ops_linear_scan(decays, inputs):
    return ops_LinearScan.apply(decays, inputs)


def ops_log_softmax(x):
    return functional.log_softmax(x, -1)


def ops_cross_entropy(logits, targets):
    flat = functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), reduction='none')
    return flat.reshape(targets.shape)


def ops_stop_gradient(x):
    return x.detach()


def ops_straight_through(x, value):
    return value.detach() + (x - x.detach())


class ParamSpec(NamedTuple):
    name: int
    shape: int
    init: int = 'normal'
    value: int = 0.02
    group: int = 'matrix'
    scheme: int = 'fp16'
    bits: int = 16
    group_size: int = 0
    clip: int = 2.5
    lr_scale: int = 1.0
    adapt: int = ''
    rotate: int = False


def on_grid(spec, bits, group_size, clip):
    scheme = 'fp16' if bits == 16 else 'ternary' if bits == 1 else 'int'
    return spec._replace(scheme=scheme, bits=max(bits, 2), group_size=group_size, clip=clip)


def matrix_spec(name, rows, columns, std):
    spec = ParamSpec(name, (rows, columns), 'normal', std, 'matrix', adapt='matrix', rotate=False)
    return on_grid(spec, 1, min(32, columns), 2.2)


def scalar_spec(name, shape, value, adapt='scale'):
    spec = ParamSpec(name, shape, 'constant', value, 'scalar', adapt=adapt)
    return on_grid(spec, 6, int(np.prod(shape)), 4.0)


def table_spec(name, shape, std, adapt='scale'):
    spec = ParamSpec(name, shape, 'normal', std, 'scalar', adapt=adapt)
    return on_grid(spec, 6, int(np.prod(shape)), 4.0)


def init_params(specs, seed):
    arrays = {}
    for spec in specs:
        if spec.init == 'normal':
            generator = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
            arrays[spec.name] = (generator.standard_normal(spec.shape, dtype=np.float32) * np.float32(spec.value)).astype(np.float32)
        else:
            arrays[spec.name] = np.full(spec.shape, spec.value, np.float32)
    return arrays


def parameter_count(specs):
    return sum((int(np.prod(spec.shape)) for spec in specs))


def project(p, name, x):
    return ops_linear(x, p[name])


def normed_projection_specs(name, rows, columns, std):
    return [scalar_spec(name + '.gain', (columns,), 1.0), matrix_spec(name, rows, columns, std)]


def normed_project(p, name, x):
    return project(p, name, ops_rms_norm(x) * p[name + '.gain'])


def hadamard_matrix(size, like):
    matrix = ops_zeros((1, 1), like) + size ** (-0.5)
    while matrix.shape[0] < size:
        matrix = ops_concat([ops_concat([matrix, matrix], 1), ops_concat([matrix, -matrix], 1)], 0)
    return matrix


SHARE_MARGIN = 2.0 ** (-14)


def state_share(logits):
    return SHARE_MARGIN + (1.0 - 2.0 * SHARE_MARGIN) * ops_sigmoid(logits)


def token_horizon_logits(channels, longest, like):
    steps = ops_arange(channels, like) * (1.0 / max(channels - 1, 1))
    return -ops_log(2.0 * ops_exp(steps * ops_log(ops_zeros((1,), steps) + longest / 2.0)) - 1.0)


def decay_scan(decays, inputs, initial=None):
    decays, inputs = (ops_cast(decays, 'float32'), ops_cast(inputs, 'float32'))
    if initial is not None:
        first = decays[:, :1] * ops_reshape(ops_cast(initial, 'float32'), (-1, 1, inputs.shape[2]))
        inputs = ops_concat([inputs[:, :1] + first, inputs[:, 1:]], 1)
    return ops_linear_scan(decays, inputs)


def embedding_specs():
    specs = [on_grid(ParamSpec('embed', (1024, 64), 'normal', 0.02, 'embed', rotate=False), 4, 64, 2.2), scalar_spec('vocab_bias', (1024,), 0.0)]
    specs.append(matrix_spec('embed.up', 96, 64, 64 ** (-0.5)))
    specs.append(matrix_spec('embed.down', 64, 96, 96 ** (-0.5)))
    return specs


def embed_tokens(p, tokens):
    x = ops_take(p['embed'], tokens)
    x = project(p, 'embed.up', x)
    return ops_rms_norm(x)


def token_logits(p, x):
    x = ops_rms_norm(x)
    x = project(p, 'embed.down', x)
    z = ops_cast(project(p, 'embed', x), 'float32')
    return z * ops_rsqrt(1.0 + z * z * (1.0 / 30.0 ** 2)) + p['vocab_bias']


def engram_specs():
    return [on_grid(ParamSpec('engram.table', (30464, 32), 'normal', 0.02, 'engram'), 2, 4096, 2.0), matrix_spec('engram.value', 96, 128, 128 ** (-0.5))._replace(adapt=''), matrix_spec('engram.key', 96, 128, 128 ** (-0.5))._replace(adapt=''), scalar_spec('engram.gate_scale', (1,), 0.378), scalar_spec('engram.gate_bias', (1,), 0.0)]


def mix_bits(x):
    x = x * -7046029254386353131
    x = x ^ x >> 29 & 34359738367
    x = x * -4658895280553007687
    return x ^ x >> 32 & 4294967295


def engram_rows(tokens):
    length = tokens.shape[1]
    ids = ops_cast(tokens, 'int64') + 1
    key, rows, masks = (ids, [], [])
    positions = ops_arange(length, tokens)
    for order in range(2):
        past = ops_pad(ids, ((0, 0), (order + 1, 0)))[:, :length]
        key = mix_bits(key * 65599 + past + order)
        for head in range(2):
            table = order * 2 + head
            bucket = (mix_bits(key + (head + 1) * 1000003) & 9223372036854775807) % 7616
            rows.append(bucket + table * 7616)
            masks.append(ops_cast(positions > order, 'float32'))
    return (ops_stack(rows, -1), ops_stack(masks, -1))


def engram_layer(p, x, tokens):
    rows, masks = engram_rows(tokens)
    found = ops_take(p['engram.table'], rows)
    found = found * ops_reshape(ops_cast(masks, 'float32'), (*masks.shape, 1))
    found = ops_rms_norm(ops_reshape(found, (found.shape[0], found.shape[1], -1)))
    key = ops_rms_norm(project(p, 'engram.key', found))
    cosine = ops_mean(ops_rms_norm(x) * key, -1, True)
    scale = ops_clip(ops_log(1.0 + ops_exp(p['engram.gate_scale'])) + 0.1, 0.1, 4.0)
    return ops_sigmoid(scale * cosine + p['engram.gate_bias']) * project(p, 'engram.value', found)


def mlp_specs(name):
    width, hidden = (96, 384)
    return [matrix_spec(name + '.in', hidden, width, 0.955 * width ** (-0.5))] + normed_projection_specs(name + '.out', width, hidden, 0.02)


def mlp_layer(p, name, x):
    hidden = ops_leaky_relu(project(p, name + '.in', x), 0.5)
    return normed_project(p, name + '.out', hidden * hidden)


def conv_specs(name, taps, channels):
    return [scalar_spec(name, (taps, channels), 1.0 / taps, 'conv')]


def causal_conv(x, weights, reach):
    taps, length = (weights.shape[0], x.shape[1])
    y = x * weights[taps - 1]
    for lag in range(1, taps):
        past = ops_pad(x, ((0, 0), (lag, 0), (0, 0)))[:, :length]
        if reach is not None:
            past = ops_where(reach >= lag, past, ops_zeros((), past))
        y = y + past * weights[taps - 1 - lag]
    return y


def koopman_specs(name):
    size, rank = (64, 4)
    specs = [matrix_spec(name + '.in', 3 * size, 96, 0.02), scalar_spec(name + '.rate', (size,), 0.0, 'decay')]
    specs += conv_specs(name + '.conv', 4, size)
    specs.append(table_spec(name + '.couple_in', (rank, size), 0.001))
    specs.append(table_spec(name + '.couple_out', (size, rank), 0.001))
    return specs + normed_projection_specs(name + '.out', 96, size, 0.02)


def koopman_tables(tokens):
    size, tables = (64, [])
    tables.append(token_horizon_logits(size, 2048.0, tokens))
    tables.append(ops_cast(hadamard_matrix(size, tables[0]), 'float32'))
    return tables


def koopman_layer(p, name, x, tables):
    mixed = project(p, name + '.in', x)
    state, gate, logits = (mixed[..., :64], mixed[..., 64:128], mixed[..., 128:])
    state = causal_conv(state, p[name + '.conv'], None)
    state = ops_linear(state, tables[1])
    share = state_share(ops_cast(logits, 'float32') + p[name + '.rate'] + tables[0])
    decays = 1.0 - share
    state = ops_cast(decay_scan(decays, share * ops_sigmoid(gate) * state), 'float32')
    state = state + ops_linear(ops_linear(state, p[name + '.couple_in']), p[name + '.couple_out'])
    state = ops_linear(state, tables[1])
    return normed_project(p, name + '.out', state)


def mixer_of(i):
    return 'k'[i % 1]


def param_specs():
    specs = embedding_specs()
    specs += engram_specs()
    for i in range(3):
        name, decoder = (f'block{i}', i >= 2)
        kind = 'decoder_scale' if decoder else 'scale'
        specs += [scalar_spec(name + '.mix', (2, 96), 0.0, 'mix'), scalar_spec(name + '.mlp_scale', (96,), 0.5, kind)]
        if decoder:
            specs.append(scalar_spec(name + '.skip', (96,), 1.0, 'skip'))
        if mixer_of(i) == 'k':
            specs.append(scalar_spec(name + '.koopman_scale', (96,), 0.5, kind))
            specs += koopman_specs(name + '.koopman')
        specs += mlp_specs(name + '.mlp')
    return specs


def forward(p, tokens):
    x = start = embed_tokens(p, tokens)
    koopman = koopman_tables(tokens)
    saved, first_values = ([], None)
    for i in range(3):
        name = f'block{i}'
        if i == 0:
            x = x + engram_layer(p, x, tokens)
        if i >= 2:
            x = x + p[name + '.skip'] * saved.pop()
        mix = p[name + '.mix']
        x = (mix[0] + 0.95) * x + (mix[1] + 0.05) * start
        if mixer_of(i) == 'k':
            x = x + p[name + '.koopman_scale'] * koopman_layer(p, name + '.koopman', ops_rms_norm(x), koopman)
        x = x + p[name + '.mlp_scale'] * mlp_layer(p, name + '.mlp', ops_rms_norm(x))
        if i < 1:
            saved.append(x)
    return (x, {})


def readout(p, x):
    return token_logits(p, x)


PRECISION = 16
FLOOR = 1 << 31
WORD = 32
SHARED = 1
COLUMN = 2
ACTIVITY = 3
TREND = 4
DIFFERENCES = 8
LEVELS = 64
SURPRISES = 10
STEPS_AHEAD = 512
TREND_STEPS = 16384


class Stream(NamedTuple):
    base: int
    count: int
    columns: int


def power_below(n):
    return 1 << max(int(n).bit_length() - 1, 0)


def lane_count(streams):
    return min(power_below(sum((stream.count for stream in streams)) // 32768), 1024)


def contexts(stream, mode):
    return (1, 1, stream.columns, LEVELS, 150)[mode]


def mode_known(stream, mode):
    if mode >= DIFFERENCES:
        return mode == 9 and stream.columns == 1
    if mode == TREND and stream.base == 3:
        return False
    return mode <= SHARED or (mode <= TREND and 16 * contexts(stream, mode) * stream.base <= stream.count)


class Walk:

    def __init__(self, stream, mode, lanes):
        self.mode, self.columns, self.middle = (mode, stream.columns, stream.base // 2)
        self.lanes = min(lanes, power_below(stream.count // (TREND_STEPS if mode == TREND else STEPS_AHEAD)))
        self.steps = -(-stream.count // self.lanes)
        self.column = np.arange(self.lanes) * self.steps % self.columns
        self.seen = self.column * 0
        self.total = self.column * 0
        if mode == TREND:
            self.means = np.zeros((self.lanes, self.columns), np.int64)

    def tables(self):
        if self.mode == COLUMN:
            return self.column
        if self.mode == ACTIVITY:
            level = LEVELS * (self.total + 2 * self.middle) // ((self.seen + 8) * self.middle)
            return np.minimum(level, 63)
        if self.mode == TREND:
            mean = (14 * self.means[np.arange(self.lanes), self.column] + 256 * self.middle) // (512 * self.middle) + 7
            return SURPRISES * mean + np.minimum(35 * self.total // (512 * self.middle * (self.seen + 2)), 9)
        return 0 * self.column

    def advance(self, symbols):
        away = symbols - self.middle
        if self.mode == TREND:
            place = (np.arange(self.lanes), self.column)
            away = 256 * away - self.means[place]
            self.means[place] += away >> 3
        self.column = (self.column + 1) % self.columns
        if self.mode >= ACTIVITY:
            inside = self.column > 0
            self.seen = (self.seen + 1) * inside
            self.total = (self.total + abs(away)) * inside


def refreshed(counts):
    tables, base = counts.shape
    total = counts.sum(0)
    shared = 16 * total + 1
    shared[1:] += 4 * total[:-1]
    shared[:-1] += 4 * total[1:]
    weights = 2048 * counts + (shared << 16) // shared.sum() + 1
    ends = weights.cumsum(1)
    starts = (ends - weights) * (65536 - base) // ends[:, -1:] + np.arange(base) + (np.arange(tables)[:, None] << PRECISION)
    return np.append(starts, tables << PRECISION)


def next_refresh(step):
    return step + 1 + step // 16


def decode_stream(stream, mode, states, words, at):
    walk = Walk(stream, mode, len(states))
    symbols = np.empty((walk.steps, walk.lanes), np.uint8 if stream.base < 257 else np.uint16)
    counts, used, refresh = (np.zeros((contexts(stream, mode), stream.base), np.int64), [], 0)
    x = states[:walk.lanes]
    for step in range(walk.steps):
        if step == refresh:
            if used and mode:
                counts += np.bincount(np.concatenate(used), minlength=counts.size).reshape(counts.shape)
            table, used, refresh = (refreshed(counts), [], next_refresh(step))
        lane_tables = walk.tables()
        key = (lane_tables << PRECISION) + (x & 65535)
        found = table.searchsorted(key, 'right') - 1
        start = table[found]
        x = (table[found + 1] - start) * (x >> PRECISION) + key - start
        low = x < FLOOR
        needed = np.count_nonzero(low)
        if needed:
            if at + needed > len(words):
                raise IndexError
            x[low] = (x[low] << WORD) + words[at:at + needed]
            at += needed
        used.append(found)
        found = found - lane_tables * stream.base
        symbols[step] = found
        walk.advance(found)
    states[:walk.lanes] = x
    return (symbols.T.reshape(-1)[:stream.count], at)


def placed(stream, mode, symbols, lanes):
    if mode >= DIFFERENCES:
        symbols, mode = (np.diff(symbols, prepend=0) % stream.base, mode - DIFFERENCES)
    walk = Walk(stream, mode, lanes)
    filled = np.full(walk.steps * walk.lanes, stream.base // 2, np.int64)
    filled[:stream.count] = symbols
    places = filled.reshape(walk.lanes, walk.steps).T.copy()
    if mode > SHARED:
        for now in places:
            before = walk.tables() * stream.base
            walk.advance(now)
            now += before
    return places


def intervals(stream, mode, places):
    counts, step = (np.zeros((contexts(stream, mode % DIFFERENCES), stream.base), np.int64), 0)
    while step < len(places):
        now = slice(step, next_refresh(step))
        new = np.bincount(places[now].reshape(-1), minlength=counts.size)
        yield (now, refreshed(counts), new)
        if mode:
            counts += new.reshape(counts.shape)
        step = next_refresh(step)


def stream_bits(stream, mode, symbols, lanes):
    found = intervals(stream, mode, placed(stream, mode, symbols, lanes))
    return float(sum(((new * (PRECISION - np.log2(np.diff(table)))).sum() for _, table, new in found)))


def encode_stream(stream, mode, symbols, states, words):
    places = placed(stream, mode, symbols, len(states))
    starts, sizes = (np.empty(places.shape, np.int64), np.empty(places.shape, np.int64))
    for now, table, _ in intervals(stream, mode, places):
        starts[now] = table[places[now]] & 65535
        sizes[now] = table[places[now] + 1] - table[places[now]]
    x = states[:places.shape[1]]
    for start, size in zip(starts[::-1], sizes[::-1]):
        high = x >= size << 47
        if high.any():
            words.append((x[high] & 4294967295).astype('<u4'))
            x[high] >>= WORD
        whole, part = np.divmod(x, size)
        x = (whole << PRECISION) + part + start
    states[:places.shape[1]] = x


def best_mode(stream, symbols, lanes):
    modes = [mode for mode in range(16) if mode_known(stream, mode)]
    return min(((stream_bits(stream, mode, symbols, lanes), mode) for mode in modes))


def encode_streams(streams, symbols, others):
    lanes = lane_count(streams)
    found = [best_mode(stream, part, lanes) for stream, part in zip(streams, symbols)]
    kept = {i: other for i, other in others.items() if 8 * len(other[1]) + 32 < found[i][0]}
    modes = [kept[i][0] if i in kept else mode for i, (_, mode) in enumerate(found)]
    states, words = (np.full(lanes, FLOOR), [])
    for i in reversed(range(len(streams))):
        if i not in kept:
            encode_stream(streams[i], modes[i], symbols[i], states, words)
    coded = states.astype('<i8').tobytes() + b''.join((word.tobytes() for word in reversed(words)))
    return (modes, [kept[i][1] for i in sorted(kept)], coded)


def decode_streams(streams, modes, data):
    size = 8 * lane_count(streams)
    states, words = (np.frombuffer(data[:size], '<i8').astype(np.int64), np.frombuffer(data[size:], '<u4').astype(np.int64))
    found, at = ([], 0)
    for stream, mode in zip(streams, modes):
        symbols = None
        if mode < 16:
            symbols, at = decode_stream(stream, mode % DIFFERENCES, states, words, at)
            if mode >= DIFFERENCES:
                symbols = symbols.cumsum() % stream.base
        found.append(symbols)
    if at != len(words) or (states != FLOOR).any():
        raise IndexError
    return found


SMALLEST_SCALE = 6.103515625e-05


class QuantTensor(NamedTuple):
    codes: int
    scales: int


def group_layout(spec):
    columns = spec.shape[-1]
    rows = math.prod(spec.shape[:-1])
    if spec.group_size <= columns:
        per_row = -(-columns // spec.group_size)
        return (rows * per_row, spec.group_size, per_row * spec.group_size - columns)
    if spec.group_size % columns:
        raise ValueError(f'{spec.name}: group size {spec.group_size} is neither inside a row of {columns} nor a multiple of it; change the quant setting that names it')
    rows_per_group = spec.group_size // columns
    groups = -(-rows // rows_per_group)
    return (groups, spec.group_size, groups * rows_per_group - rows)


def to_groups(spec, x):
    groups, size, padding = group_layout(spec)
    x = ops_reshape(x, (-1, spec.shape[-1]))
    if padding:
        x = ops_pad(x, ((0, 0), (0, padding)) if size <= spec.shape[-1] else ((0, padding), (0, 0)))
    return ops_reshape(x, (groups, size))


def from_groups(spec, x):
    _, size, padding = group_layout(spec)
    columns = spec.shape[-1]
    if size <= columns:
        x = ops_reshape(x, (-1, columns + padding))[:, :columns]
    else:
        x = ops_reshape(x, (-1, columns))
        x = x[:x.shape[0] - padding]
    return ops_reshape(x, spec.shape)


def group_counts(spec):
    groups, size, padding = group_layout(spec)
    if size <= spec.shape[-1]:
        return [size] * (groups // math.prod(spec.shape[:-1]) - 1) + [size - padding]
    return [size] * (groups - 1) + [size - padding * spec.shape[-1]]


def group_sum(x):
    while x.shape[1] > 1:
        half = -(-x.shape[1] // 2)
        x = x[:, :half] + ops_pad(x[:, half:], ((0, 0), (0, 2 * half - x.shape[1])))
    return x


def group_mean(spec, x):
    _, size, padding = group_layout(spec)
    if padding:
        size = group_sum(to_groups(spec, ops_zeros(spec.shape, x) + 1.0))
    return group_sum(x) / size


def scale_values(steps):
    return [round(2.0 ** (i % steps / steps + 10.0)) * 2.0 ** (i // steps - 24.0) for i in range(29 * steps + 1)]


def scale_table(steps):
    return np.array(scale_values(steps), np.float16)


def stored_scale(x):
    x = ops_maximum(ops_cast(ops_cast(x, 'float16'), 'float32'), SMALLEST_SCALE)
    place = ops_round((ops_log(x) * (1.0 / math.log(2.0)) + 14.0) * 8)
    place = ops_cast(ops_clip(place, 0.0, 232.0), 'int64')
    return ops_take(ops_constant(scale_values(8), x)[:, None], place[:, 0])


def encode(spec, x, calibration):
    if spec.init == 'constant':
        x = x - spec.value
    groups = to_groups(spec, x)
    if spec.scheme == 'int':
        top = 2 ** (spec.bits - 1) - 1
        scales = stored_scale(ops_sqrt(group_mean(spec, groups * groups)) * (spec.clip / top))
        return (ops_clip(ops_round(groups / scales), -top, top), scales)
    threshold, refit = calibration.get(spec.name, (0.5, False))
    size = ops_abs(groups)
    scales = stored_scale(group_mean(spec, size))
    kept = ops_cast(size > scales * threshold, 'float32')
    if refit:
        scales = stored_scale(group_sum(size * kept) / ops_maximum(group_sum(kept), 1.0))
    return (ops_sign(groups) * kept, scales)


def decode(spec, codes, scales):
    groups = codes * scales
    values = from_groups(spec, groups)
    if spec.init == 'constant':
        values = values + spec.value
    return values


def fake_quantize(specs, p, calibration):
    q = {}
    for spec in specs:
        x = p[spec.name]
        codes, scales = encode(spec, ops_stop_gradient(x), calibration)
        q[spec.name] = ops_straight_through(x, decode(spec, codes, scales))
    return q


def quantize(specs, p, calibration):
    tensors = {}
    for spec in specs:
        if not (np.abs(ops_to_numpy(p[spec.name])) <= 65504).all():
            raise ValueError(f'{spec.name}: a weight is not a number from -65504 to 65504')
        codes, scales = encode(spec, p[spec.name], calibration)
        tensors[spec.name] = QuantTensor(ops_to_numpy(codes).astype(np.int8), ops_to_numpy(scales).astype(np.float16))
    return tensors


def dequantize(specs, tensors):
    arrays = {}
    for spec in specs:
        codes, scales = tensors[spec.name]
        codes, scales = (codes.astype(np.float32), ops_from_numpy(scales.astype(np.float32)))
        arrays[spec.name] = ops_to_numpy(decode(spec, ops_from_numpy(codes), scales))
    return arrays


class PackError(ValueError):
    pass


def ensure_packable(holds, message):
    if not holds:
        raise PackError(message)


PACK_MAGIC = b'TRIT'
PACK_VERSION = 2
PACK_HEADER = '<4sB8s8s'
PACK_HEADER_BYTES = 21


def spec_fingerprint(specs):
    lines = ['scales 8\n']
    for s in specs:
        start = s.value if s.init == 'constant' and s.scheme != 'fp16' else 0
        lines.append(f"{s.name} {'x'.join(map(str, s.shape))} {s.scheme} {s.bits} {s.group_size} {start:g} {int(s.rotate)}\n")
    return hashlib.sha256(''.join(lines).encode()).digest()[:8]


def grid_top(spec):
    return 1 if spec.scheme == 'ternary' else 2 ** (spec.bits - 1) - 1


def real_entries(spec):
    groups, size, _ = group_layout(spec)
    counts = group_counts(spec)
    return np.arange(size) < np.resize(counts, (groups, 1))


def stream_table(specs):
    table, halves = ([], 0)
    for spec in specs:
        count = int(np.prod(spec.shape))
        table.append(Stream(2 * grid_top(spec) + 1, count, spec.shape[-1]))
        count = group_layout(spec)[0]
        table.append(Stream(233, count, 1))
        count = 0
        halves += count
    return table


def stored_specs(specs, data):
    return specs


def check_tensor(spec, tensor):
    name, codes, scales = (spec.name, tensor.codes, tensor.scales)
    shape, kind = (group_layout(spec)[:2], np.int8)
    good = codes.shape == shape and codes.dtype == kind
    ensure_packable(good, f'{name}: codes are {codes.dtype} of shape {codes.shape}, not {np.dtype(kind)} of shape {shape}')
    top = grid_top(spec)
    ensure_packable(codes.min() >= -top and codes.max() <= top, f'{name}: a code lies outside the grid from {-top} to {top}')
    ensure_packable(not codes[~real_entries(spec)].any(), f'{name}: a padding position is not zero')
    good = scales is not None and scales.shape == (shape[0], 1) and (scales.dtype == np.float16)
    ensure_packable(good, f'{name}: scales are not float16 of shape {(shape[0], 1)}, one for each group')
    good = np.isfinite(scales).all() and scales.min() >= SMALLEST_SCALE
    ensure_packable(good, f'{name}: a scale is not a finite number of at least 6.1e-05')


def stream_symbols(specs, tensors):
    found, halves = ([], [])
    for spec in specs:
        codes, scales = tensors[spec.name]
        found.append(codes[real_entries(spec)].astype(np.int16) + grid_top(spec))
        codes = scales
        table = scale_table(8)
        places = np.minimum(table.searchsorted(scales[:, 0]), len(table) - 1)
        ensure_packable((table[places] == scales[:, 0]).all(), f'{spec.name}: a scale is not one of quant.scale_steps')
        found.append(places)
        continue
    return found


def pack(specs, tensors):
    names = {spec.name for spec in specs}
    ensure_packable(names == set(tensors), f"tensors and specs differ in {', '.join(sorted(names ^ set(tensors)))}")
    for spec in specs:
        check_tensor(spec, tensors[spec.name])
    streams, symbols = (stream_table(specs), stream_symbols(specs, tensors))
    others = {}
    modes, others, coded = encode_streams(streams, symbols, others)
    body = b''
    body += bytes(modes) + b''.join((struct.pack('<I', len(other)) for other in others)) + b''.join(others) + coded
    head = struct.pack('<4sB8s', PACK_MAGIC, PACK_VERSION, spec_fingerprint(specs))
    return head + hashlib.sha256(head + body).digest()[:8] + body


def check_header(specs, data):
    ensure_packable(data[:4] == PACK_MAGIC, f"not an artifact: it starts with {data[:4]!r}, not b'TRIT'")
    ensure_packable(data[4:5] == bytes([PACK_VERSION]), f'format version {list(data[4:5])} is not the known version 2')
    ensure_packable(len(data) >= PACK_HEADER_BYTES, f'the artifact is cut off: {len(data)} bytes where the header alone has 21')
    _, _, fingerprint, checksum = struct.unpack_from(PACK_HEADER, data)
    wanted = spec_fingerprint(specs)
    text = f"packed for another configuration: the file's tensors have fingerprint {fingerprint.hex()}, this configuration's {wanted.hex()}"
    ensure_packable(fingerprint == wanted, text)
    good = hashlib.sha256(data[:13] + data[PACK_HEADER_BYTES:]).digest()[:8] == checksum
    ensure_packable(good, 'the artifact is damaged: its checksum does not match its bytes')


def read_streams(specs, data):
    check_header(specs, data)
    streams = stream_table(specs)
    at = 21
    modes, at = (list(data[at:at + len(streams)]), at + len(streams))
    ensure_packable(at <= len(data), f'the artifact is cut off: {len(data)} bytes where {len(streams)} streams have modes')
    others = {}
    for stream, mode in zip(streams, modes):
        good = mode_known(stream, mode) or False
        ensure_packable(good, f'mode {mode} is unknown for a stream of {stream.count} symbols below {stream.base}')
    return (modes, others, data[at:])


def unpack(specs, data):
    data = bytes(data)
    streams = stream_table(specs)
    modes, others, coded = read_streams(specs, data)
    good = len(coded) % 4 == 0 and len(coded) >= 8 * lane_count(streams)
    ensure_packable(good, f'the artifact is cut off: {len(coded)} bytes for {lane_count(streams)} lanes of its coder')
    try:
        found = decode_streams(streams, modes, coded)
    except IndexError:
        raise PackError('the artifact ends before its symbols do, or goes on behind them') from None
    parts, tensors, at = (iter(found), {}, 0)
    for spec in specs:
        codes = scales = None
        codes = np.zeros(group_layout(spec)[:2], np.int8)
        codes[real_entries(spec)] = next(parts).astype(np.int16) - grid_top(spec)
        scales = scale_table(8)[next(parts)][:, None]
        tensors[spec.name] = QuantTensor(codes, scales)
    return tensors


def stored_arrays(specs, p, calibration):
    return dequantize(specs, quantize(specs, p, calibration))


def byte_table(tokenizer_path, vocab_size):
    pieces = None if tokenizer_path == 'byte260' else sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    count = pieces.vocab_size() if pieces else 260
    size = max(count, vocab_size)
    base, lead, boundary = (np.zeros(size, np.int16), np.zeros(size, bool), np.ones(size, bool))
    if not pieces:
        base[4:260], boundary[4:260] = (1, False)
        return (base, lead, boundary)
    for i in range(count):
        if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
            continue
        piece = pieces.id_to_piece(i)
        boundary[i] = False
        lead[i] = not pieces.is_byte(i) and piece[:1] == '▁'
        base[i] = 1 if pieces.is_byte(i) else len(piece[int(lead[i]):].replace('▁', ' ').encode())
    if lead.any() and pieces.decode([int(lead.argmax())])[:1] == ' ':
        for i in range(count):
            boundary[i] &= not pieces.is_control(i)
    return (base, lead, boundary)


def token_bytes(table, previous, targets):
    base, lead, boundary = table
    previous, targets = (np.asarray(previous), np.asarray(targets))
    for ids in (previous, targets):
        if ids.size and (not 0 <= ids.min() <= ids.max() < len(base)):
            raise ValueError(f'token ids {ids.min()} to {ids.max()} do not fit the byte table of {len(base)} rows')
    return base[targets].astype(np.int64) + (lead[targets] & ~boundary[previous])


def atomic_write(path, chunks):
    partial = f'{path}.partial'
    try:
        with open(partial, 'wb') as file:
            file.writelines([chunks] if isinstance(chunks, bytes) else chunks)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


HEADER_BYTES = 1024
CHECK_TOKENS = 4194304


def shard_length(path):
    with open(path, 'rb') as file:
        header = np.frombuffer(file.read(HEADER_BYTES), np.uint8)
    if len(header) < HEADER_BYTES:
        raise ValueError(f'{path}: {len(header)} bytes is no shard; the header alone has 1024')
    magic, version, count = (int(number) for number in header.view('<i4')[:3])
    if (magic, version) != (20240520, 1):
        raise ValueError(f'{path}: magic {magic} version {version} is no shard; expected 20240520 version 1')
    size = os.path.getsize(path)
    if count <= 0 or size != HEADER_BYTES + 2 * count:
        raise ValueError(f'{path}: {size} bytes, but a header of {count} tokens asks for {HEADER_BYTES + 2 * count} and at least one token')
    return count


def read_shard(path, vocab_size):
    count = shard_length(path)
    with open(path, 'rb') as file:
        file.seek(HEADER_BYTES)
        for start in range(0, count, CHECK_TOKENS):
            part = np.fromfile(file, '<u2', min(CHECK_TOKENS, count - start))
            if part.max() >= vocab_size:
                at = int(np.argmax(part >= vocab_size))
                raise ValueError(f'{path}: token {start + at} is {part[at]}, outside model.vocab_size={vocab_size}')
    return np.memmap(path, '<u2', 'r', HEADER_BYTES, (count,))


def shard_files(data_path, split):
    found = sorted(glob.glob(os.path.join(glob.escape(data_path), f'*_{split}_*.bin')))
    if not found:
        raise ValueError(f'{data_path}: no *_{split}_*.bin shards; make them with python -m trit.data.prepare --out {data_path}')
    return found


PREFETCH_BATCHES = 4


class TokenLoader:

    def __init__(self, shards, seq_len, rows, seed, rank=0, world=1, position=0):
        if rows <= 0 or rows % world or (not 0 <= rank < world):
            raise ValueError(f'{rows} windows a step do not divide among {world} ranks, or rank {rank} is not one of them')
        self.shards = [shard for shard in shards if len(shard) > seq_len]
        if not self.shards:
            longest = max((len(shard) for shard in shards), default=0)
            raise ValueError(f'no training shard holds a window of train_seq_len+1={seq_len + 1} tokens; the longest has {longest}')
        counts = [max(1, (len(shard) - 1) // seq_len - 1) for shard in self.shards]
        self.ends = np.cumsum(counts)
        self.slack = [len(shard) - count * seq_len for shard, count in zip(self.shards, counts)]
        self.seq_len, self.rows, self.seed = (seq_len, rows, seed)
        self.first, self.share = (rank * (rows // world), rows // world)
        self.position, self.epoch, self.order, self.offsets = (position, -1, None, None)
        self.thread, self.ahead = (concurrent.futures.ThreadPoolExecutor(1), collections.deque())

    def window(self, number):
        epoch, number = divmod(number, int(self.ends[-1]))
        if epoch != self.epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self.offsets = [int(generator.integers(slack)) for slack in self.slack]
            self.order, self.epoch = (generator.permutation(self.ends[-1]), epoch)
        number = self.order[number]
        shard = int(np.searchsorted(self.ends, number, 'right'))
        start = int(number - (self.ends[shard - 1] if shard else 0)) * self.seq_len + self.offsets[shard]
        return self.shards[shard][start:start + self.seq_len + 1]

    def batch(self, position):
        start = position * self.rows + self.first
        block = np.stack([self.window(start + row) for row in range(self.share)]).astype(np.int32)
        return (np.ascontiguousarray(block[:, :-1]), np.ascontiguousarray(block[:, 1:]))

    def next_batch(self):
        while len(self.ahead) < PREFETCH_BATCHES:
            self.ahead.append(self.thread.submit(self.batch, self.position + len(self.ahead)))
        made = self.ahead[0].result()
        self.ahead.popleft()
        self.position += 1
        return made

    def close(self):
        self.thread.shutdown(cancel_futures=True)
        self.ahead.clear()


def open_train_split(data_path):
    parts, held, missing = ([], [], 16384)
    for path in reversed(shard_files(data_path, 'train')):
        shard = read_shard(path, 1024)
        keep = max(len(shard) - missing, 0)
        parts.append(shard[:keep])
        held.append(shard[keep:])
        missing -= len(shard) - keep
    total = sum(map(len, parts)) + sum(map(len, held))
    if missing > 0 or max(map(len, parts)) <= 256:
        raise ValueError(f'{data_path}: {total} training tokens are too few for compress.calibration_tokens=16384 and a window of train.train_seq_len=256; lower one of them')
    return (parts[::-1], held[::-1])


def open_loader(data_path, seed, rank=0, world=1, position=0):
    return TokenLoader(open_train_split(data_path)[0], 256, 8, seed, rank, world, position)


def calibration_tokens(data_path):
    return np.concatenate(open_train_split(data_path)[1]).astype(np.int32)


def validation_tokens(data_path):
    shards = [read_shard(path, 1024) for path in shard_files(data_path, 'val')]
    return np.concatenate(shards).astype(np.int32)


MANIFEST_NAME = 'manifest.json'


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while (piece := file.read(1048576)):
            digest.update(piece)
    return digest.hexdigest()


def tokenizer_sha256(path):
    return hashlib.sha256(b'byte260').hexdigest() if path == 'byte260' else file_sha256(path)


def read_manifest(data_path):
    path = os.path.join(data_path, MANIFEST_NAME)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except ValueError as error:
        raise ValueError(f'{path}: not a JSON manifest ({error}); make the folder again with python -m trit.data.prepare') from None


def resolve_tokenizer(data_path, tokenizer_path=''):
    manifest = read_manifest(data_path)
    made_by = (manifest or {}).get('tokenizer')
    if not made_by and (not tokenizer_path):
        raise ValueError(f'{data_path}: no manifest.json names its tokenizer; set tokenizer_path or use python -m trit.data.prepare')
    if not tokenizer_path:
        tokenizer_path = os.path.join(data_path, made_by['file']) if made_by['file'] else 'byte260'
    if tokenizer_path != 'byte260' and (not os.path.isfile(tokenizer_path)):
        raise ValueError(f'{tokenizer_path}: no such tokenizer; tokenizer_path is a SentencePiece .model file or byte260')
    if made_by and tokenizer_sha256(tokenizer_path) != made_by['sha256']:
        raise ValueError(f"tokenizer {tokenizer_path} does not belong to the shards in {data_path}, which were made with {made_by['name']} (sha256 {made_by['sha256'][:12]}...); leave tokenizer_path empty to use theirs")
    return tokenizer_path


class NgramMemory:

    def __init__(self, order, vocab_size, capacity, boundary):
        if capacity < 4 * vocab_size:
            raise ValueError(f'eval.ngram_nodes={capacity} is too small; at least 4 * vocab_size = {4 * vocab_size} nodes are needed')
        self.order, self.vocab_size, self.capacity, self.boundary = (order, vocab_size, capacity, boundary)
        self.key = np.zeros(capacity, np.int64)
        self.count, self.total, self.distinct, self.recent, self.when = (np.zeros(capacity, np.int32) for _ in range(5))
        self.slots = np.full(1 << (capacity - 1).bit_length() + 1, -1, np.int32)
        self.size, self.ends, self.clock = (vocab_size, np.full(order, -1), 0)

    def home(self, keys):
        return keys * -7046029254386353131 >> 24 & len(self.slots) - 1

    def find(self, keys):
        found, todo = (np.full(len(keys), -1), np.flatnonzero(keys >= 0))
        at = self.home(keys[todo])
        while len(todo):
            nodes = self.slots[at[:, None] + np.arange(4) & len(self.slots) - 1]
            taken = nodes >= 0
            same = (self.key[nodes] == keys[todo, None]) & taken
            hit, go_on = (same.any(1), taken.all(1))
            found[todo[hit]] = nodes[same]
            go_on &= ~hit
            todo, at = (todo[go_on], at[go_on] + 4)
        return found

    def insert(self, keys, nodes):
        self.key[nodes] = keys
        todo, at = (np.arange(len(keys)), self.home(keys))
        while len(todo):
            free = todo[self.slots[at[todo]] < 0]
            self.slots[at[free]] = nodes[free]
            todo = todo[self.slots[at[todo]] != nodes[todo]]
            at[todo] = at[todo] + 1 & len(self.slots) - 1

    def walk(self, tokens):
        contexts, grams = np.full((2, self.order, len(tokens)), -1)
        contexts[:, 0], contexts[0, 1:] = (self.ends, tokens[:-1])
        for length in range(self.order):
            if length:
                contexts[length, 1:] = self.inside(grams[length - 1], tokens)[:-1]
            grams[length] = self.find(np.where(contexts[length] < 0, -1, contexts[length] * self.vocab_size + tokens))
        return (contexts, grams)

    def inside(self, grams, tokens):
        return grams if self.boundary < 0 else np.where(tokens == self.boundary, -1, grams)

    def absorb(self, tokens, walked=None):
        if len(tokens) and self.size + self.order * len(tokens) > self.capacity:
            self.prune()
            walked = None
            if self.size + self.order * len(tokens) > self.capacity:
                self.absorb(tokens[:len(tokens) // 2])
                return self.absorb(tokens[len(tokens) // 2:])
        if not len(tokens):
            return
        contexts, grams = walked or self.walk(tokens)
        for length in range(self.order):
            missing = np.flatnonzero((grams[length] < 0) & (contexts[length] >= 0))
            if len(missing):
                keys, back = np.unique(contexts[length, missing] * self.vocab_size + tokens[missing], return_inverse=True)
                self.insert(keys, np.arange(self.size, self.size + len(keys)))
                grams[length, missing] = self.size + back
                self.size += len(keys)
                np.add.at(self.distinct, keys // self.vocab_size, 1)
            following = self.inside(grams[length], tokens)
            if length + 1 < self.order:
                self.ends[length + 1], contexts[length + 1, 1:] = (following[-1], following[:-1])
        self.ends[0], real = (tokens[-1], contexts >= 0)
        np.add.at(self.count, tokens, 1)
        np.add.at(self.count, grams[real], 1)
        np.add.at(self.total, contexts[real], 1)
        self.recent[contexts[real]] = np.broadcast_to(tokens, real.shape)[real]
        self.when[contexts[real]] = np.broadcast_to(self.clock + np.arange(len(tokens)), real.shape)[real]
        self.clock += len(tokens)

    def prune(self):
        size, first = (self.size, self.vocab_size)
        at_least = np.cumsum(np.bincount(self.count[first:size])[::-1])[::-1]
        rare = np.flatnonzero(first + np.append(at_least, 0) <= self.capacity // 2)[0]
        keep = np.append(np.arange(first), first + np.flatnonzero(self.count[first:size] >= rare))
        renamed = np.full(size + 1, -1)
        renamed[keep] = np.arange(len(keep))
        keys = renamed[self.key[keep[first:]] // first] * first + self.key[keep[first:]] % first
        for array in (self.count, self.recent, self.when):
            array[:len(keep)], array[len(keep):size] = (array[keep], 0)
        self.total[:size], self.distinct[:size], self.slots[:] = (0, 0, -1)
        self.size, self.ends = (len(keep), renamed[self.ends])
        self.insert(keys, np.arange(first, len(keep)))
        np.add.at(self.total, keys // first, self.count[first:len(keep)])
        np.add.at(self.distinct, keys // first, 1)


CONTEXT_KINDS = 144


def magnitude(x):
    return np.frexp(x)[1]


class NgramMixture:

    def __init__(self, order, vocab_size, capacity, boundary, rate):
        self.memory, self.rate = (NgramMemory(order, vocab_size, capacity, boundary), rate)
        self.logits, self.squares = (np.full((order * CONTEXT_KINDS, 2), -2.0), np.full((order * CONTEXT_KINDS, 2), 0.01))

    def blend(self, contexts, grams, queries, p):
        memory = self.memory
        total = np.where(contexts < 0, 0, memory.total[contexts])
        age = np.clip(magnitude(memory.clock - memory.when[contexts]) // 4 - 1, 0, 3)
        kinds = np.minimum(magnitude(total), 8) * 16 + np.minimum(memory.distinct[contexts], 3) * 4 + age
        kinds += CONTEXT_KINDS * np.arange(memory.order)[:, None]
        odds = np.exp(self.logits[kinds]) * (total > 0)[..., None]
        weights = odds / (1.0 + odds.sum(-1, keepdims=True))
        shares = np.where(grams < 0, 0, memory.count[grams]) / np.maximum(total, 1)
        parts = np.stack([shares, memory.recent[contexts] == queries], -1)
        added, kept, steps = ((weights * parts).sum(-1), 1.0 - weights.sum(-1), [p])
        for order in range(memory.order):
            steps.append(added[order] + kept[order] * steps[-1])
        return (steps[-1], (kinds, weights, parts, np.stack(steps)))

    def score(self, tokens, p):
        walked = self.memory.walk(tokens)
        mixed, tape = self.blend(*walked, tokens, p)
        return (mixed, (walked, *tape))

    def row(self, before, p):
        memory, every = (self.memory, np.arange(self.memory.vocab_size))
        contexts = np.repeat(memory.walk(np.append(before, 0))[0][:, -1:], len(every), 1)
        grams = memory.find(np.where(contexts < 0, -1, contexts * memory.vocab_size + every).ravel())
        return self.blend(contexts, grams.reshape(contexts.shape), every, p)[0]

    def learn(self, tape, tokens):
        walked, kinds, weights, parts, steps = tape
        kept = 1.0 - weights.sum(-1)
        slopes = np.concatenate([kept[1:], -1.0 / steps[-1:]])[::-1].cumprod(0)[::-1]
        moves = slopes[..., None] * weights * (parts - steps[1:, :, None])
        for which in range(2):
            gradient = np.bincount(kinds.ravel(), moves[..., which].ravel(), len(self.logits))
            self.squares[:, which] += gradient ** 2
            self.logits[:, which] -= self.rate * gradient / np.sqrt(self.squares[:, which])
        self.memory.absorb(tokens, walked)


def artifact_specs():
    return param_specs() + [scalar_spec('sharpness', (1,), 1.0)]


def scored_logits(p, stream):
    logits = readout(p, stream)
    return logits * ops_cast(p['sharpness'], 'float32')


def scored_rows(p, tokens, first=0):
    return ops_log_softmax(scored_logits(p, forward(p, tokens)[0][:, first:]))


def scored_losses(p, tokens, targets, first=0):
    stream = forward(p, tokens)[0]
    return ops_cross_entropy(scored_logits(p, stream[:, first:]), targets[:, first:])


def fit_sharpness(rows, tokens, length):
    grid = [0.5 + 0.02 * i for i in range(36)]
    sums, count = (np.zeros(len(grid)), 0)
    for start in range(0, len(tokens) - length, length):
        late = rows(tokens[None, start:start + length])[0, length // 2:]
        targets = tokens[start + length // 2 + 1:start + length + 1]
        right = late[np.arange(len(targets)), targets].astype(np.float64)
        for i, sharpness in enumerate(grid):
            sums[i] += (np.log(np.exp(sharpness * late).sum(-1)) - sharpness * right).sum()
        count += len(targets)
    best = min(max(int(sums.argmin()), 1), len(sums) - 2)
    left, middle, right = sums[best - 1:best + 2]
    shift = 0.5 * (left - right) / max(left - 2.0 * middle + right, 1e-12)
    sharpness = grid[best] + 0.02 * min(max(shift, -1.0), 1.0)
    return (sharpness, sums[25] / count, sums[best] / count)


TTT_SCOPES = {'feedback': ('feedback', 'skip', 'decoder_scale'), 'skc_safe': ('feedback', 'skip', 'decoder_scale', 'decay', 'mix', 'conv', 'skc_scale'), 'capsule_bank': ('capsule_bank',), 'scales': ('scale', 'skip', 'decoder_scale', 'mix', 'skc_scale'), 'lora': ('matrix',)}
TTT_ROWS = 4


def scope_specs(specs, scope):
    chosen = [spec for spec in specs if spec.adapt in TTT_SCOPES[scope]]
    if not chosen:
        useful = [name for name, kinds in TTT_SCOPES.items() if any((spec.adapt in kinds for spec in specs))]
        raise ValueError(f"eval.ttt_scope={scope} adapts no tensor of this architecture; possible: none, {', '.join(useful)}")
    return chosen


def first_changes(specs, weights):
    changes = {}
    for spec in scope_specs(specs, 'lora'):
        rows, columns = spec.shape
        start = np.random.default_rng(len(changes)).standard_normal((8, columns)).astype(np.float32)
        changes[spec.name + '/a'] = ops_from_numpy(start * columns ** (-0.5), weights[spec.name])
        changes[spec.name + '/b'] = ops_from_numpy(np.zeros((rows, 8), np.float32), weights[spec.name])
    return changes


def adapted(weights, changes):
    merged = dict(weights)
    for name in [key[:-2] for key in changes if key[-2:] == '/a']:
        merged[name] = weights[name] + ops_cast(changes[name + '/b'] @ changes[name + '/a'], 'float32')
    return merged


def training_windows(tokens, low, high, length):
    ends = np.arange(high, low, -length)[::-1, None]
    positions = np.maximum(ends - length, 0) + np.arange(min(length, high))
    return (tokens[positions], tokens[positions + 1], ((positions >= np.maximum(low, ends - length)) & (positions < ends)).astype(np.float32))


def sgd_step(velocity, changes, gradients, rate):
    norm = math.sqrt(sum((float(ops_sum(gradient * gradient)) for gradient in gradients.values())))
    factor = min(1.0, 1.0 / (norm + 1e-12))
    for name, gradient in gradients.items():
        velocity[name] = 0.9 * velocity.get(name, 0.0) + factor * gradient
    return {name: changes[name] - rate * velocity[name] for name in changes}


def learn_chunk(model, velocity, changes, tokens, low, high, done):
    inputs, targets, shares = training_windows(tokens, low, high, 256)
    parts = range(0, len(inputs), TTT_ROWS)
    rate = 0.025 * (1.0 + math.cos(math.pi * done))
    for _ in range(1):
        sums = {name: np.zeros((len(parts), *array.shape), np.float32) for name, array in changes.items()}
        for number, at in enumerate(parts):
            if number % model.world == model.rank:
                rows = slice(at, at + TTT_ROWS)
                for name, array in model.gradients(changes, inputs[rows], targets[rows], shares[rows]).items():
                    sums[name][number] = array
        means = {name: model.total(array).sum(0) / (high - low) for name, array in sums.items()}
        gradients = {name: ops_from_numpy(mean, changes[name]) for name, mean in means.items()}
        changes = sgd_step(velocity, changes, gradients, rate)
    return changes


@contextmanager
def frozen(weights, strict):
    before = {name: ops_to_numpy(array).copy() for name, array in weights.items()}
    try:
        yield
    finally:
        moved = [name for name, array in before.items() if (ops_to_numpy(weights[name]) != array).any()]
        for name in moved:
            weights[name] = ops_from_numpy(before[name], weights[name])
        if moved:
            warnings.warn(f"the evaluation changed tensors of the artifact, restored: {', '.join(moved)}", stacklevel=2)
    if moved and strict:
        raise RuntimeError(f"the evaluation changed {', '.join(moved)}; only copies of the tensors in eval.ttt_scope may move")


class Score(NamedTuple):
    loss: int
    bpb: int
    tokens: int
    bytes: int


def score_windows(positions):
    length, stride = (256, 64)
    windows, scored = ([(0, 0, min(length, positions))], length)
    while scored < positions:
        end = min(scored + stride, positions)
        windows.append((end - length, length - (end - scored), length))
        scored = end
    return windows


def window_chunks(windows, tokens):
    chunks, room = ([], 0)
    for window in windows:
        new = window[2] - window[1]
        if new > room:
            chunks.append([])
            room = tokens
        chunks[-1].append(window)
        room -= new
    return chunks


def model_values(model, changes, tokens, windows, low, high):
    values = np.zeros((high - low, 1), np.float32)
    share = -(-len(windows) // model.world)
    mine = windows[model.rank * share:(model.rank + 1) * share]
    for at in range(0, len(mine), 8):
        batch = mine[at:at + 8]
        rows, least = (np.stack([tokens[start:start + width + 1] for start, _, width in batch]), min((first for _, first, _ in batch)))
        inputs, targets = (rows[:, :-1], rows[:, 1:])
        found = -model.losses(inputs, targets, changes, least)[..., None]
        for (start, first, width), row in zip(batch, found):
            values[start + first - low:start + width - low] = row[first - least:]
    return model.total(values)


def whole_row(model, changes, engram, ngram, windows, tokens, start, position):
    first, _, width = next((window for window in windows if window[0] + window[1] <= position < window[0] + window[2]))
    row = model.rows(tokens[None, first:first + width], changes, position - first)[:, 0]
    before, p = (tokens[start + 1:position + 1], np.exp(row[0].astype(np.float64)))
    p = ngram.row(before, p)
    return np.log(p)


def score_tokens(model, tokens, log=None, rows_at=()):
    tokens, positions = (np.asarray(tokens, np.int64), len(tokens) - 1)
    if positions < 1:
        raise ValueError(f'a text of {len(tokens)} tokens has nothing to score; at least 2 are needed')
    losses, counts = (np.zeros(positions), np.zeros(positions, np.int32))
    kept = np.zeros((len(rows_at), 1024))
    chunks = window_chunks(score_windows(positions), 256)
    engram = ngram = changes = None
    ngram = NgramMixture(5, 1024, 2097152, -1, 0.4)
    ngram.memory.absorb(tokens[:1])
    changes, velocity = (first_changes(artifact_specs(), model.weights), {})
    with frozen(model.weights, True):
        for number, windows in enumerate(chunks):
            low, high = (windows[0][0] + windows[0][1], windows[-1][0] + windows[-1][2])
            if log and number and (number % (len(chunks) // 10 + 1) == 0):
                log.line(f'eval_step:{number}/{len(chunks)} val_loss_so_far:{losses[:low].mean():.4f}')
            values = model_values(model, changes, tokens, windows, low, high)
            step = 16
            for start in range(low, high, step):
                end = min(start + step, high)
                came = tokens[start + 1:end + 1]
                p = np.exp(values[start - low:end - low, 0].astype(np.float64))
                p, ngram_tape = ngram.score(came, p)
                losses[start:end] = -np.log(p)
                counts[start:end] += 1
                for index, position in enumerate(rows_at):
                    if start <= position < end:
                        kept[index] = whole_row(model, changes, engram, ngram, windows, tokens, start, position)
                ngram.learn(ngram_tape, came)
            if number + 1 < len(chunks):
                for start in range(low, high, 256):
                    end = min(start + 256, high)
                    changes = learn_chunk(model, velocity, changes, tokens[:end + 1], start, end, end / positions)
    return (losses, counts, kept)


def summarise(losses, counts, tokens, table):
    if (counts != 1).any():
        at = int(np.flatnonzero(counts != 1)[0])
        raise RuntimeError(f'position {at} was scored {counts[at]} times; every position must be scored exactly once')
    if not np.isfinite(losses).all():
        raise RuntimeError(f'the loss at position {int(np.flatnonzero(~np.isfinite(losses))[0])} is not finite')
    tokens = np.asarray(tokens, np.int64)
    size = int(token_bytes(table, tokens[:-1], tokens[1:]).astype(np.int64).sum())
    total = float(losses.sum())
    return Score(total / len(losses), total / math.log(2.0) / size, len(losses), size)


class Log:

    def __init__(self, rank=0):
        self.rank = rank

    def line(self, text):
        if self.rank == 0:
            print(text, flush=True)

    def metrics(self, **record):
        pass


def training_progress(step, seconds):
    share = step / 20000
    share = max(share, seconds / 286.6)
    return min(share, 1.0)


def learning_rate_factor(progress):
    if progress < 0.01:
        return max(progress / 0.01, 0.01)
    if progress <= 0.6:
        return 1.0
    left = (1.0 - progress) / 0.4
    return 0.0 + 1.0 * left


class TrainResult(NamedTuple):
    steps: int
    seconds: int
    loss: int
    skipped: int


def warm_up(backend, seed):
    state = backend.state()
    rows = 2048 // backend.world // 256
    generator = np.random.default_rng(seed)
    for index in range(2):
        tokens = generator.integers(0, 1024, (2, rows, 256)).astype(np.int32)
        backend.step(tokens[0], tokens[1], 1.0, index % 2 == 0 or True, False)()
    backend.restore(state)


def progress_line(step, loss, seconds, tokens_per_second):
    share = max(training_progress(step, seconds), 1e-09)
    return f'step:{step}/20000 train_loss:{loss:.4f} train_time:{seconds * 1000:.0f}ms step_avg:{seconds * 1000 / max(step, 1):.2f}ms tok/s:{tokens_per_second:.0f} left:{seconds * (1.0 / share - 1.0):.0f}s'


def train(backend, loader, log, save, step, seconds, clock):
    begin = clock() - seconds
    loss, skipped, bad, mark, mark_step = (float('nan'), 0, 0, seconds, step)
    first, first_step, under_way = (seconds, step, deque())

    def finish(done, wait):
        nonlocal loss, bad, skipped, mark, mark_step
        loss, norm = wait()
        bad = 0 if np.isfinite(norm) else bad + 1
        skipped += bad > 0
        if bad == 3:
            raise FloatingPointError(f'gradients are not finite since step {done - 3}; lower train.matrix_lr or train.scalar_lr')
        if done % 100 == 0:
            seconds = clock() - begin
            speed = (done - mark_step) * 2048 / max(seconds - mark, 1e-09)
            mark, mark_step = (seconds, done)
            log.line(progress_line(done, loss, seconds, speed))
            log.metrics(step=done, train_loss=loss, seconds=seconds, tokens_per_second=speed, gradient_norm=norm, skipped=skipped)
    try:
        while True:
            seconds = backend.slowest(clock() - begin)
            if seconds == math.inf:
                raise KeyboardInterrupt
            progress = training_progress(step, seconds)
            finished = step - len(under_way)
            pace = (seconds - first) / (finished - first_step) if finished > first_step else 0.0
            late = seconds + pace * (1 + 2 * backend.ahead) > 286.6
            if progress >= 1.0 or late:
                break
            inputs, targets = loader.next_batch()
            rounded = progress >= 0.0
            averaging = progress >= 0.4
            wait = backend.step(inputs, targets, learning_rate_factor(progress), rounded, averaging)
            step += 1
            under_way.append((step, wait))
            if len(under_way) > backend.ahead:
                finish(*under_way.popleft())
        while under_way:
            finish(*under_way.popleft())
    except KeyboardInterrupt:
        save(step, clock() - begin)
        raise
    seconds = clock() - begin
    reason = 'stopping_early: wallclock_cap ' if step < 20000 else ''
    log.line(f'{reason}train_time:{seconds * 1000:.0f}ms step:{step}/20000')
    return TrainResult(step, seconds, loss, skipped)


def wall_clock():
    return time.perf_counter()


def run_training(specs, backend, data_path, seed, log, resumed, save):
    step, seconds, position = (0, 0.0, 0)
    if resumed:
        state, step, seconds, position = resumed
        backend.restore(state)
    loader = open_loader(data_path, seed, backend.rank, backend.world, position)
    log.line(f'model_params:{parameter_count(specs)} world_size:{backend.world} grad_accum_steps:1 seed:{seed}')
    begin = wall_clock()
    warm_up(backend, seed)
    log.line(f'warmup_step:2/2 warmup_time:{(wall_clock() - begin) * 1000:.0f}ms')

    def save_all(step, seconds):
        save(backend.state(), step, seconds, step)
    try:
        result = train(backend, loader, log, save_all, step, seconds, wall_clock)
        save_all(result.steps, result.seconds)
    finally:
        loader.close()
    return result


def train_weights(process, data_path, seed, log):
    specs = param_specs()
    backend = make_backend(specs, init_params(specs, seed), process)
    result = run_training(specs, backend, data_path, seed, log, None, lambda *state: None)
    return (backend.export(), result)


def find_calibration(process, arrays, data_path, log):
    specs, tokens = (artifact_specs(), calibration_tokens(data_path))
    arrays['sharpness'] = np.ones(1, np.float32)
    calibration = {}
    stored = stored_arrays(specs, {name: ops_from_numpy(array) for name, array in arrays.items()}, calibration)
    arrays['sharpness'] = fitted_sharpness(process, stored, tokens, log)
    return calibration


def fitted_sharpness(process, stored, tokens, log):
    rows = evaluator(stored | {'sharpness': np.ones(1, np.float32)}, process).rows
    sharpness, before, after = fit_sharpness(rows, tokens, 256)
    log.line(f'temperature:{1 / sharpness:.4f} held-out training loss {before:.5f} -> {after:.5f}')
    return np.full(1, sharpness, np.float32)


def make_artifact(arrays, calibration):
    specs = artifact_specs()
    return pack(specs, quantize(specs, {name: ops_from_numpy(array) for name, array in arrays.items()}, calibration))


def compressed(process, arrays, calibration, data_path, log):
    return (None, make_artifact(arrays, calibration))


def load_artifact(data):
    specs = stored_specs(artifact_specs(), data)
    return dequantize(specs, unpack(specs, data))


def score_rows(process, arrays, data_path, tokenizer_path, log, rows_at):
    tokens = validation_tokens(data_path)
    table = byte_table(resolve_tokenizer(data_path, tokenizer_path), 1024)
    losses, counts, rows = score_tokens(evaluator(arrays, process), tokens, log, rows_at)
    return (summarise(losses, counts, tokens, table), losses, rows)


def main():
    process, log = (start_process(), Log(int(os.environ.get('RANK', 0))))
    data_path, tokenizer = (os.environ.get('DATA_PATH', 'data'), os.environ.get('TOKENIZER_PATH', ''))
    artifact = os.environ.get('ARTIFACT', 'artifact.trit')
    if not os.path.exists(artifact):
        seed = int(os.environ.get('SEED', 1337))
        arrays, _ = train_weights(process, data_path, seed, log)
        calibration = find_calibration(process, arrays, data_path, log)
        _, data = compressed(process, arrays, calibration, data_path, log)
        if process.rank == 0:
            atomic_write(artifact, data)
        total_over_ranks(0.0, process)
    with open(artifact, 'rb') as file:
        data = file.read()
    log.line(f'Serialized model: {len(data)} bytes')
    begin = time.perf_counter()
    rows_at = [int(position) for position in os.environ.get('ROWS_AT', '').split(',') if position]
    loaded = load_artifact(data)
    score, losses, rows = score_rows(process, loaded, data_path, tokenizer, log, rows_at)
    spent = (time.perf_counter() - begin) * 1000
    log.line(f'final_ternary_roundtrip_exact val_loss:{score.loss:.8f} val_bpb:{score.bpb:.8f} tokens:{score.tokens} bytes:{score.bytes} stride:64 eval_time:{spent:.0f}ms')
    if os.environ.get('LOSSES') and process.rank == 0:
        atomic_write(os.environ['LOSSES'], losses.tobytes())
    if os.environ.get('ROWS') and process.rank == 0:
        atomic_write(os.environ['ROWS'], rows.tobytes())


class Process(NamedTuple):
    rank: int
    world: int
    device: int


class Evaluator(NamedTuple):
    losses: int
    rows: int
    gradients: int
    weights: int
    total: int
    rank: int
    world: int


class Backend(NamedTuple):
    step: int
    slowest: int
    export: int
    state: int
    restore: int
    rank: int
    world: int
    ahead: int = 0


def seen_weights(specs, p, rounded):
    q = fake_quantize(specs, p, {}) if rounded else dict(p)
    return q


def summed_loss(q, stream, targets):
    return ops_sum(ops_cross_entropy(readout(q, stream), targets))


def training_loss(q, tokens, targets):
    stream, auxiliary = forward(q, tokens)
    count = tokens.shape[0] * tokens.shape[1]
    total = summed_loss(q, stream, targets)
    loss = total / count
    return (loss + sum(auxiliary.values()), loss)


def orthogonalise(x):
    x = x * ops_rsqrt(ops_sum(ops_sum(x * x, -1, True), -2, True) + 1e-14)
    tall = x.shape[-2] > x.shape[-1]
    x = ops_swap_last(x) if tall else x
    for _ in range(3):
        gram = x @ ops_swap_last(x)
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return ops_swap_last(x) if tall else x


def stacks(specs):
    found = {}
    for spec in specs:
        key = f'{spec.shape} {spec.lr_scale}' if spec.group == 'matrix' else spec.name
        found.setdefault(key, []).append(spec)
    return found


def stacked(specs, arrays, multiple=1):
    found = {}
    for key, members in stacks(specs).items():
        if members[0].group == 'matrix':
            parts = [arrays[spec.name] for spec in members]
            found[key] = ops_stack(parts + [ops_zeros(members[0].shape, parts[0])] * (-len(parts) % multiple), 0)
        else:
            found[key] = arrays[key]
    return found


def spread(specs, held):
    found = {}
    for key, members in stacks(specs).items():
        for index, spec in enumerate(members):
            found[spec.name] = held[key][index] if spec.group == 'matrix' else held[key]
    return found


def muon_update(momentum, gradient):
    momentum = 0.95 * momentum + gradient
    direction = gradient + 0.95 * momentum
    return ((momentum,), orthogonalise(direction) * max(1.0, gradient.shape[-2] / gradient.shape[-1]) ** 0.5)


def adam_update(first, second, gradient, step):
    first = 0.9 * first + (1.0 - 0.9) * gradient
    second = 0.95 * second + (1.0 - 0.95) * gradient * gradient
    size = ops_sqrt(second * (1.0 / (1.0 - 0.95 ** step))) + 1e-08
    return ((first, second), first * (1.0 / (1.0 - 0.9 ** step)) / size)


def group_rate(spec):
    rate = 0.005
    if spec.group == 'matrix':
        rate = 0.01
    elif spec.group == 'embed':
        rate = 0.005
    elif spec.group == 'engram':
        rate = 0.0075
    return rate * spec.lr_scale


def optimizer_state(specs, held):
    state = {}
    for key, (spec, *_) in stacks(specs).items():
        state[key] = tuple((ops_zeros(held[key].shape, held[key]) for _ in range(1 if spec.group == 'matrix' else 2)))
    return state | {'step': (ops_zeros((), held[key]),)}


def optimizer_step(specs, held, gradients, state, factor, norm):
    finite, count = (norm < math.inf, state['step'][0] + 1.0)
    new_held, new_state = ({}, {'step': (ops_where(finite, count, count - 1.0),)})
    for key, (spec, *_) in stacks(specs).items():
        x, gradient, rate = (held[key], ops_cast(gradients[key], 'float32'), factor * group_rate(spec))
        gradient = gradient * ops_clip(1.0 / norm, 0.0, 1.0)
        active = finite
        if spec.group == 'matrix':
            moments, update = muon_update(*state[key], gradient)
            decay = 0.0
        else:
            moments, update = adam_update(*state[key], gradient, count)
            decay = 0.0 if spec.group == 'embed' else 0.0
            if spec.group == 'engram':
                active = (ops_max(ops_abs(gradient), -1, True) > 0) & finite
        new_state[key] = tuple((ops_where(active, new, old) for new, old in zip(moments, state[key])))
        new_held[key] = ops_where(active, x * (1.0 - rate * decay) - rate * update, x)
    return (new_held, new_state)


def start_process():
    rank, world = (int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1)))
    device = 'cpu'
    if torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision('high')
    if world > 1 and (not distributed.is_initialized()):
        distributed.init_process_group('nccl' if device != 'cpu' else 'gloo', timeout=timedelta(minutes=1))
    return Process(rank, world, device)


def to_device(array, process):
    return torch.tensor(array, device=process.device)


def sent(array, process):
    tensor = torch.from_numpy(array)
    return tensor if process.device == 'cpu' else tensor.pin_memory().to(process.device, non_blocking=True)


def reader(process, *values):
    if process.device == 'cpu':
        return lambda: tuple(map(float, values))
    numbers, done = (torch.stack(values).to('cpu', non_blocking=True), torch.cuda.Event())
    done.record()

    def read():
        done.synchronize()
        return tuple(numbers.tolist())
    return read


def total_over_ranks(array, process):
    if process.world == 1:
        return array
    tensor = to_device(array, process)
    distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def evaluator(arrays, process):
    weights = {name: to_device(array, process) for name, array in arrays.items()}
    gradients = None

    def used(changes):
        return adapted(weights, changes) if changes else weights

    @torch.no_grad()
    def losses(inputs, targets, changes=None, first=0):
        given = (used(changes), to_device(inputs, process), to_device(targets, process), first)
        return ops_to_numpy(scored_losses(*given))

    @torch.no_grad()
    def rows(inputs, changes=None, first=0):
        return ops_to_numpy(scored_rows(used(changes), to_device(inputs, process), first))

    def gradients(changes, inputs, targets, shares):
        leaves = {name: array.detach().requires_grad_() for name, array in changes.items()}
        losses = scored_losses(used(leaves), to_device(inputs, process), to_device(targets, process))
        found = torch.autograd.grad((losses * to_device(shares, process)).sum(), list(leaves.values()))
        return {name: ops_to_numpy(array) for name, array in zip(leaves, found)}
    return Evaluator(losses, rows, gradients, weights, lambda array: total_over_ranks(array, process), process.rank, process.world)


def compiled(function):
    try:
        torch.compile(torch.square)(torch.ones(2))
    except Exception as fault:
        print(f'eager instead, because compiling fails here: {type(fault).__name__}: {str(fault).strip().splitlines()[0]}')
        return function
    return torch.compile(function, fullgraph=True, dynamic=False)


def mean_over_ranks(process, matrices, gradients, loss):
    rest, found = ([key for key in gradients if key not in matrices], {})
    flat = torch.cat([gradients[key].reshape(-1).float() for key in rest] + [loss.reshape(1)])
    flying = [distributed.all_reduce(flat, async_op=True)]
    for key in matrices:
        found[key] = torch.empty_like(gradients[key][:len(gradients[key]) // process.world])
        flying.append(distributed.reduce_scatter(found[key], list(gradients[key].chunk(process.world)), async_op=True))
    for work in flying:
        work.wait()
    *pieces, loss = torch.split(flat / process.world, [gradients[key].numel() for key in rest] + [1])
    found = {key: x / process.world for key, x in found.items()}
    return (found | {key: piece.view_as(gradients[key]) for key, piece in zip(rest, pieces)}, loss[0])


def whole_stacks(process, matrices, parts):
    if process.world == 1:
        return parts
    found = dict(parts)
    found.update({key: parts[key].new_empty(process.world * len(parts[key]), *parts[key].shape[1:]) for key in matrices})
    for work in [distributed.all_gather(list(found[key].chunk(process.world)), parts[key], async_op=True) for key in matrices]:
        work.wait()
    return found


def make_backend(specs, arrays, process):
    matrices = [key for key, members in stacks(specs).items() if members[0].group == 'matrix']

    def own(whole):
        return whole | {key: whole[key].chunk(process.world)[process.rank] for key in matrices}

    def on_device(flat, pattern):
        return stacked(specs, {spec.name: to_device(flat[pattern.format(spec.name)], process) for spec in specs}, process.world)
    held = {'p': on_device(arrays, '{}'), 'ema': {}, 'clock': None}
    held['state'] = optimizer_state(specs, own(held['p']))

    def loss_function(weights, tokens, targets):
        return training_loss(weights, tokens, targets)

    @torch.no_grad()
    def seen(whole, rounded):
        return seen_weights(specs, spread(specs, whole), rounded)

    @torch.no_grad()
    def square(gradients):
        shares = {key: 1 if key in matrices else process.world for key in gradients}
        return sum((ops_sum(ops_cast(x, 'float32') ** 2) / shares[key] for key, x in gradients.items()))

    @torch.no_grad()
    def update(parts, gradients, state, factor, norm):
        return optimizer_step(specs, parts, gradients, state, factor, norm)
    loss_function, seen = (compiled(loss_function), compiled(seen))
    if process.device != 'cpu':
        square, update = (compiled(square), compiled(update))

    def gradients_of(inputs, targets, rounded):
        leaves = {name: weight.detach().requires_grad_() for name, weight in seen(held['p'], rounded).items()}
        mean_loss, gradients = (0.0, None)
        for tokens, wanted in zip(np.split(inputs, 1), np.split(targets, 1)):
            objective, loss = loss_function(leaves, sent(tokens, process), sent(wanted, process))
            part = torch.autograd.grad(objective / 1, list(leaves.values()))
            mean_loss = mean_loss + loss.detach() / 1
            gradients = part if gradients is None else [a.float() + b for a, b in zip(gradients, part)]
        return (mean_loss, dict(zip(leaves, gradients)))

    @torch.no_grad()
    def step(inputs, targets, factor, rounded, averaging):
        with torch.enable_grad():
            loss, gradients = gradients_of(inputs, targets, rounded)
        gradients = stacked(specs, gradients, process.world)
        if process.world > 1:
            gradients, loss = mean_over_ranks(process, matrices, gradients, loss)
        norm = square(gradients)
        if process.world > 1:
            distributed.all_reduce(norm)
        norm = torch.sqrt(norm)
        factor = torch.full((), factor, device=process.device)
        parts, held['state'] = update(own(held['p']), gradients, held['state'], factor, norm)
        held['p'] = whole_stacks(process, matrices, parts)
        return reader(process, loss, norm)

    def slowest(seconds):
        if process.world == 1:
            return seconds
        latest = torch.full((), seconds, dtype=torch.float64, device=process.device)
        distributed.all_reduce(latest, op=distributed.ReduceOp.MAX)
        before, held['clock'] = (held['clock'], reader(process, latest))
        return (before if before and process.device != 'cpu' else held['clock'])()[0]

    def export():
        return {name: ops_to_numpy(x).copy() for name, x in spread(specs, held['ema'] or held['p']).items()}

    def state():
        first = spread(specs, whole_stacks(process, matrices, {key: moments[0] for key, moments in held['state'].items()}))
        flat = {f'p/{name}': x for name, x in spread(specs, held['p']).items()}
        flat.update({f'ema/{name}': x for name, x in (spread(specs, held['ema']) if held['ema'] else {}).items()})
        flat.update({f'optimizer/{name}/0': x for name, x in first.items()})
        flat.update({f'optimizer/{key}/1': moments[1] for key, moments in held['state'].items() if len(moments) == 2})
        return {name: ops_to_numpy(x).copy() for name, x in flat.items()} | {'step': np.array(int(held['state']['step'][0]))}

    def restore(flat):
        held['p'] = on_device(flat, 'p/{}')
        held['ema'] = on_device(flat, 'ema/{}') if f'ema/{specs[0].name}' in flat else {}
        first = own(on_device(flat, 'optimizer/{}/0'))
        second = {key: () if key in matrices else (to_device(flat[f'optimizer/{key}/1'], process),) for key in first}
        held['state'] = {key: (x, *second[key]) for key, x in first.items()}
        held['state']['step'] = (torch.full((), float(flat['step']), device=process.device),)
    return Backend(step, slowest, export, state, restore, process.rank, process.world, 0 if process.device == 'cpu' else 1)


if __name__ == "__main__":
    main()


# The counted file's errors carry these numbers in place of their texts.
#   1 ValueError in group_layout: f'{spec.name}: group size {spec.group_size} is neither inside a row of {columns} nor a multiple of it; change the quant setting that names it'
#   2 ValueError in quantize: f'{spec.name}: a weight is not a number from -65504 to 65504'
#   3 PackError in check_tensor: f'{name}: codes are {codes.dtype} of shape {codes.shape}, not {np.dtype(kind)} of shape {shape}'
#   4 PackError in check_tensor: f'{name}: a code lies outside the grid from {-top} to {top}'
#   5 PackError in check_tensor: f'{name}: a padding position is not zero'
#   6 PackError in check_tensor: f'{name}: scales are not float16 of shape {(shape[0], 1)}, one for each group'
#   7 PackError in check_tensor: f'{name}: a scale is not a finite number of at least 6.1e-05'
#   8 PackError in stream_symbols: f'{spec.name}: a scale is not one of quant.scale_steps'
#   9 PackError in check_header: f"not an artifact: it starts with {data[:4]!r}, not b'TRIT'"
#  10 PackError in check_header: f'format version {list(data[4:5])} is not the known version 2'
#  11 PackError in check_header: f'the artifact is cut off: {len(data)} bytes where the header alone has 21'
#  12 PackError in check_header: 'the artifact is damaged: its checksum does not match its bytes'
#  13 PackError in read_streams: f'the artifact is cut off: {len(data)} bytes where {len(streams)} streams have modes'
#  14 PackError in read_streams: f'mode {mode} is unknown for a stream of {stream.count} symbols below {stream.base}'
#  15 PackError in unpack: 'the artifact ends before its symbols do, or goes on behind them'
#  16 ValueError in token_bytes: f'token ids {ids.min()} to {ids.max()} do not fit the byte table of {len(base)} rows'
#  17 ValueError in shard_length: f'{path}: {len(header)} bytes is no shard; the header alone has 1024'
#  18 ValueError in shard_length: f'{path}: magic {magic} version {version} is no shard; expected 20240520 version 1'
#  19 ValueError in shard_length: f'{path}: {size} bytes, but a header of {count} tokens asks for {HEADER_BYTES + 2 * count} and at least one token'
#  20 ValueError in read_shard: f'{path}: token {start + at} is {part[at]}, outside model.vocab_size={vocab_size}'
#  21 ValueError in shard_files: f'{data_path}: no *_{split}_*.bin shards; make them with python -m trit.data.prepare --out {data_path}'
#  22 ValueError in TokenLoader: f'{rows} windows a step do not divide among {world} ranks, or rank {rank} is not one of them'
#  23 ValueError in TokenLoader: f'no training shard holds a window of train_seq_len+1={seq_len + 1} tokens; the longest has {longest}'
#  24 ValueError in open_train_split: f'{data_path}: {total} training tokens are too few for compress.calibration_tokens=16384 and a window of train.train_seq_len=256; lower one of them'
#  25 ValueError in read_manifest: f'{path}: not a JSON manifest ({error}); make the folder again with python -m trit.data.prepare'
#  26 ValueError in resolve_tokenizer: f'{data_path}: no manifest.json names its tokenizer; set tokenizer_path or use python -m trit.data.prepare'
#  27 ValueError in resolve_tokenizer: f'{tokenizer_path}: no such tokenizer; tokenizer_path is a SentencePiece .model file or byte260'
#  28 ValueError in resolve_tokenizer: f"tokenizer {tokenizer_path} does not belong to the shards in {data_path}, which were made with {made_by['name']} (sha256 {made_by['sha256'][:12]}...); leave tokenizer_path empty to use theirs"
#  29 ValueError in NgramMemory: f'eval.ngram_nodes={capacity} is too small; at least 4 * vocab_size = {4 * vocab_size} nodes are needed'
#  30 ValueError in scope_specs: f"eval.ttt_scope={scope} adapts no tensor of this architecture; possible: none, {', '.join(useful)}"
#  31 RuntimeError in frozen: f"the evaluation changed {', '.join(moved)}; only copies of the tensors in eval.ttt_scope may move"
#  32 ValueError in score_tokens: f'a text of {len(tokens)} tokens has nothing to score; at least 2 are needed'
#  33 RuntimeError in summarise: f'position {at} was scored {counts[at]} times; every position must be scored exactly once'
#  34 RuntimeError in summarise: f'the loss at position {int(np.flatnonzero(~np.isfinite(losses))[0])} is not finite'
#  35 FloatingPointError in train: f'gradients are not finite since step {done - 3}; lower train.matrix_lr or train.scalar_lr'
