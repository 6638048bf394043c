"""The law of the capsule bank: it is C2 of the specification, block by block; a token reads what earlier blocks left and nothing else."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKBONE, BACKENDS, TINY_CAPSULES, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.data.token_ids import BOS_ID
from trit.eval.ttt import scope_specs
from trit.layers.capsules import capsule_layer, capsule_specs
from trit.layers.hadamard import hadamard_matrix
from trit.layers.operator import advanced
from trit.models import load_arch
from trit.ops import torch_ops

LOSSES = {"capsule_predict_weight": 1.0, "capsule_rollout_weight": 1.0}
SETTINGS = {
    "default": {},
    "isolated": {"isolate_documents": "true"},
    "no_coupling": {"capsule_rank": 0, "capsule_block": 5},
    "one_capsule": {"capsules": 1, "capsule_block": 1, "capsule_rollout": 2},
    "isolated_wide": {"isolate_documents": "true", "capsule_block": 4, "capsules": 8, "capsule_dim": 32, "capsule_rollout": 5},
}


def bank_case(length=45, **settings):
    """(config, arrays of a bank, normalised stream (2, length, 32), tokens with documents)."""
    cfg = tiny_config("unet", **TINY_CAPSULES | settings)
    generator = np.random.default_rng(0)
    tokens = generator.integers(BOS_ID + 1, 64, (2, length)).astype(np.int32)
    tokens[0, [start for start in (0, 11, 16, 33) if start < length]] = BOS_ID
    tokens[1, [start for start in (5, 6, 7, 29) if start < length]] = BOS_ID
    return cfg, random_arrays(capsule_specs(cfg)), generator.standard_normal((2, length, 32)).astype(np.float32), tokens


def run_bank(cfg, arrays, x, tokens, ops=torch_ops):
    """(what the bank adds, auxiliary losses) as numpy."""
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    out, losses = capsule_layer(ops, p, cfg, ops.from_numpy(x), ops.from_numpy(tokens))
    return ops.to_numpy(out), {name: float(ops.to_numpy(loss)) for name, loss in losses.items()}


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def operators(cfg, arrays):
    """(N, C, C) float64: the matrix that advances each capsule by a block."""
    diagonal = 0.95 * np.tanh(arrays["capsules.diagonal"].astype(np.float64))
    size, coupling = diagonal.shape[1], 0.0
    hadamard = np.array([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]) / size**0.5
    if cfg.arch.capsule_rank:
        first, second = (arrays[f"capsules.couple_{side}"].astype(np.float64) for side in ("in", "out"))
        coupling = second @ first * (0.04 / max(np.linalg.norm(first) * np.linalg.norm(second), 0.04))
    return np.stack([hadamard @ (np.diag(row) + coupling) @ hadamard for row in diagonal])


def token_by_token(cfg, arrays, x, tokens):
    """(what the bank adds, losses) in float64 as C2 writes it: one document after another, one token after another."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    size, capsules, channels = cfg.arch.capsule_block, cfg.arch.capsules, cfg.arch.capsule_dim
    advance, length = operators(cfg, arrays), x.shape[1]
    horizons = np.exp(np.arange(capsules) * np.log(cfg.arch.capsule_memory) / max(capsules - 1, 1))
    decay = 1.0 - (2.0**-14 + (1 - 2.0**-13) / (1 + np.exp(np.log(horizons - 0.9) - w["capsules.memory"])))
    out, apart, came = np.zeros((*x.shape[:2], 32)), {}, []
    for row in range(len(x)):
        values = x[row] @ w["capsules.read"].T
        shares = softmax(values @ w["capsules.prototype"].T / channels**0.5)
        mass, total = np.zeros(capsules), np.zeros((capsules, channels))
        foretold = []  # what each earlier block of this document foretold, with the block that it was to be next
        for begin in range(0, length, size):
            told = np.einsum("ncd,nd->nc", advance, total / (mass[:, None] + 1e-6))
            block = range(begin, min(begin + size, length))
            begins = [t for t in block if tokens[row, t] == BOS_ID] if cfg.model.isolate_documents else []
            for t in block:
                read = shares[t] @ (told * 0 if begins and t >= begins[0] else told)
                read = read / np.sqrt((read**2).mean() + 1e-6) * w["capsules.write.gain"]
                out[row, t] = np.tanh(w["capsules.gate"]) * (w["capsules.write"] @ read)
            if begin + size >= length:
                break
            if begins:
                mass, total, foretold = mass * 0, total * 0, []
            elif begin:
                foretold.append(told)
            own = [t for t in block if t >= max(begins, default=0)]
            mass = decay * mass + sum(shares[t] for t in own)
            total = decay[:, None] * total + sum(np.outer(shares[t], values[t]) for t in own)
            found = sum(np.outer(shares[t], values[t]) for t in own) / (sum(shares[t] for t in own)[:, None] + 1e-6)
            came.append((found**2).mean())
            for back, state in enumerate(reversed(foretold)):
                apart.setdefault(back, []).append(((state - found) ** 2).mean())
            foretold = [np.einsum("ncd,nd->nc", advance, state) for state in foretold]
    scale, sources, rollout = np.mean(came) + 1e-6, (length - 1) // size, cfg.arch.capsule_rollout
    means = [sum(apart.get(step, [])) / (len(x) * (sources - 1 - step)) / scale for step in range(min(rollout, sources - 1))]
    return out, {"capsule_predict": means[0], "capsule_rollout": sum(means[1:]) / (rollout - 1)}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bank_is_the_specification_token_by_token(backend, settings):
    cfg, arrays, x, tokens = bank_case(**LOSSES | SETTINGS[settings])
    found, losses = run_bank(cfg, arrays, x, tokens, BACKENDS[backend].ops)
    wanted, aims = token_by_token(cfg, arrays, x, tokens)
    assert np.abs(wanted).max() > 1e-3 and np.abs(found - wanted).max() <= 2e-5
    assert losses == pytest.approx(aims, rel=1e-4)


