"""The law of `spectral_lm`: its filters are the plain causal sum, its turns keep energy, its FFT, block and streaming forms are one model,
its parameter counts are the specified ones, its smoothed taps are low-pass.

Negative controls and learning are in test_spectral_learns.py.
"""

import math

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, logits_of, random_arrays, random_tokens, start, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from trit.config_load import ROOT, load
from trit.layers.chunk_head import chunk_logits, offset_losses
from trit.layers.cutoff import CUTOFF_FLOOR, LOWPASS_TAPS, lowpass, stage_smoothing
from trit.layers.fir import block_filter, first_taps
from trit.layers.split_step import turned
from trit.models import spectral_lm
from trit.ops import torch_ops
from trit.ops.fft_size import fft_size
from trit.params import init_params, parameter_count
from trit.train.loss import training_loss

NAME = "spectral_lm"
CHUNK = {"chunk": 4, "chunk_rank": 8, "embed_dim": 32}
STAGES = (0.125, 0.25, 0.5, 1.0)


def filter_case(kind, batch=2, length=50, channels=3, taps=17, seed=0):
    """(x (B, T, 2M), taps (2M, K), weights of the outputs) of a type, the first two with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, length, 2 * channels), (2 * channels, taps), (batch, length, 2 * channels)
    x, g, weights = (torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for shape in shapes)
    return x.requires_grad_(), g.requires_grad_(), weights


def direct(x, taps):
    """The sum over lags in complex numbers, differentiable."""
    half = x.shape[2] // 2
    z, g = torch.complex(x[..., :half], x[..., half:]), torch.complex(taps[:half], taps[half:])
    y = sum(torch.nn.functional.pad(z, (0, 0, lag, 0))[:, : z.shape[1]] * g[:, lag] for lag in range(g.shape[1]))
    return torch.cat([y.real, y.imag], 2)


def with_gradients(function, x, taps, weights):
    y = function(x, taps)
    return [each.detach() for each in (y, *torch.autograd.grad((y * weights).sum(), (x, taps)))]


@pytest.mark.parametrize("length,taps", [(50, 17), (64, 64), (5, 17), (33, 1), (1, 4)])
@pytest.mark.parametrize("kind,limit", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_filters_are_the_causal_sum_with_its_gradients(kind, limit, length, taps):
    """A1: by FFT and by blocks, relative to the largest value."""
    case = filter_case(kind, length=length, taps=taps)
    wanted = with_gradients(direct, *case)
    for form in (torch_ops.complex_filter, lambda x, g: block_filter(torch_ops, x, g, None)):
        for found, right in zip(with_gradients(form, *case), wanted):
            assert (found - right).abs().max() <= limit * right.abs().max()


def test_backward_is_the_adjoint_of_forward():
    """A2: inner products of outputs with what comes back agree, relative to the norms' product."""
    x, g, d = filter_case(torch.float32, batch=4, length=256, channels=8, taps=64)
    y = torch_ops.complex_filter(x, g)
    back = torch.autograd.grad((y * d).sum(), (x, g))
    left = (y.detach().double() * d.double()).sum()
    for of, at in zip(back, (x, g)):
        right = (of.double() * at.detach().double()).sum()
        assert abs(left - right) <= 1e-6 * y.norm() * d.norm()


@pytest.mark.parametrize("kind", ["input", "self", "none"])
def test_turns_keep_every_channels_size(kind):
    """A3: each channel and the total, relative, in float32; from 0 to sizes far beyond a trained model's."""
    cfg = tiny_config(NAME, turn=kind)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 64, generator=generator) * torch.logspace(-6, 2, 64)[:, None]
    out = turned(torch_ops, p, cfg, "block0", x, torch.randn(4, 64, 32, generator=generator))

    def sizes(x):
        return torch.hypot(x[..., :32].double(), x[..., 32:].double())

    assert ((sizes(out) - sizes(x)).abs() / sizes(x)).max() <= 1e-6
    assert abs(float((sizes(out) ** 2).sum() / (sizes(x) ** 2).sum()) - 1) <= 1e-6
    assert (out - x).abs().max() > 1 and turned(torch_ops, p, cfg, "block0", x * 0, x[..., :32]).abs().max() == 0


