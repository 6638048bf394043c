"""The law of `equilibrium`: the deployed relaxation is causal to the bit and leaks where its rules look at a whole text, a cell stays under its
caps, a penalty follows the residual, gradients of its own train it on both array libraries as its counted file does.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cell_fixtures import OPS, cosine
from model_fixtures import BACKENDS, Records, random_arrays, random_tokens, start, tiny_config
from record_fixtures import counted_and_package
from test_certify import prefix_replay
from test_models import future_reach

from benchmarks.wall import characters
from trit.dynamics.precise import precise_weights
from trit.eval.score import score_tokens
from trit.layers.anderson import anderson
from trit.layers.equilibrium import PARTS, capped, cell_shapes, cell_tables, deployed, drive, force
from trit.layers.homeostat import ADJUST_EVERY, FALL, LOSS_RISE, MOST, RISE, homeostat_state
from trit.layers.implicit import at_rest, unrolled
from trit.layers.newton import newton
from trit.layers.relaxation import adapting, stepping
from trit.models import equilibrium
from trit.ops import torch_ops
from trit.train.probe import with_probe

NAME = "equilibrium"


def case(**settings):
    """(config, weights that are nowhere constant)."""
    cfg = tiny_config(NAME, **settings)
    return cfg, random_arrays(equilibrium.param_specs(cfg))


@pytest.mark.parametrize("settings", [{}, {"engram_buckets": 64, "isolate_documents": "true"}, {"relax_steps": 60, "num_layers": 1}])
def test_no_later_token_moves_a_bit(settings):
    """AC7, whatever the steps lead to."""
    cfg, arrays = case(**settings)
    for length in (2, 31, 64):
        assert future_reach(cfg, arrays, length) == 0.0


def test_no_other_text_moves_a_bit():
    cfg, arrays = case()
    p, tokens = precise_weights(arrays), torch.from_numpy(random_tokens(cfg, 4, 33))
    whole = deployed(OPS, p, cfg, tokens)
    others = tokens.clone()
    others[1:] = torch.from_numpy(random_tokens(cfg, 3, 33, 1))
    assert torch.equal(deployed(OPS, p, cfg, others)[0], whole[0])
    assert float((deployed(OPS, p, cfg, tokens[:1])[0] - whole[0]).abs().max()) < 1e-10


def solved(solver):
    """`deployed` by a solver (force, drive) -> state."""

    def function(ops, p, cfg, tokens):
        p = capped(ops, p, cfg)
        x, tables = drive(ops, p, cfg, tokens), cell_tables(ops, cfg, tokens)
        return solver(ops, lambda z: force(ops, p, cfg, z, x, tables), x)

    return function


def batch_mixing(ops, pull, x):
    """Anderson mixing whose coefficients are those of the whole batch, as one text."""
    rows = x.shape
    found = anderson(ops, lambda z: pull(z.reshape(rows)).reshape(1, -1, rows[2]), x.reshape(1, -1, rows[2]), 25, 0.0, ridge=1e-6)
    return found.state.reshape(rows)


LEAKS = {
    "global_stop": lambda ops, pull, x: stepping(ops, pull, x, 0.25, 60, 3e-3).state,
    "global_adaptive": lambda ops, pull, x: adapting(ops, pull, x, 0.6, (0.003, 1.2), 30, 0.0).state,
    "mixing_by_texts": lambda ops, pull, x: anderson(ops, pull, x, 25, 0.0, ridge=1e-6).state,
    "mixing_by_batches": batch_mixing,
}


@pytest.mark.parametrize("rule", ["fixed", *LEAKS])
def test_rules_that_look_at_a_whole_text_are_caught(rule, monkeypatch):
    """Negative controls, through the prefix replay of the certificate: every scalar of a text is a function of its future."""
    cfg, arrays = case(eval_batch_seqs=1, num_layers=1)
    side, tokens = BACKENDS["torch"], random_tokens(cfg, 1, 90)[0]
    if rule != "fixed":
        monkeypatch.setattr(equilibrium, "deployed", solved(LEAKS[rule]))

    def scores(given):
        model = side.module.evaluator(torch_ops, equilibrium, cfg, arrays, side.module.Process(0, 1, "cpu"))
        return score_tokens(torch_ops, equilibrium, cfg, model, np.asarray(given))[0]

    assert prefix_replay(scores, tokens, cfg.model.vocab_size, [9, 17, 50]).verdict == ("pass" if rule == "fixed" else "fail")


def test_a_matrix_is_never_larger_than_its_cap():
    cfg, arrays = case(norm_cap=1.5)
    for name in arrays:
        if name.startswith("cell0"):
            arrays[name] *= 40
    p = {name: torch.from_numpy(x) for name, x in arrays.items()}
    found = capped(torch_ops, p, cfg)
    for part in PARTS:
        rows, columns, std = cell_shapes(cfg)[part]
        assert float(found[f"cell0.{part}"].norm()) == pytest.approx(1.5 * std * (rows * columns) ** 0.5, rel=1e-5)
        assert torch.equal(found[f"cell1.{part}"], p[f"cell1.{part}"])


def test_the_penalty_follows_the_deployed_residual_between_its_bounds():
    cfg, _ = case(jacobian_penalty=0.3, residual_target=0.01)
    p = {"embed": torch.zeros(1)}
    state = homeostat_state(torch_ops, p, cfg)
    assert state.tolist() == pytest.approx([0.3, 0.0, 0.0])

    def after(worst, looks, state, cfg=cfg, lost=0.0):
        for _ in range(looks):
            state = homeostat_state(torch_ops, {"homeostat": state, "relaxed": torch.tensor([9.0] * 6 + [lost, worst])}, cfg)
        return state

    held = after(0.01, 30, state)
    assert held[0] == pytest.approx(0.3, rel=1e-5) and held[1] == pytest.approx(0.01) and held[2] == 30
    assert after(-1.0, 5, held).tolist() == pytest.approx([0.3, 0.01, 35])  # nobody looked
    assert float(after(0.1, 1, state)[0]) == pytest.approx(0.3 * 10**RISE, rel=1e-4)
    assert float(after(0.001, 1, torch.tensor([0.9, 0.0, 1.0]))[0]) == pytest.approx(0.9 * 10**-FALL, rel=1e-4) and RISE > FALL
    assert float(after(-1.0, 4, held, lost=0.5)[0]) == pytest.approx(0.3 * math.exp(4 * 0.5 * LOSS_RISE), rel=1e-4)
    assert float(after(float("nan"), 60, state)[0]) == pytest.approx(0.3 * MOST)
    assert float(after(1e-9, 20, after(0.1, 3, state))[0]) == pytest.approx(0.3)  # at first and at least
    still = tiny_config(NAME, jacobian_penalty=0.3, residual_target=0)
    assert float(after(1.0, 1, state, still)[0]) == pytest.approx(0.3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_penalty_looks_at_deployed_steps_every_tenth_step(backend):
    """Few deployed steps leave a residual far above that of the rest that mixing finds: the weight rises, and only when someone looked."""
    cfg = tiny_config(NAME, relax_steps=2, free_budget=100, num_layers=1)
    trained, weights, looks = start(cfg, backend), [], []
    for seed in range(2 * ADJUST_EVERY + 2):
        rows = random_tokens(cfg, 2, 17, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 0.0, True, False)()
        state = trained.state()
        weights.append(float(state["derived/homeostat"][0]))
        looks.append(float(state["derived/relaxed"][-1]))
        assert float(state["derived/relaxed"][0]) < 0.01
    due = [step % ADJUST_EVERY == 0 for step in range(len(looks))]
    assert [look > 0.1 for look in looks] == due and all(look == -1.0 for look, here in zip(looks, due) if not here)
    rises = [later > before for before, later in zip(weights, weights[1:])]
    assert rises == due[:-1] and weights[0] == cfg.arch.jacobian_penalty


@pytest.mark.parametrize("rule", ["bptt", "adjoint", "asym_ep", "asym_ep_tracked"])
def test_both_libraries_find_the_same_gradients(rule):
    """Of one micro-batch through rounding, penalties included."""
    settings = {"gradient": rule, "nudge_steps": 20, "adjoint_tolerance": 0.2, "residual_gate": 10.0, "free_budget": 30, "num_layers": 1}
    cfg, arrays = case(**settings, residual_penalty=0.1)
    tokens = random_tokens(cfg, 2, 17)
    found = []
    for side in BACKENDS.values():
        q = {name: side.ops.from_numpy(array) for name, array in arrays.items()}
        q |= equilibrium.update_state(side.ops, q, cfg)
        given = (side.ops.from_numpy(part) for part in (tokens[:, :-1], tokens[:, 1:]))
        loss, gradients, left = equilibrium.estimate_gradients(side.ops, q, cfg, *given)
        found.append((float(loss), {name: side.ops.to_numpy(x) for name, x in gradients.items()}, side.ops.to_numpy(left["relaxed"])))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    for name, left in found[0][1].items():
        assert np.abs(left - found[1][1][name]).max() <= 1e-3 * max(np.abs(left).max(), 1e-3), name
    assert found[0][2][4] == found[1][2][4] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_goes_on_bit_for_bit(backend):
    """Weights, moments and the penalty's state: five more steps lose the same."""
    cfg = tiny_config(NAME)
    rows = [random_tokens(cfg, 4, 33, seed) for seed in range(8)]

    def steps(trained, numbers):
        return [trained.step(rows[i][:, :-1], rows[i][:, 1:], 1.0, True, False)()[0] for i in numbers]

    whole, other = start(cfg, backend), start(cfg, backend)
    steps(whole, range(3))
    kept = {name: np.array(x) for name, x in whole.state().items()}
    assert {"derived/homeostat", "derived/relaxed"} <= kept.keys()
    wanted = steps(whole, range(3, 8))
    other.restore(kept)
    assert steps(other, range(3, 8)) == wanted