@pytest.mark.parametrize("length", [7, 8, 9, 23, 64])
def test_a_block_reads_the_blocks_before_it_alone(length):
    """Through the sums; what a token itself asks for is its own."""
    cfg, arrays, x, tokens = bank_case(length)
    before = run_bank(cfg, arrays, x, tokens)[0]
    for t in range(length):
        changed = x.copy()
        changed[:, t] += 1.0
        moved = np.abs(run_bank(cfg, arrays, changed, tokens)[0] - before).max((0, 2))
        following = (t // 8 + 1) * 8
        assert (np.delete(moved[:following], t) == 0).all() and (moved[following:] > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BACKBONE)
def test_the_gate_shut_is_the_model_without_the_bank(name, backend):
    cfg, without = tiny_config(name, **TINY_CAPSULES), tiny_config(name)
    arrays, tokens = random_arrays(load_arch(name).param_specs(cfg)), random_tokens(cfg, 2, 45)
    assert (logits_of(cfg, arrays, tokens, backend) != logits_of(without, arrays, tokens, backend)).any()
    arrays["capsules.gate"][:] = 0.0
    assert (logits_of(cfg, arrays, tokens, backend) == logits_of(without, arrays, tokens, backend)).all()
    assert {spec.name for spec in load_arch(name).param_specs(cfg) if "capsules" in spec.name} == {
        *(f"capsules.{part}" for part in ("read", "write", "write.gain", "memory", "diagonal", "gate", "prototype")),
        *("capsules.couple_in", "capsules.couple_out"),
    }


def test_the_gate_opens_first_and_the_rest_follows():
    """Without losses of their own: the gate has a gradient at once, every other tensor of the bank as soon as it moved."""
    cfg = tiny_config("unet", **TINY_CAPSULES, capsule_predict_weight=0, capsule_rollout_weight=0)
    trained, seen = start(cfg), []
    for seed in range(3):
        rows = random_tokens(cfg, 4, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
        state = trained.state()
        seen.append({spec.name for spec in capsule_specs(cfg) if np.abs(state[f"optimizer/{spec.name}/0"]).max() > 0})
    assert seen[0] == {"capsules.gate"} and seen[2] == {spec.name for spec in capsule_specs(cfg)}


def test_losses_are_of_what_comes_and_move_no_logit():
    cfg, arrays, x, tokens = bank_case(**LOSSES)
    out, losses = run_bank(cfg, arrays, x, tokens)
    off, none = run_bank(bank_case(capsule_predict_weight=0, capsule_rollout_weight=0)[0], arrays, x, tokens)
    assert set(losses) == {"capsule_predict", "capsule_rollout"} and none == {} and (out == off).all()
    for name in losses:
        only = run_bank(bank_case(**{key: weight * (key == name + "_weight") for key, weight in LOSSES.items()})[0], arrays, x, tokens)[1]
        assert only == {name: losses[name]}
    # The last complete block is in no output but of the tokens after it; the losses have it as their target.
    changed = x.copy()
    changed[:, 32:40] += 1.0
    assert all(run_bank(cfg, arrays, changed, tokens)[1][name] != loss for name, loss in losses.items())


def test_targets_pass_no_gradient_on():
    """Of the last block with a successor, only the target is in the losses: no gradient of theirs reaches it."""
    cfg, arrays, x, tokens = bank_case(41, **LOSSES)
    p, stream = {name: torch.from_numpy(array) for name, array in arrays.items()}, torch.from_numpy(x).requires_grad_()
    losses = capsule_layer(torch_ops, p, cfg, stream, torch.from_numpy(tokens))[1]
    gradient = torch.autograd.grad(sum(losses.values()), stream)[0].abs().amax((0, 2))
    assert (gradient[32:] == 0).all() and (gradient[:32] > 0).all()


def test_the_operator_contracts_at_the_start_and_after_wild_training():
    cfg = tiny_config("unet", **TINY_CAPSULES, scalar_lr=0.3, matrix_lr=0.2, grad_clip_norm=0, warmup_fraction=0.0)
    trained = start(cfg)
    for seed in range(40):
        assert max(np.abs(np.linalg.eigvals(matrix)).max() for matrix in operators(cfg, trained.export())) < 1
        rows = random_tokens(cfg, 4, 33, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    for scale in (10.0, 1e4):
        p = {name: torch.from_numpy(array * scale) for name, array in bank_case()[1].items()}
        state = torch.ones(1, 1, 4, 16)
        for _ in range(400):
            state = advanced(torch_ops, p, cfg, "capsules", state, hadamard_matrix(torch_ops, 16, state))
        assert state.abs().max() < 0.1


def test_the_speculator_learns_a_text_that_repeats():
    cfg = tiny_config("unet", **TINY_CAPSULES | {"capsule_predict_weight": 1.0, "capsule_rollout_weight": 1.0})
    trained, rows, seen = start(cfg), np.tile(random_tokens(cfg, 2, 8), (2, 5))[:, :33], []
    for _ in range(30):
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
        p = {name: torch.from_numpy(array) for name, array in trained.export().items()}
        losses = load_arch("unet").forward(torch_ops, p, cfg, torch.from_numpy(rows[:, :-1]))[1]
        seen.append({name: float(loss) for name, loss in losses.items()})
    assert all(seen[-1][name] < 0.5 * seen[0][name] for name in ("capsule_predict", "capsule_rollout"))


def test_test_time_training_of_the_bank_moves_the_bank_alone():
    cfg = tiny_config("unet", **TINY_CAPSULES, ttt_scope="capsule_bank")
    assert scope_specs(load_arch("unet").param_specs(cfg), "capsule_bank") == capsule_specs(cfg)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"capsules": -1}, "capsules=-1 must be 0"),
        ({"capsule_dim": 48}, "capsule_dim=48 must be a power of two"),
        ({"capsule_block": 0}, "capsule_block=0 must be positive and below"),
        ({"capsule_block": 32}, "capsule_block=32 must be positive and below train.train_seq_len=32"),
        ({"capsule_memory": 1.0}, "capsule_memory=1.0 must be more than 1"),
        ({"capsule_rollout": 1}, "capsule_rollout=1 must be 2"),
        ({"capsule_rank": -1}, "capsule_rank=-1 must be 0"),
        ({"capsules": 0}, "capsule_dim=16 does nothing while arch.capsules=0"),
        ({"capsules": 0, "capsule_dim": 64, "capsule_block": 16, "capsule_memory": 32.0, "capsule_rank": 2}, "capsule_rank=2 does nothing"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("unet", **TINY_CAPSULES | settings)