def test_a_turn_at_zero_has_a_finite_gradient():
    cfg = tiny_config(NAME)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    for size in (0.0, 1e-20, 1e-8):
        x = torch.full((1, 1, 64), size, requires_grad=True)
        (gradient,) = torch.autograd.grad(turned(torch_ops, p, cfg, "block0", x, torch.ones(1, 1, 32)).sum(), x)
        assert torch.isfinite(gradient).all() and gradient.abs().max() < 10


@pytest.mark.parametrize("kind,limits", [("none", (0.0, 1e-5)), ("self", (1e-2, 2.0)), ("input", (1e-2, 2.0))])
def test_only_a_turn_that_depends_on_the_signal_is_not_linear(kind, limits):
    """A15: superposition error of the turn, relative; a constant turn is a linear layer."""
    cfg = tiny_config(NAME, turn=kind)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    (a, b), (u, v) = torch.randn(2, 2, 16, 64), torch.randn(2, 2, 16, 32)
    apart = turned(torch_ops, p, cfg, "block0", a, u) + turned(torch_ops, p, cfg, "block0", b, v)
    together = turned(torch_ops, p, cfg, "block0", a + b, u + v)
    assert limits[0] <= (together - apart).norm() / apart.norm() <= limits[1]


def wide(arrays):
    """Weights in float64 as torch tensors."""
    return {key: torch.from_numpy(np.asarray(x, np.float64)) for key, x in arrays.items()}


def trained_arrays():
    """Weights after a few steps at a high rate, with noise: nowhere constant."""
    cfg = tiny_config(NAME, ladder="0.5,1", matrix_lr=0.1, scalar_lr=0.1)
    from trit.train.plateau import LadderMoment

    backend = start(cfg)
    for seed in range(5):
        rows = random_tokens(cfg, 4, 33, seed)
        backend.step(rows[:, :-1], rows[:, 1:], 1.0, False, False, LadderMoment(False, 1, seed, 0.1, None, 0.5))
    return {key: x + np.random.default_rng(0).normal(0, 0.05, x.shape) for key, x in backend.export().items()}


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_the_past_never_moves(weights):
    """A4: by FFT to rounding at every stage of the ladder, as it is scored not by a bit."""
    cfg = tiny_config(NAME, ladder="0.5,1")
    arrays = random_arrays(spectral_lm.param_specs(cfg)) if weights == "random" else trained_arrays()
    tokens, other = random_tokens(cfg, 2, 64), random_tokens(cfg, 2, 64, 1)
    for kind, limit in ((np.float64, 1e-12), (np.float32, 1e-4)):
        p = {key: torch.from_numpy(np.asarray(x, kind)) for key, x in arrays.items()}
        forms = {f: {**p, "training": True, "smoothing": torch.from_numpy(stage_smoothing(f, 16).astype(kind))} for f in STAGES}
        for cut in (1, 32, 63):
            changed = torch.from_numpy(np.concatenate([tokens[:, :cut], other[:, cut:]], 1))
            for form, q in [*forms.items(), ("scored", p)]:
                before, after = (spectral_lm.forward(torch_ops, q, cfg, rows)[0] for rows in (torch.from_numpy(tokens), changed))
                assert (before - after)[:, :cut].abs().max() <= (0 if form == "scored" else limit * before.abs().max())
                assert (before - after)[:, cut:].abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_and_scoring_forms_are_one_model(backend):
    cfg, ops = tiny_config(NAME), BACKENDS[backend].ops
    p = {key: ops.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    tokens = ops.from_numpy(random_tokens(cfg, 2, 65))
    left, right = (ops.to_numpy(spectral_lm.forward(ops, q, cfg, tokens)[0]) for q in (p, {**p, "training": True}))
    assert 0 < np.abs(left - right).max() <= 2e-5


@pytest.mark.parametrize("length", [64, 100, 255])
def test_a_prefix_has_the_states_of_the_whole(length):
    """A9, by FFT, whose length changes with the text's."""
    cfg = tiny_config(NAME, fir_taps=24)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()} | {"training": True}
    tokens = torch.from_numpy(random_tokens(cfg, 1, 256))
    whole, part = (spectral_lm.forward(torch_ops, p, cfg, rows)[0] for rows in (tokens, tokens[:, :length]))
    assert (whole[:, :length] - part).abs().max() <= 1e-4


