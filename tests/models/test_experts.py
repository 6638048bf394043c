"""The law of the experts: exactly the top-k of each token alone, weighed as the specification says; who gets no token stands still."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKENDS, TINY_EXPERTS, TINY_FEEDBACK, random_arrays, random_tokens, start, tiny_config

from trit.layers.experts import expert_layer, expert_shares, expert_specs, first_expert_layer
from trit.layers.mlp import mlp_layer
from trit.models import load_arch
from trit.ops import torch_ops
from trit.train.optimizer import optimizer_state, optimizer_step, spread, stacked

SETTINGS = {
    "one": {},
    "two": {"expert_top_k": 2, "experts": 5},
    "all": {"expert_top_k": 3},
    "pair": {"experts": 2, "expert_balance_weight": 1.0},
}


def expert_case(rows=2, length=20, **settings):
    """(config, arrays of a layer "e", normalised stream (rows, length, 32))."""
    cfg = tiny_config("unet", **TINY_EXPERTS | settings)
    return cfg, random_arrays(expert_specs(cfg, "e")), np.random.default_rng(0).standard_normal((rows, length, 32)).astype(np.float32)


def run_experts(cfg, arrays, x, ops=torch_ops, routed=True):
    """(output, auxiliary losses) as numpy."""
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    out, losses = expert_layer(ops, p, cfg, "e", ops.from_numpy(x), routed)
    return ops.to_numpy(out), {name: float(ops.to_numpy(loss)) for name, loss in losses.items()}


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def token_by_token(cfg, arrays, x):
    """(output, balance loss) in float64: each token is given to its experts one after another."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    experts, k = cfg.arch.experts, cfg.arch.expert_top_k
    out, counts, mass = np.zeros(x.shape), np.zeros(experts), np.zeros(experts)
    for place in np.ndindex(x.shape[:2]):
        token = x[place].astype(np.float64)
        shares = softmax(w["e.router"] @ token)
        chosen = sorted(range(experts), key=lambda expert: -shares[expert])[:k]
        total = sum(shares[expert] for expert in chosen) if k > 1 else 1.0
        counts[chosen] += 1
        mass += shares
        for expert in chosen:
            hidden = w[f"e.{expert}.in"] @ token
            hidden = np.where(hidden > 0, hidden, 0.5 * hidden) ** 2
            hidden = hidden / np.sqrt((hidden**2).mean() + 1e-6) * w[f"e.{expert}.out.gain"]
            out[place] += shares[expert] / total * (w[f"e.{expert}.out"] @ hidden)
    tokens = x.shape[0] * x.shape[1]
    return out, cfg.arch.expert_balance_weight * experts * (counts / (tokens * k) * mass / tokens).sum()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_are_the_specification_token_by_token(backend, settings):
    cfg, arrays, x = expert_case(**SETTINGS[settings])
    found, losses = run_experts(cfg, arrays, x, BACKENDS[backend].ops)
    wanted, balance = token_by_token(cfg, arrays, x)
    assert np.abs(wanted).max() > 0.01 and np.abs(found - wanted).max() <= 2e-5
    assert losses == pytest.approx({"expert_balance": balance}, rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_experts_are_the_dense_sum(backend):
    """With k = E and with k = 1 of one expert's probability alone, against plain MLPs."""
    ops, (cfg, arrays, x) = BACKENDS[backend].ops, expert_case(expert_top_k=3)
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    shares = softmax(x @ arrays["e.router"].T)
    dense = sum(shares[..., e : e + 1] * ops.to_numpy(mlp_layer(ops, p, cfg, f"e.{e}", ops.from_numpy(x))) for e in range(3))
    assert np.abs(run_experts(cfg, arrays, x, ops)[0] - dense).max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_exactly_k_experts_are_chosen_even_among_equals(backend, k):
    ops, cfg = BACKENDS[backend].ops, expert_case(experts=4, expert_top_k=k)[0]
    logits = np.array([[0, 0, 0, 0], [1, 2, 2, 1], [3, -1, 3, 3], [0, 1, 2, 3]], np.float32)
    weights, probabilities, chosen = (ops.to_numpy(x) for x in expert_shares(ops, cfg, ops.from_numpy(logits)))
    wanted = [[0, 1, 2, 3], [1, 2, 0, 3], [0, 2, 3, 1], [3, 2, 1, 0]]
    assert [set(np.flatnonzero(row)) for row in chosen] == [set(row[:k]) for row in wanted]
    assert ((weights > 0) == (chosen > 0)).all()
    assert np.allclose(weights.sum(-1), (probabilities * chosen).sum(-1) if k == 1 else 1.0, atol=1e-6)


def test_a_token_goes_its_way_whatever_the_others_are():
    """No capacity: all tokens may want one expert; and no token moves another's output by a bit."""
    cfg, arrays, x = expert_case(length=32)
    before = run_experts(cfg, arrays, x)[0]
    crowded = np.repeat(x[:, :1], 32, 1)
    assert np.allclose(run_experts(cfg, arrays, crowded)[0], before[:, :1], atol=1e-6)
    for t in (0, 7, 31):
        changed = x.copy()
        changed[1, t] = crowded[0, 0] * 3
        moved = np.abs(run_experts(cfg, arrays, changed)[0] - before).max(-1)
        assert moved[1, t] > 0 and (np.delete(moved[1], t) == 0).all() and (moved[0] == 0).all()


def test_even_routing_costs_its_weight_and_crowding_more():
    cfg, arrays, x = expert_case(expert_balance_weight=0.5, experts=4)
    even = {name: array.copy() for name, array in arrays.items()}
    even["e.router"][:] = 0.0
    # Whoever is chosen among equals: probabilities are even, so that the loss is.
    assert run_experts(cfg, even, x)[1]["expert_balance"] == pytest.approx(0.5, rel=1e-5)
    one_way = even | {"e.router": np.stack([x[0, 0], *[x[0, 0] * 0] * 3])}
    assert run_experts(cfg, one_way, np.repeat(x[:1, :1], 20, 1))[1]["expert_balance"] > 1.9
    off, none = run_experts(expert_case(expert_balance_weight=0, experts=4)[0], arrays, x)
    assert none == {} and (off == run_experts(cfg, arrays, x)[0]).all()


def test_the_router_learns_from_the_text_alone():
    """With one expert to a token its probability stays in the product, so that the router has a gradient without the balance."""
    cfg, arrays, x = expert_case(expert_balance_weight=0)
    p = {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}
    out = expert_layer(torch_ops, p, cfg, "e", torch.from_numpy(x), True)[0]
    assert torch.autograd.grad(out.sum(), p["e.router"])[0].abs().max() > 1e-3


def test_before_routing_starts_the_first_expert_is_the_mlp():
    cfg, arrays, x = expert_case()
    p = {name: torch.from_numpy(array) for name, array in arrays.items()}
    out, losses = run_experts(cfg, arrays, x, routed=False)
    assert (out == mlp_layer(torch_ops, p, cfg, "e.0", torch.from_numpy(x)).numpy()).all() and losses == {}


@pytest.mark.parametrize("layers,fraction,first", [(2, 0.5, 1), (3, 0.33, 2), (12, 0.33, 8), (12, 0.67, 4), (5, 1.0, 0), (7, 0.14, 6)])
def test_upper_layers_have_experts_in_place_of_the_mlp(layers, fraction, first):
    cfg = tiny_config("unet", **TINY_EXPERTS | {"num_layers": layers, "expert_layer_fraction": fraction})
    specs = load_arch("unet").param_specs(cfg)
    names = {tuple(spec.name.split(".")[:2]) for spec in specs}
    assert first_expert_layer(cfg) == first
    assert all(((f"block{i}", "experts") in names) == (i >= first) != ((f"block{i}", "mlp") in names) for i in range(layers))
    assert all(spec.scheme == "fp16" and spec.group == "scalar" for spec in specs if spec.name.endswith("router"))


def test_the_balance_is_a_mean_over_layers_and_passes():
    """Routers at zero cost the weight itself, however many layers have experts and however often they run."""
    for more in ({}, {"expert_layer_fraction": 1.0}, TINY_FEEDBACK | {"feedback_passes": 2, "expert_layer_fraction": 1.0}):
        cfg = tiny_config("unet", **TINY_EXPERTS | more)
        arrays = random_arrays(load_arch("unet").param_specs(cfg))
        p = {name: torch.from_numpy(array * (not name.endswith("router"))) for name, array in arrays.items()}
        losses = load_arch("unet").forward(torch_ops, p, cfg, torch.from_numpy(random_tokens(cfg, 2, 32)))[1]
        assert {name: float(loss) for name, loss in losses.items()} == pytest.approx({"expert_balance": 0.01}, rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_without_tokens_stand_still_for_a_hundred_steps(backend):
    """Weights, gains and moments: through momentum and weight decay, which move every other matrix."""
    ops, cfg = BACKENDS[backend].ops, expert_case(muon_wd=0.1)[0]
    specs = expert_specs(cfg, "e")
    held = stacked(ops, specs, {name: ops.from_numpy(array) for name, array in random_arrays(specs).items()})
    state, generator = optimizer_state(ops, specs, held), np.random.default_rng(0)

    def step(busy):
        nonlocal held, state
        found = {s.name: generator.standard_normal(s.shape).astype(np.float32) * (busy or ".1." not in s.name) for s in specs}
        gradients = stacked(ops, specs, {name: ops.from_numpy(array) for name, array in found.items()})
        held, state = optimizer_step(ops, cfg, specs, held, gradients, state, 1.0, ops.from_numpy(np.float32(1.0)))
        moments = spread(specs, {key: moments[0] for key, moments in state.items()})
        return {
            name: ops.to_numpy(x).copy() for name, x in (spread(specs, held) | {f"{key}/moment": x for key, x in moments.items()}).items()
        }

    before = step(True)
    for _ in range(100):
        after = step(False)
    assert all((after[name] == before[name]).all() == (".1." in name) for name in before)


def test_an_expert_that_no_token_goes_to_stands_still_in_training():
    cfg = tiny_config("unet", **TINY_EXPERTS, muon_wd=0.1, expert_balance_weight=0)
    arrays = random_arrays(load_arch("unet").param_specs(cfg))
    trained = start(cfg, arrays=arrays)
    rows = random_tokens(cfg, 1, 3)  # so few tokens that some expert gets none
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    after = trained.export()
    moved = [any((after[name] != arrays[name]).any() for name in arrays if f".experts.{e}." in name) for e in range(3)]
    assert 0 < sum(moved) < 3
    assert all(
        (after[name] == arrays[name]).all() or moved[int(name.split(".")[2])]
        for name in arrays
        if ".experts." in name and "router" not in name
    )


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"experts": 1}, "experts=1 must be 0"),
        ({"expert_top_k": 0}, "expert_top_k=0 must be 1 to arch.experts=3"),
        ({"expert_top_k": 4}, "expert_top_k=4 must be 1 to arch.experts=3"),
        ({"expert_layer_fraction": 0.2}, "expert_layer_fraction=0.2 gives experts to none of model.num_layers=2 layers; 0.5 and more"),
        ({"expert_layer_fraction": 1.5}, "expert_layer_fraction=1.5 must lie"),
        ({"experts": 0}, "expert_layer_fraction=0.5 does nothing while arch.experts=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("unet", **TINY_EXPERTS | settings)