def test_micro_batches_add_up():
    """Two micro-batches give the gradient of one, where none is left out and no noise differs."""
    losses = []
    for parts in (1, 2):
        cfg = tiny_config(NAME, grad_accum_steps=parts, jacobian_penalty=0, residual_gate=10.0, free_tolerance=1e-6, adjoint_tolerance=1e-4)
        trained, rows = start(cfg), random_tokens(cfg, 4, 33)
        losses.append([trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)() for _ in range(2)])
    assert np.allclose(losses[0], losses[1], rtol=1e-3)


def test_a_run_reports_residuals_gates_penalty_and_critical_step():
    """AC11: every record has them, of the rounded weights."""

    cfg, log = tiny_config(NAME, log_every=1, warmup_steps=0), Records()
    specs = equilibrium.param_specs(cfg)
    probed = with_probe(start(cfg), torch_ops, equilibrium, cfg, specs, log)
    for seed in range(11):
        rows = random_tokens(cfg, 4, 33, seed)
        probed.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    probes = [record for record in log.found if record["event"] == "probe"]
    assert len(probes) == 2
    wanted = {
        "g_deployed_token",
        "g_free_token",
        "r_deployed",
        "loss_gap",
        "critical_step",
        "step_rho",
        "texts_left_out",
        "jacobian_weight",
        "position_free",
    }
    assert all(wanted <= record.keys() and record["critical_step"] > 0.1 for record in probes)