def streamed(ops, p, cfg, tokens, size, by_fft=False):
    """The stream of tokens (B, T), fed `size` at a time."""
    states, parts = spectral_lm.first_stream(ops, cfg, tokens.shape[0], p["embed"]), []
    for low in range(0, tokens.shape[1], size):
        part, states = spectral_lm.stream(ops, p, cfg, tokens[:, low : low + size], states, by_fft)
        parts.append(part)
    return ops.concat(parts, 1)


def test_streaming_is_the_fft_form():
    """A10: token by token and by segments, without an FFT, in float64 and float32; on MLX in float32."""
    cfg = tiny_config(NAME)
    arrays, tokens = random_arrays(spectral_lm.param_specs(cfg)), random_tokens(cfg, 2, 37)
    for p, limit in ((wide(arrays), 1e-12), ({key: torch.from_numpy(x) for key, x in arrays.items()}, 1e-4)):
        whole = spectral_lm.forward(torch_ops, p | {"training": True}, cfg, torch.from_numpy(tokens))[0]
        for size, by_fft in ((1, False), (5, False), (32, False), (32, True), (7, True)):
            assert (streamed(torch_ops, p, cfg, torch.from_numpy(tokens), size, by_fft) - whole).abs().max() <= limit
    ops = BACKENDS["mlx"].ops
    p = {key: ops.from_numpy(x) for key, x in arrays.items()}
    assert np.abs(ops.to_numpy(streamed(ops, p, cfg, ops.from_numpy(tokens), 5)) - whole.numpy()).max() <= 1e-4


def test_overlap_save_keeps_earlier_segments_bit_for_bit():
    """A5: later segments change, earlier ones not by a bit, though each is convolved by FFT."""
    cfg = tiny_config(NAME)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    tokens = random_tokens(cfg, 2, 64)
    changed = np.concatenate([tokens[:, :32], random_tokens(cfg, 2, 32, 1)], 1)
    before, after = (streamed(torch_ops, p, cfg, torch.from_numpy(rows), 16, True) for rows in (tokens, changed))
    assert (before[:, :32] == after[:, :32]).all() and (before[:, 32:] - after[:, 32:]).abs().max() > 1e-3


class Seen(TorchDispatchMode):
    """Collects what a computation makes: (operator, types of its tensors)."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
        self.found.append((str(func), {x.dtype for x in tensors}))
        return out


def test_complex_numbers_stay_inside_the_op_and_nothing_is_float64():
    """A11: one training step's operators, forward and backward; then the op bodies by themselves."""
    cfg = tiny_config(NAME, **CHUNK)
    p = {key: torch.from_numpy(x).requires_grad_() for key, x in init_params(spectral_lm.param_specs(cfg), 1).items()}
    rows = torch.from_numpy(random_tokens(cfg, 2, 33))
    with Seen() as seen:
        objective, _ = training_loss(torch_ops, spectral_lm, cfg, p, rows[:, :-1], rows[:, 1:])
        torch.autograd.grad(objective, list(p.values()))
    bodies = {"aten.fft", "aten._fft", "aten.view_as_complex", "aten.view_as_real", "aten.conj", "aten._conj", "trit."}
    whole = set().union(*(kinds for _, kinds in seen.found))
    assert not whole & {torch.float64, torch.complex128} and any("trit.filtered" in name for name, _ in seen.found)
    outside = [name for name, kinds in seen.found if torch.complex64 in kinds]
    assert not outside, f"complex outside the op (bodies are {bodies}): {set(outside)}"
    from trit.ops.torch_filter import filtered, filtered_back

    x, g, d = (each.detach() for each in filter_case(torch.float32))
    with Seen() as seen:
        filtered._init_fn(x, g)
        filtered_back._init_fn(d, x, g)
    kinds = set().union(*(kinds for _, kinds in seen.found))
    assert torch.complex64 in kinds and not kinds & {torch.float64, torch.complex128}


