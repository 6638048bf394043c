"""Test-time training: exactly the named tensors move, by clipped momentum SGD on scored text, and the artifact stays what it was."""

import warnings

import numpy as np
import pytest
from model_fixtures import BACKENDS, evaluating, load_arch, logits_of, random_arrays, tiny_config

from trit.eval.temperature import artifact_specs, fit_sharpness
from trit.eval.ttt import TTT_SCOPES, adapted, first_changes, frozen, learn_chunk, scope_specs, sgd_step, training_windows
from trit.params import ParamSpec
from trit.train.log import Log

SIDE = BACKENDS["torch"]
SCALES = [
    "vocab_bias", "block0.mix", "block0.attn_scale", "block0.mlp_scale", "block0.attn.q_gain", "block0.attn.out.gain",
    "block0.mlp.out.gain", "engram.gate_scale", "engram.gate_bias", "block1.mix", "block1.attn_scale", "block1.mlp_scale", "block1.skip",
    "block1.attn.q_gain", "block1.attn.value_mix", "block1.attn.out.gain", "block1.mlp.out.gain",
]  # fmt: skip
MATRICES = ["embed.up", "embed.down"] + [f"block{i}.{name}" for i in (0, 1) for name in ("attn.qkv", "attn.out", "mlp.in", "mlp.out")]
ALLOWED = {
    "feedback": ["block1.attn_scale", "block1.mlp_scale", "block1.skip"],
    "skc_safe": ["block0.mix", "block1.mix", "block1.attn_scale", "block1.mlp_scale", "block1.skip"],
    "scales": SCALES,
    "lora": MATRICES,
}


def opened(scope, **overrides):
    """(cfg, specs, arrays, Evaluator) of a tiny unet."""
    cfg, arch = evaluating("unet", "plain", ttt_scope=scope, **overrides), load_arch("unet")
    specs = artifact_specs(arch, cfg)
    arrays = random_arrays(specs)
    return cfg, specs, arrays, SIDE.module.evaluator(SIDE.ops, arch, cfg, arrays, SIDE.module.Process(0, 1, "cpu"))


@pytest.mark.parametrize("scope", ALLOWED)
def test_scopes_are_exact_lists_of_tensors(scope):
    cfg, specs, _, model = opened(scope)
    assert sorted(spec.name for spec in scope_specs(specs, scope)) == sorted(ALLOWED[scope])
    moved = {name.rpartition("/")[0] if scope == "lora" else name for name in first_changes(SIDE.ops, cfg, specs, model.weights)}
    assert moved == set(ALLOWED[scope])


def test_packed_memory_and_embedding_are_in_no_scope():
    """By the kind of their spec, so also in architectures to come."""
    kinds = {kind for names in TTT_SCOPES.values() for kind in names}
    for name in ("embed", "engram.table", "engram.value", "engram.key"):
        assert next(spec for spec in opened("scales")[1] if spec.name == name).adapt not in kinds
    assert ParamSpec("x", (2, 2)).adapt not in kinds


def test_a_scope_without_tensors_says_which_have_some():
    with pytest.raises(ValueError, match="capsule_bank adapts no tensor .* possible: none, feedback, skc_safe, scales, lora"):
        scope_specs(opened("scales")[1], "capsule_bank")
    with pytest.raises(ValueError, match="capsule_bank adapts no tensor"):
        tiny_config(ttt_scope="capsule_bank")


@pytest.mark.parametrize("scope", ALLOWED)
def test_changes_start_as_the_same_function_in_the_scoring_graph(scope):
    cfg, specs, arrays, model = opened(scope)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 33))
    changes = first_changes(SIDE.ops, cfg, specs, model.weights)
    plain = model.losses(tokens[:, :-1], tokens[:, 1:])
    assert (model.losses(tokens[:, :-1], tokens[:, 1:], changes) == plain).all()
    rows = model.rows(tokens[:, :-1], changes)
    logits = logits_of(cfg, arrays, tokens[:, :-1])
    assert np.abs(rows - (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))).max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["scales", "lora"])
def test_gradients_are_those_of_the_pure_loss_on_the_chosen_positions(scope, backend):
    side, arch = BACKENDS[backend], load_arch("unet")
    cfg = evaluating("unet", "plain", ttt_scope=scope)
    specs = artifact_specs(arch, cfg)
    model = side.module.evaluator(side.ops, arch, cfg, random_arrays(specs), side.module.Process(0, 1, "cpu"))
    generator = np.random.default_rng(0)
    tokens, shares = generator.integers(0, 64, (1, 33)), np.float32(np.arange(32) > 20)[None]
    changes = first_changes(side.ops, cfg, specs, model.weights)
    if scope == "lora":
        changes = {
            n: side.ops.from_numpy(generator.normal(size=side.ops.to_numpy(c).shape).astype(np.float32) * 0.1) for n, c in changes.items()
        }
    gradients = model.gradients(changes, tokens[:, :-1], tokens[:, 1:], shares)
    assert gradients.keys() == changes.keys()
    for name in changes:
        direction = generator.normal(size=gradients[name].shape).astype(np.float32)
        found = []
        for step in (1e-2, -1e-2):
            moved = {**changes, name: changes[name] + step * side.ops.from_numpy(direction)}
            found.append((model.losses(tokens[:, :-1], tokens[:, 1:], moved) * shares).astype(np.float64).sum())
        slope = (found[0] - found[1]) / 2e-2
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=0.05, abs=0.03), name