def test_a_record_says_where_the_worst_token_stands():
    cfg, arrays = case(relax_steps=3, num_layers=1)
    p, tokens = {name: torch.from_numpy(x) for name, x in arrays.items()}, torch.from_numpy(random_tokens(cfg, 3, 20))
    found = equilibrium.probe(torch_ops, p, cfg, tokens)
    capped_p, tables = capped(torch_ops, p, cfg), cell_tables(torch_ops, cfg, tokens)
    z = deployed(torch_ops, p, cfg, tokens)
    pull = force(torch_ops, capped_p, cfg, z, drive(torch_ops, capped_p, cfg, tokens), tables)
    sizes = pull.norm(dim=-1) / z.norm(dim=-1)
    assert float(sizes[found["text_deployed"], found["position_deployed"]]) == float(sizes.max()) and float(sizes.max()) > 0
    assert found["g_deployed_token"] == pytest.approx(float(sizes.max()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torch", "mlx"])
def test_the_counted_file_trains_and_scores_as_the_package_does(library, shard_folder, tmp_path):
    cfg = tiny_config(NAME, vocab_size=260, iterations=6, calibration_evals=0)
    alone, package, steps = counted_and_package(cfg, shard_folder, tmp_path, library)
    assert steps == 6 and np.array_equal(alone, package)


@pytest.fixture(scope="module")
def trained():
    """(config, precise weights, tokens, targets) of the XS operator after 300 steps by the adjoint on a text of words."""
    settings = {"vocab_size": 64, "num_layers": 1, "model_dim": 64, "num_heads": 4, "mlp_mult": 4, "embed_dim": 64, "partial_rope_dims": 16}
    settings |= {"matrix_scheme": "fp16", "embed_bits": 16, "train_batch_tokens": 512, "cell_optimizer": "adam", "relax_rate": 0.1}
    settings |= {"relax_steps": 150, "scalar_lr": 0.003, "embed_lr": 0.003, "free_budget": 200, "residual_gate": 1e-2, "residual_target": 0}
    cfg = tiny_config(NAME, **settings)
    ids, backend, generator = characters(), start(cfg), np.random.default_rng(1)
    for step in range(300):
        at = generator.integers(0, len(ids) - 34, 16)
        rows = np.stack([ids[place : place + 33] for place in at])
        backend.step(rows[:, :-1], rows[:, 1:], min(1.0, (step + 1) / 30), True, False)()
    at = generator.integers(0, len(ids) - 34, 4)
    rows = torch.from_numpy(np.stack([ids[place : place + 33] for place in at]))
    return cfg, precise_weights(backend.export()), rows[:, :-1], rows[:, 1:]


@pytest.mark.slow
def test_a_trained_operator_meets_the_acceptance(trained):
    """AC1 to AC3 at the size of the specification."""
    cfg, q, tokens, targets = trained
    p, tables = capped(OPS, q, cfg), cell_tables(OPS, cfg, tokens)
    x = drive(OPS, p, cfg, tokens)

    def pull(z):
        return force(OPS, p, cfg, z, x, tables)

    plain = stepping(OPS, pull, x, 0.1, 4000, 1e-6)
    mixed = anderson(OPS, pull, x, 400, 1e-6, ridge=1e-10)
    exact = newton(OPS, lambda own, past: equilibrium.own_force(OPS, p, cfg, own, past, x, tables), x, 1e-10)
    assert plain.status == mixed.status == exact.status == ["converged"] * 4
    assert mixed.evaluations <= plain.evaluations / 2, (mixed.evaluations, plain.evaluations)
    assert float((exact.state - mixed.state).abs().max()) < 1e-4
    fine = {"free_tolerance": 1e-8, "free_budget": 1000, "adjoint_budget": 400}
    names, found = [spec.name for spec in equilibrium.param_specs(cfg)], {}
    for rule, tolerance in (
        ("adjoint", 1e-8),
        ("asym_ep", 0.05),
        ("asym_ep", 0.025),
        ("asym_ep_tracked", 0.05),
        ("asym_ep_tracked", 0.025),
    ):
        settings = again(cfg, gradient=rule, adjoint_tolerance=tolerance, **fine)
        found[rule, tolerance] = at_rest(OPS, q, settings, tokens, targets, names)
    wanted = found["adjoint", 1e-8].gradients
    for (_, tolerance), estimate in found.items():
        least = {0.05: 0.99, 0.025: 0.999}.get(tolerance, 0.9999)
        assert float(estimate.rho.max()) <= tolerance and cosine(estimate.gradients, wanted) >= least
    long = unrolled(OPS, q, again(cfg, gradient="bptt", relax_steps=600), tokens, targets, names)
    assert cosine(long.gradients, wanted) >= 0.99999


def again(cfg, **settings):
    """`cfg` with other settings of the architecture."""
    return replace(cfg, arch=replace(cfg.arch, **settings))


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"relax_rate": 1.0}, r"arch.relax_rate=1.0 must be positive and below 2 / \(1 \+ arch.leak\)"),
        ({"relax_rate": 0.5, "leak": 3.0}, "arch.relax_rate=0.5 must be positive and below"),
        ({"relax_rate": 0.0}, "arch.relax_rate=0.0 must be positive and below"),
        ({"leak": -0.1}, "arch.leak=-0.1 must not be negative"),
        ({"jacobian_share": 1.5}, "arch.jacobian_share=1.5 must be above 0 and at most 1"),
        ({"drop_path": 0.1}, "train.drop_path=0.1: .*equilibrium has no rest while a cell is left out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(NAME, **settings)


def test_a_step_just_below_the_longest_is_accepted():
    assert tiny_config(NAME, relax_rate=0.99).arch.relax_rate == 0.99 and tiny_config(NAME, relax_rate=1.9, leak=0.05)