def test_a_step_compiles_as_one_graph_without_complex_nodes():
    """A12 without code generation, for every rung alike: no break, no node again, the same loss and gradients."""
    cfg = tiny_config(NAME, **CHUNK, ladder="0.5,1")
    p = {key: torch.from_numpy(x).requires_grad_() for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    rows = torch.from_numpy(random_tokens(cfg, 2, 33))
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    def loss(p, smoothing):
        return training_loss(torch_ops, spectral_lm, cfg, {**p, "smoothing": smoothing}, rows[:, :-1], rows[:, 1:])[0]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=keep)
    for stage in STAGES:
        smoothing = torch.from_numpy(stage_smoothing(stage, 16))
        left, right = loss(p, smoothing), compiled(p, smoothing)
        assert abs(left - right) <= 1e-5
        for one, two in zip(*(torch.autograd.grad(x, list(p.values())) for x in (left, right))):
            assert (one - two).abs().max() <= 1e-4 * max(1.0, float(one.abs().max()))
    assert len(graphs) == 1 and not [node for node in graphs[0].graph.nodes if "fft" in str(node.target) or "complex" in str(node.target)]


@pytest.mark.parametrize("fraction,delay", [(0.125, 14.0), (0.25, 8.0), (0.5, 5.0)])
def test_smoothing_is_low_pass_causal_and_of_little_delay(fraction, delay):
    taps = lowpass(fraction)
    response = np.abs(np.fft.rfft(taps, 8192))
    place = np.arange(4097) / 4096
    decibels = 20 * np.log10(response)
    assert decibels[place >= fraction].max() < -37 and np.abs(decibels[place <= fraction - 1 / 16]).max() < 0.06
    assert (np.arange(LOWPASS_TAPS) * taps**2).sum() / (taps**2).sum() < delay and abs(taps[0]) > 1e-3
    # Minimum phase: no zero outside the circle, so no shift of all taps to the past is left.
    assert np.abs(np.roots(taps)).max() < 1 + 1e-6


def test_the_last_rung_is_no_smoothing():
    assert np.array_equal(stage_smoothing(1.0, 64), np.eye(64, dtype=np.float32))
    x = np.random.default_rng(0).standard_normal(64)
    assert np.allclose(stage_smoothing(0.25, 64) @ x, np.convolve(x, lowpass(0.25))[:64], atol=1e-5)


@pytest.mark.parametrize("fraction", STAGES[:3])
def test_smoothed_taps_hold_little_above_the_cutoff(fraction):
    """A17: energy above the cutoff, of smoothed over raw taps: pooled and in the worst channel."""
    taps = torch.cat([first_taps(torch_ops, 192, 64, layer, torch.zeros(1)) for layer in range(2)])
    raw = torch.complex(taps[:192], taps[192:384]).numpy()
    made = raw @ stage_smoothing(fraction, 64).T
    place = np.abs(np.fft.fftfreq(1024)) * 2
    above = [(np.abs(np.fft.fft(each, 1024)) ** 2)[:, place >= fraction].sum(1) for each in (made, raw)]
    assert above[0].sum() / above[1].sum() <= 1e-3 and (above[0] / above[1]).max() <= 1e-2 and CUTOFF_FLOOR == 0.01


def published_count(width, layers, taps, chunk, hidden, size, vocabulary=256):
    """Parameters of the published layout, whose tables are indexed by the F bins of one transform (specification 1.2)."""
    bins = size // 2 + 1
    mixer = taps + width + bins + 2 * width + width * width + width
    spectral = 2 * bins * width + (width * hidden + hidden) + (hidden * width + width) + 2 * bins * hidden
    return vocabulary * width + layers * (mixer + spectral) + 2 * width + width * chunk * vocabulary + chunk * vocabulary


def test_parameter_counts_are_the_specified_ones():
    """A20: of the preset's layout over 256 bytes exactly, of the preset over the project's 260 ids, and of the published layout."""
    preset = ROOT / "configs" / "spectral_1m6.toml"
    counts = [parameter_count(spectral_lm.param_specs(load(preset, {}, extra)[0])) for extra in (["model.vocab_size=256"], [])]
    assert counts == [1_627_072, 1_627_072 + 4 * (192 + 96 + 1)]
    assert published_count(512, 6, 128, 16, 1024, 2048) == 29_018_886


