"""The law of arch.filter=modal: the recurrence is the sum over all lags with its gradients, exactly causal, and streams from one number a
channel; documents begin anew; rho stays below 1 whatever is learned; only the filter that is asked for ships."""

import math

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, random_arrays, random_tokens, start, tiny_config
from test_spectral_lm import streamed, wide

from trit.bundle.bundle import shaken_text
from trit.data.token_ids import BOS_ID
from trit.layers.modal import modal_filter, modal_rates
from trit.layers.scan import SHARE_MARGIN
from trit.models import spectral_lm
from trit.ops import torch_ops
from trit.train.torch_backend import Process, evaluator

NAME = "spectral_lm"
MODAL = {"filter": "modal"}


def modal_case(kind, length, channels=5, seed=0):
    """(x (B, T, 2M), modes (4, M), weights of the outputs) of a type, the first two with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (2, length, 2 * channels), (4, channels), (2, length, 2 * channels)
    x, modes, weights = (torch.randn(shape, generator=generator, dtype=torch.float64).to(kind) for shape in shapes)
    return x.requires_grad_(), (modes / 2).requires_grad_(), weights


def direct(cfg, layer, x, modes):
    """The sum over all lags of A rho^k e^(j theta k) z[t - k], in complex numbers, differentiable."""
    half = x.shape[2] // 2
    rates = [torch.complex(part[:half], part[half:]) for part in modal_rates(torch_ops, cfg, modes, layer)]
    kernel = rates[1] * rates[0] ** torch.arange(x.shape[1])[:, None]
    z = torch.complex(x[..., :half], x[..., half:])
    y = sum(torch.nn.functional.pad(z, (0, 0, lag, 0))[:, : x.shape[1]] * kernel[lag] for lag in range(x.shape[1]))
    return torch.cat([y.real, y.imag], 2)


@pytest.mark.parametrize("length", [1, 7, 64, 77])
@pytest.mark.parametrize("kind,limit", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_the_recurrence_is_the_sum_over_all_lags_with_its_gradients(kind, limit, length):
    """Relative to the largest value. Rates hold float32 constants in both forms."""
    cfg = tiny_config(NAME, **MODAL)
    x, modes, weights = modal_case(kind, length)
    pairs = []
    for y in (modal_filter(torch_ops, cfg, modes, 1, x, None, None), direct(cfg, 1, x, modes)):
        pairs.append([each.detach() for each in (y, *torch.autograd.grad((y * weights).sum(), (x, modes)))])
    for found, wanted in zip(*pairs):
        assert wanted.abs().max() > 0.1 and (found - wanted).abs().max() <= limit * wanted.abs().max()


def test_filters_start_with_energy_one_and_log_spaced_horizons():
    cfg = tiny_config(NAME, fir_taps=96, **MODAL)
    decay, size = (torch.complex(x[:32], x[32:]) for x in modal_rates(torch_ops, cfg, torch.zeros(4, 32), 0))
    horizons = 1 / (1 - decay.abs())
    assert abs(horizons[0] - 2) < 1e-3 and abs(horizons[-1] - 32) < 0.1
    assert (torch.diff(torch.log(horizons)) - math.log(16) / 31).abs().max() < 1e-2
    kernel = size * decay ** torch.arange(2000)[:, None]
    assert ((kernel.abs() ** 2).sum(0) - 1).abs().max() < 1e-3
    angles = torch.sort(decay.angle()).values
    assert torch.diff(angles).max() < 3 * 2 * math.pi / 32
    others = modal_rates(torch_ops, cfg, torch.zeros(4, 32), 1)[0]
    assert (torch.complex(others[:32], others[32:]).angle() - decay.angle()).abs().min() > 0


def test_no_mode_grows_and_none_is_lost_whatever_is_learned():
    cfg = tiny_config(NAME, **MODAL)
    for logit in (-200.0, -20.0, 0.0, 20.0, 200.0):
        modes = torch.zeros(4, 8)
        modes[0] = logit
        modes.requires_grad_()
        x = torch.ones(1, 256, 16, requires_grad=True)
        y = modal_filter(torch_ops, cfg, modes, 0, x, None, None)
        for gradient in torch.autograd.grad(y.square().sum(), (x, modes)):
            assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
        decay, size = (torch.hypot(part[:8], part[8:]) for part in modal_rates(torch_ops, cfg, modes.detach(), 0))
        assert (decay <= 1 - 0.9 * SHARE_MARGIN).all() and (size >= SHARE_MARGIN**0.5).all()


def test_a_block_sees_everything_before_and_nothing_after():
    """Bit for bit backwards; and further than as many taps would see."""
    tokens = random_tokens(tiny_config(NAME), 1, 64)
    changed = tokens.copy()
    changed[0, 20] = (changed[0, 20] + 1) % 64
    moved = {}
    for kind, taps in (("fir", 6), ("modal", 96)):
        cfg = tiny_config(NAME, filter=kind, fir_taps=taps)
        p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
        for form in (p, p | {"training": True}):
            streams = [spectral_lm.forward(torch_ops, form, cfg, torch.from_numpy(rows))[0] for rows in (tokens, changed)]
            moved[kind] = (streams[0] - streams[1]).abs().amax((0, 2))
            if kind == "modal":
                assert (moved[kind][:20] == 0).all()
    assert moved["modal"][20:].min() > 1e-3 and moved["fir"][20:31].min() > 1e-4 and moved["fir"][31:].max() < 1e-6


@pytest.mark.parametrize("isolated", ["false", "true"])
def test_streaming_goes_on_from_one_number_a_channel(isolated):
    """Token by token and by segments, in float64 and float32; on MLX in float32. Documents begin anew in a stream too."""
    cfg = tiny_config(NAME, isolate_documents=isolated, **MODAL)
    arrays, tokens = random_arrays(spectral_lm.param_specs(cfg)), random_tokens(cfg, 2, 37)
    tokens[0, 11] = tokens[1, 20] = BOS_ID
    for p, limit in ((wide(arrays), 1e-12), ({key: torch.from_numpy(x) for key, x in arrays.items()}, 1e-4)):
        whole = spectral_lm.forward(torch_ops, p, cfg, torch.from_numpy(tokens))[0]
        for size in (1, 5, 32):
            assert (streamed(torch_ops, p, cfg, torch.from_numpy(tokens), size) - whole).abs().max() <= limit
    assert [x.shape for x in spectral_lm.first_stream(torch_ops, cfg, 2, whole)] == [(2, 1, 64)] * 2
    ops = BACKENDS["mlx"].ops
    p = {key: ops.from_numpy(x) for key, x in arrays.items()}
    assert np.abs(ops.to_numpy(streamed(ops, p, cfg, ops.from_numpy(tokens), 5)) - whole.numpy()).max() <= 1e-4


def test_a_document_is_as_if_alone():
    cfg = tiny_config(NAME, isolate_documents="true", **MODAL)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    tokens = torch.from_numpy(np.maximum(random_tokens(cfg, 2, 50), BOS_ID + 1))
    tokens[:, 21] = BOS_ID
    whole, part = (spectral_lm.forward(torch_ops, p, cfg, rows)[0] for rows in (tokens, tokens[:, 21:]))
    assert (whole[:, 21:] - part).abs().max() <= 1e-5
    tokens[:, 21] = BOS_ID + 1
    assert (whole[:, 22:] - spectral_lm.forward(torch_ops, p, cfg, tokens)[0][:, 22:]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"fir_bits": 4}, "arch.fir_bits=4 is of taps; modes have quant.scalar_bits"),
        ({"fir_training": "blocks"}, "arch.fir_training=blocks is of taps"),
        ({"ladder": "0.5,1"}, "train.ladder='0.5,1' smooths taps, which arch.filter=modal has not; set arch.filter=fir"),
        ({"carry": "true"}, "train.carry"),
    ],
)
def test_what_modes_do_not_have_is_refused(settings, said):
    with pytest.raises(ValueError) as fault:
        tiny_config(NAME, **MODAL, **settings)
    assert said in str(fault.value)


def test_only_the_filter_that_is_asked_for_ships():
    here = {"fir": ("block_filter", "first_taps", "filtered_back"), "modal": ("modal_filter", "modal_rates", "complex_chunks")}
    for kind, words in here.items():
        text = shaken_text(tiny_config(NAME, filter=kind))
        for word in words:
            assert f"def {word}(" in text or f"def ops_{word}(" in text, word
        for word in here["modal" if kind == "fir" else "fir"]:
            assert word not in text, word


def test_a_training_step_compiles_as_one_graph():
    cfg = tiny_config(NAME, **MODAL)
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()} | {"training": True}
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(lambda tokens: spectral_lm.forward(torch_ops, p, cfg, tokens)[0], fullgraph=True, backend=keep)
    tokens = torch.from_numpy(random_tokens(cfg, 2, 33))
    assert (compiled(tokens) - spectral_lm.forward(torch_ops, p, cfg, tokens)[0]).abs().max() <= 1e-5
    assert len(graphs) == 1 and not [node for node in graphs[0].graph.nodes if "complex" in str(node.target).replace("complex_scan", "")]


def test_modes_remember_what_was_five_tokens_ago():
    """A8 of this filter: two layers of 32 poles are trained to one lag."""
    cfg = tiny_config(NAME, vocab_size=16, fir_taps=16, **MODAL)
    trained = start(cfg)

    def batch(rows, seed):
        tokens = random_tokens(cfg, rows, 32, seed)
        return tokens, np.concatenate([np.zeros((rows, 5), np.int32), tokens[:, :-5]], 1)

    for step in range(400):
        trained.step(*batch(8, step), max(1.0 - step / 400, 0.05), False, False)
    losses = evaluator(torch_ops, spectral_lm, cfg, trained.export(), Process(0, 1, "cpu")).losses(*batch(64, 1000))
    print(f"held-out nats {losses.mean():.4f}")
    assert losses.mean() < 0.05


def test_what_a_run_reports_of_modes():
    """Groups of gradients name tensors that there are; turns keep energy; nothing leaks, in either form."""
    cfg = tiny_config(NAME, **MODAL)
    names = {spec.name for spec in spectral_lm.param_specs(cfg)}
    groups = spectral_lm.probed_groups(cfg)
    assert set(groups["taps"]) == {"block0.modes", "block1.modes"} and all(set(members) <= names for members in groups.values())
    p = {key: torch.from_numpy(x) for key, x in random_arrays(spectral_lm.param_specs(cfg)).items()}
    found = spectral_lm.probe(torch_ops, p, cfg, torch.from_numpy(random_tokens(cfg, 2, 32)))
    assert found["leak_fft"] == found["leak_scored"] == 0.0 and all(abs(found[f"energy{i}"] - 1) < 1e-6 for i in range(2))