def test_step_clips_then_accumulates_momentum():
    cfg = tiny_config(ttt_scope="scales", ttt_clip=1.0, ttt_momentum=0.5)
    one = SIDE.ops.from_numpy(np.zeros(2, np.float32))
    gradients, velocity = {"a": one + 3.0, "b": one + 4.0}, {}
    norm = np.sqrt(2 * 9 + 2 * 16)
    first = sgd_step(SIDE.ops, cfg, velocity, {"a": one, "b": one}, gradients, 0.1)
    assert np.allclose(first["a"], -0.1 * 3 / norm) and np.allclose(first["b"], -0.1 * 4 / norm)
    second = sgd_step(SIDE.ops, cfg, velocity, first, {"a": one, "b": one}, 0.1)
    assert np.allclose(second["a"], first["a"] - 0.1 * 0.5 * 3 / norm)
    small = sgd_step(SIDE.ops, cfg, {}, {"a": one}, {"a": one + 0.1}, 1.0)
    assert np.allclose(small["a"], -0.1)


@pytest.mark.parametrize("low,high", [(0, 5), (0, 32), (0, 40), (0, 64), (64, 128), (70, 75), (33, 100), (90, 186)])
def test_training_windows_read_scored_tokens_only_and_each_position_once(low, high):
    tokens = np.arange(200)
    inputs, targets, shares = training_windows(tokens[: high + 1], low, high, 32)
    assert inputs.shape == targets.shape == shares.shape and inputs.shape[1] == min(32, high) and (targets == inputs + 1).all()
    assert list(inputs[shares > 0]) == list(range(low, high)) and targets.max() == high


def test_learning_lowers_the_loss_of_text_like_the_one_learned_and_ends_with_a_zero_rate():
    cfg, specs, _, model = opened("scales", ttt_lr=0.2)
    tokens = np.tile(np.random.default_rng(0).integers(0, 64, 16), 20)
    changes, velocity = first_changes(SIDE.ops, cfg, specs, model.weights), {}
    before = model.losses(tokens[None, :32], tokens[None, 1:33]).mean()
    for low in range(0, 256, 64):
        changes = learn_chunk(SIDE.ops, cfg, model, velocity, changes, tokens, low, low + 64, low / 320)
    assert model.losses(tokens[None, :32], tokens[None, 1:33], changes).mean() < before - 0.05
    still = learn_chunk(SIDE.ops, cfg, model, velocity, changes, tokens, 0, 64, 1.0)
    assert all((still[name] == changes[name]).all() for name in changes)
    assert all(np.abs(SIDE.ops.to_numpy(v)).max() > 0 for v in velocity.values())  # momentum lived through the chunks


@pytest.mark.parametrize("strict", [True, False])
def test_an_evaluation_that_changes_the_artifact_is_caught_and_undone(strict):
    _, _, arrays, model = opened("scales")

    def spoil():
        with frozen(SIDE.ops, model.weights, strict):
            model.weights["engram.table"][3, 1] += 1e-6

    if strict:
        with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="engram.table"):
            spoil()
    else:
        with pytest.warns(UserWarning, match="engram.table"):
            spoil()
    assert all((SIDE.ops.to_numpy(model.weights[name]) == array).all() for name, array in arrays.items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with frozen(SIDE.ops, model.weights, True):
            adapted(SIDE.ops, evaluating("unet", "scales"), model.weights, {"vocab_bias": model.weights["vocab_bias"] + 1})


@pytest.mark.parametrize("wanted", [0.87, 1.0, 1.13])
def test_fitted_sharpness_undoes_a_wrong_temperature(wanted):
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 20)) * 2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    tokens = np.append(0, (p.cumsum(-1) > generator.random((4000, 1))).argmax(-1))
    wrong = logits / wanted
    rows = wrong - np.log(np.exp(wrong).sum(-1, keepdims=True))
    served = iter(range(0, 4000, 40))
    sharpness, before, after = fit_sharpness(lambda inputs: rows[None, (at := next(served)) : at + 40], tokens, 40)
    assert sharpness == pytest.approx(wanted, abs=0.03) and after <= before


def test_temperature_is_fitted_on_training_text_and_travels_in_the_artifact(shard_folder):
    from trit.submission import find_calibration, load_artifact, make_artifact, score_arrays

    cfg, arch = evaluating("unet", "temperature", vocab_size=260, calibration_evals=0), load_arch("unet")
    arrays = {name: array for name, array in random_arrays(artifact_specs(arch, cfg)).items() if name != "sharpness"}
    arrays["vocab_bias"] *= 4  # overconfident: the fit has something to do
    process = SIDE.module.Process(0, 1, "cpu")
    calibration = find_calibration(SIDE.ops, SIDE.module, arch, cfg, process, arrays, shard_folder, Log(rank=1))
    loaded = load_artifact(SIDE.ops, arch, cfg, make_artifact(SIDE.ops, arch, cfg, arrays, calibration))
    assert loaded["sharpness"].shape == (1,) and 0.49 < loaded["sharpness"][0] < 0.99
    fitted = score_arrays(SIDE.ops, SIDE.module, arch, cfg, process, loaded, shard_folder, "byte260", Log(rank=1))[0]
    plain = score_arrays(
        SIDE.ops, SIDE.module, arch, cfg, process, {**loaded, "sharpness": np.ones(1, np.float32)}, shard_folder, "byte260", Log(rank=1)
    )[0]
    assert fitted.loss < plain.loss