def test_filters_are_no_matrices():
    """Storage by kind: taps keep their bits whatever the matrices are stored with."""
    for settings in ({}, {"matrix_scheme": "int", "matrix_bits": 2}, {"scalar_bits": 1}, {"scalar_bits": 6, "scale_steps": 8}):
        specs = spectral_lm.param_specs(tiny_config(NAME, **settings))
        taps = [spec for spec in specs if spec.name.endswith(".taps")]
        assert taps and all((spec.scheme, spec.bits, spec.group, spec.group_size) == ("int", 8, "scalar", 16) for spec in taps)
        assert {spec.name.split(".")[-1] for spec in specs if spec.group == "matrix"} == {"in", "out", "turn", "up", "down"}
    assert {spec.scheme for spec in spectral_lm.param_specs(tiny_config(NAME)) if spec.group == "matrix"} == {"ternary"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chunk_head_foretells_each_offset_and_scores_the_first(backend):
    cfg, ops = tiny_config(NAME, **CHUNK), BACKENDS[backend].ops
    arrays, tokens = random_arrays(spectral_lm.param_specs(cfg)), random_tokens(cfg, 2, 14)
    p = {key: ops.from_numpy(x) for key, x in arrays.items()}
    x = spectral_lm.forward(ops, p, cfg, ops.from_numpy(tokens))[0]
    logits = ops.to_numpy(chunk_logits(ops, p, cfg, x, 4)).astype(np.float64)
    assert np.abs(logits[:, :, 0] - logits_of(cfg, arrays, tokens, backend)).max() <= 1e-5
    rows = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = ops.to_numpy(offset_losses(ops, p, cfg, x, ops.from_numpy(tokens)))
    assert losses.shape == (2, 2, 4)
    for row in range(2):
        for number, end in enumerate((3, 7)):
            wanted = [-rows[row, end, offset, tokens[row, end + 1 + offset]] for offset in range(4)]
            assert np.abs(losses[row, number] - wanted).max() <= 1e-5
    _, auxiliary = spectral_lm.forward(ops, {**p, "training": True}, cfg, ops.from_numpy(tokens))
    assert abs(float(auxiliary["chunk"]) - losses.mean()) <= 1e-4
    assert spectral_lm.forward(ops, {**p, "training": True}, cfg, ops.from_numpy(tokens[:, :7]))[1] == {}


def test_transforms_have_small_primes():
    assert [fft_size(n) for n in (1, 2, 7, 319, 1151, 1153)] == [2, 2, 8, 320, 1152, 1200]


def test_first_taps_have_energy_one_and_decay_from_one_token_to_a_third_of_them():
    taps = first_taps(torch_ops, 96, 60, 0, torch.zeros(1)).double().numpy()
    energy = taps[:96] ** 2 + taps[96:] ** 2
    assert np.allclose(energy.sum(1), 1, atol=1e-5)
    assert np.allclose(-2 / np.log(energy[:, 1] / energy[:, 0]), np.geomspace(1, 20, 96), rtol=1e-3)
    turns = np.sort(np.angle(taps[:, 1][:96] + 1j * taps[:, 1][96:]))
    assert np.diff(turns).max() < 3 * 2 * math.pi / 96


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"fir_taps": 0}, "arch.fir_taps=0 must be 1 or more"),
        ({"fir_bits": 2}, "arch.fir_bits=2 must be 4 to 8, or 16: filters are not ternary"),
        ({"fir_channels": -1}, "arch.fir_channels=-1 must be positive"),
        ({"chunk": 1}, "arch.chunk=1 must be 2 or more"),
        ({"chunk": 4}, "model.embed_dim=16 is read by no table of its own"),
        ({"chunk_rank": 8}, "arch.chunk_rank=8 does nothing while arch.chunk=0"),
        ({"ladder": "0.5,0.25,1"}, "must rise from above 0.0625 to 1"),
        ({"ladder": "0.25,0.5"}, "must rise from above 0.0625 to 1"),
        ({"ladder": "low,high"}, "must be two numbers or more"),
        ({"ladder_end": 0.4}, "train.ladder_end=0.4 does nothing while train.ladder is empty"),
        ({"carry": "true"}, "has no part with a state"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(NAME, **settings)


def test_a_ladder_needs_an_architecture_that_climbs_it():
    with pytest.raises(ValueError, match="model.name=unet has nothing to climb it"):
        tiny_config("unet", ladder="0.5,1")
