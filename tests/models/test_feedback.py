"""The law of feedback: it is C4 of the specification, block by block; a pass tells a token of earlier blocks and of nothing else."""

import numpy as np
import pytest
import torch
from model_fixtures import BACKBONE, BACKENDS, TINY_CAPSULES, TINY_FEEDBACK, logits_of, random_arrays, random_tokens, start, tiny_config

from trit.data.token_ids import BOS_ID
from trit.eval.ttt import scope_specs
from trit.layers.backbone import visits
from trit.layers.feedback import fast_weights, feedback_layer, feedback_specs
from trit.models import load_arch
from trit.ops import torch_ops

SETTINGS = {
    "default": {},
    "isolated": {"isolate_documents": "true"},
    "one_channel": {"feedback_dim": 1, "feedback_block": 1},
    "isolated_odd": {"isolate_documents": "true", "feedback_block": 5, "feedback_dim": 24},
}


def feedback_case(length=45, **settings):
    """(config, arrays of the feedback, streams (2, length, 32) of the last pass and of a layer of this one, tokens with documents)."""
    cfg = tiny_config("unet", **TINY_FEEDBACK | settings)
    generator = np.random.default_rng(0)
    tokens = generator.integers(BOS_ID + 1, 64, (2, length)).astype(np.int32)
    tokens[0, [begin for begin in (0, 11, 16, 33) if begin < length]] = BOS_ID
    tokens[1, [begin for begin in (5, 6, 7, 29) if begin < length]] = BOS_ID
    streams = generator.standard_normal((2, 2, length, 32)).astype(np.float32)
    return cfg, random_arrays(feedback_specs(cfg)), *streams, tokens


def run_feedback(cfg, arrays, last, x, tokens, ops=torch_ops):
    """(what layer 1 reads, fast weights) as numpy."""
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    memory = fast_weights(ops, p, cfg, ops.from_numpy(last), ops.from_numpy(tokens))
    return ops.to_numpy(feedback_layer(ops, p, cfg, "feedback.block1", ops.from_numpy(x), memory)), ops.to_numpy(memory[0])


def rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def token_by_token(cfg, arrays, last, x, tokens):
    """What layer 1 reads, in float64 as C4 writes it: the sum over the blocks of the token's document that lie before its own."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    block, size, out = cfg.arch.feedback_block, cfg.arch.feedback_dim, np.zeros(x.shape)
    horizons = np.exp(np.arange(size) * np.log(cfg.arch.feedback_memory) / max(size - 1, 1))
    decay = 1.0 - (2.0**-14 + (1 - 2.0**-13) / (1 + np.exp(np.log(horizons - 0.9) - w["feedback.memory"])))
    for row in range(len(x)):
        begins = [0] + [t for t in range(x.shape[1]) if tokens[row, t] == BOS_ID and cfg.model.isolate_documents]
        for t in range(x.shape[1]):
            query, told = rms(w["feedback.block1.query"] @ x[row, t]), np.zeros(size)
            begin = max(first for first in begins if first <= t)
            for j in range(t // block):
                end = (j + 1) * block
                if end <= begin:
                    continue
                pooled = last[row, max(j * block, begin) : end].mean(0) @ w["feedback.in"].T
                key, value = rms(pooled[:size]), rms(pooled[size:])
                told += (decay ** (t // block - 1 - j) * key) @ query / size * value
            out[row, t] = np.tanh(w["feedback.block1.gate"]) * (w["feedback.block1.out"] @ told)
    return out


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_feedback_is_the_specification_token_by_token(backend, settings):
    cfg, *case = feedback_case(**SETTINGS[settings])
    wanted = token_by_token(cfg, *case)
    assert np.abs(wanted).max() > 1e-3 and np.abs(run_feedback(cfg, *case, BACKENDS[backend].ops)[0] - wanted).max() <= 2e-5


@pytest.mark.parametrize("length", [7, 8, 9, 23, 64])
def test_a_block_queries_the_blocks_before_it_alone(length):
    cfg, arrays, last, x, tokens = feedback_case(length)
    before, weights = run_feedback(cfg, arrays, last, x, tokens)
    assert weights.shape == (2, (length + 7) // 8, 16, 16)
    for t in range(length):
        changed = last.copy()
        changed[:, t] += 1.0
        moved = np.abs(run_feedback(cfg, arrays, changed, x, tokens)[0] - before).max((0, 2))
        following = (t // 8 + 1) * 8
        assert (moved[:following] == 0).all() and (moved[following:] > 0).all()
        asking = x.copy()
        asking[:, t] += 1.0
        asked = np.abs(run_feedback(cfg, arrays, last, asking, tokens)[0] - before).max((0, 2))
        assert (np.delete(asked, t) == 0).all() and (asked[t] > 0) == (t >= 8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BACKBONE)
def test_the_gates_shut_are_the_model_without_feedback(name, backend):
    """A pass that is told nothing repeats the last one to the bit: engram, bank, values and saved streams are what they were."""
    both = TINY_CAPSULES | {"num_layers": 4, "engram_buckets": 64, "engram_layer": 2}
    cfg, without = tiny_config(name, **both | TINY_FEEDBACK | {"feedback_passes": 2}), tiny_config(name, **both)
    arrays, tokens = random_arrays(load_arch(name).param_specs(cfg)), random_tokens(cfg, 2, 45)
    assert (logits_of(cfg, arrays, tokens, backend) != logits_of(without, arrays, tokens, backend)).any()
    for i in (2, 3):
        arrays[f"feedback.block{i}.gate"][:] = 0.0
    assert (logits_of(cfg, arrays, tokens, backend) == logits_of(without, arrays, tokens, backend)).all()


def test_every_pass_is_told_what_the_one_before_it_made():
    tokens = random_tokens(tiny_config("unet"), 2, 45)
    arrays = random_arrays(load_arch("unet").param_specs(tiny_config("unet", **TINY_FEEDBACK)))
    seen = [logits_of(tiny_config("unet", **TINY_FEEDBACK | {"feedback_passes": count}), arrays, tokens) for count in (1, 2, 3)]
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
    # In the first block nothing is told: every pass is the first one.
    plain = logits_of(tiny_config("unet"), arrays, tokens)
    assert all((logits[:, :8] == plain[:, :8]).all() and (logits[:, 8:] != plain[:, 8:]).any() for logits in seen)


def test_passes_repeat_the_decoder():
    for layers, passes, wanted in ((2, 1, [0, 1, 1]), (3, 2, [0, 1, 2, 2, 2]), (4, 1, [0, 1, 2, 3, 2, 3])):
        cfg = tiny_config("unet", **TINY_FEEDBACK | {"num_layers": layers, "feedback_passes": passes})
        assert [i for i, _ in visits(cfg, {})] == wanted
        told = {spec.name.split(".")[1] for spec in feedback_specs(cfg) if spec.name.endswith("gate")}
        assert told == {f"block{i}" for i in wanted[layers:]}


def test_losses_of_mixers_are_means_over_their_visits():
    """A decoder whose pass is told nothing has the losses that it had: more passes do not weigh them more."""
    tokens, cfg, without = random_tokens(tiny_config("skc"), 2, 32), tiny_config("skc", **TINY_FEEDBACK), tiny_config("skc")
    arrays = random_arrays(load_arch("skc").param_specs(cfg))
    arrays["feedback.block1.gate"][:] = 0.0
    p = {name: torch.from_numpy(array) for name, array in arrays.items()}
    losses = [load_arch("skc").forward(torch_ops, p, each, torch.from_numpy(tokens))[1] for each in (cfg, without)]
    assert losses[0].keys() == losses[1].keys() != set()
    assert all(float(losses[0][name]) == pytest.approx(float(loss), rel=1e-5) for name, loss in losses[1].items())


def test_test_time_training_of_the_feedback_moves_it_with_skips_and_scales():
    cfg = tiny_config("unet", **TINY_FEEDBACK, ttt_scope="feedback")
    names = [spec.name for spec in scope_specs(load_arch("unet").param_specs(cfg), "feedback")]
    own = [spec.name for spec in feedback_specs(cfg)]
    assert sorted(names) == sorted([*own, "block1.attn_scale", "block1.mlp_scale", "block1.skip"])


def test_every_pass_trains_the_gate_at_once():
    cfg = tiny_config("unet", **TINY_FEEDBACK)
    trained, rows = start(cfg), random_tokens(cfg, 4, 33)
    trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    state = trained.state()
    assert all(np.abs(state[f"optimizer/{spec.name}/0"]).max() > 0 for spec in feedback_specs(cfg))


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"feedback_passes": -1}, "feedback_passes=-1 must be 0"),
        ({"num_layers": 1}, "feedback_passes=1 needs a decoder: model.num_layers must be 2"),
        ({"feedback_dim": 0}, "feedback_dim=0 must be positive"),
        ({"feedback_block": 32}, "feedback_block=32 must be positive and below train.train_seq_len=32"),
        ({"feedback_memory": 1.0}, "feedback_memory=1.0 must be more than 1"),
        ({"feedback_gate_init": 0.0}, "feedback_gate_init=0.0 must not be 0"),
        ({"feedback_passes": 0}, "feedback_dim=16 does nothing while arch.feedback_passes=0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("unet", **TINY_FEEDBACK | settings)


def test_recurrent_layers_and_passes_compose():
    """Each pass visits a recurrent decoder layer as often as the first; one that is told nothing is the first again, to the bit."""
    settings = TINY_FEEDBACK | {"num_layers": 4, "recurrent_layers": "0,2", "recurrence": 2}
    cfg = tiny_config("unet", **settings)
    assert visits(cfg, {}) == [(0, False), (0, True), (1, False), (2, False), (2, True), (3, False), (2, False), (2, True), (3, False)]
    arrays, tokens = random_arrays(load_arch("unet").param_specs(cfg)), random_tokens(cfg, 2, 32)
    without = tiny_config("unet", num_layers=4, recurrent_layers="0,2", recurrence=2)
    told = logits_of(cfg, arrays, tokens)
    assert (told != logits_of(without, arrays, tokens)).any()
    for i in (2, 3):
        arrays[f"feedback.block{i}.gate"][:] = 0.0
    assert np.array_equal(logits_of(cfg, arrays, tokens), logits_of(without, arrays, tokens))


def test_losses_of_all_parts_come_out():
    cfg = tiny_config("skc", **TINY_FEEDBACK, capsules=4, capsule_dim=16, capsule_block=8, experts=2, expert_layer_fraction=1.0)
    p = {name: torch.from_numpy(x) for name, x in random_arrays(load_arch("skc").param_specs(cfg)).items()}
    losses = load_arch("skc").forward(torch_ops, p, cfg, torch.from_numpy(random_tokens(cfg, 2, 32)))[1]
    assert {"skc_predict", "capsule_predict"} < losses.keys() and any("expert" in name for name in losses)
