"""The law of isolate_documents: nothing of one document reaches another, in training or evaluation, and nothing else changes."""

import numpy as np
import pytest
import torch
from covering import covering
from model_fixtures import (
    BACKENDS,
    TINY_CAPSULES,
    TINY_EXPERTS,
    TINY_FEEDBACK,
    evaluating,
    largest_difference,
    logits_of,
    random_arrays,
    takes,
    tiny_config,
)

from trit.data.loader import TokenLoader
from trit.data.token_ids import BOS_ID
from trit.eval.score import score_tokens
from trit.eval.temperature import model_logits
from trit.layers.document import document_starts, visible_tokens
from trit.layers.engram import engram_rows
from trit.models import arch_names, load_arch
from trit.ops import torch_ops

# Tokens before the first BOS of the window, and the length of every document that starts in it.
WINDOWS = {
    "middle": (5, [7, 1, 2, 1, 1, 9, 3]),
    "bos_first": (0, [1, 2, 6, 1, 4]),
    "bos_second": (1, [1, 1, 3, 8]),
    "whole": (0, [17]),
    "unfinished": (17, []),
    "beyond_a_block": (4, [530, 20, 1, 2, 9]),
}
SEVERAL = [name for name in WINDOWS if len(WINDOWS[name][1]) > 1]
FLAGS = {
    "attention": {},
    "everything": {"num_layers": 3, "xsa_layers": 3, "engram_buckets": 64, "engram_orders": 3, "engram_layer": 1, "num_kv_heads": 1},
    "capsules": TINY_CAPSULES,
    "feedback": TINY_FEEDBACK | {"feedback_passes": 2},
    "experts": TINY_EXPERTS,
}


def models_with(*axes):
    """pytest parameters (architecture, row of FLAGS, library, one value of each of `axes`), a covering set in the fast suite."""
    return covering(
        [arch_names(), list(FLAGS), BACKENDS, *axes],
        lambda name, flags, *_: takes(name, FLAGS[flags]),
        lambda name, flags, backend, *_: (name, backend) != ("equilibrium", "mlx"),  # many products, slow there
    )


def build(name, flags, isolated=True):
    """(config, weights that are nowhere constant); the weights do not depend on `isolated`."""
    cfg = tiny_config(name, isolate_documents=isolated, **FLAGS[flags])
    return cfg, random_arrays(load_arch(name).param_specs(cfg))


def inner_tokens(shape, seed):
    """Random ids that begin no document."""
    return np.random.default_rng(seed).integers(BOS_ID + 1, 64, shape).astype(np.int32)


def window(name, rows=2):
    """(tokens (rows, T), [(first position, end) of every document])."""
    before, lengths = WINDOWS[name]
    edges = np.cumsum([0, before, *lengths])[0 if before else 1 :].tolist()
    tokens = inner_tokens((rows, edges[-1]), 0)
    tokens[:, np.cumsum([before, *lengths])[:-1]] = BOS_ID
    return tokens, list(zip(edges[:-1], edges[1:], strict=True))


def rewritten(tokens, begin, end):
    """Copies of `tokens` with positions begin .. end - 1 replaced: other words, nothing but BOS, and no BOS at all."""
    others = inner_tokens((len(tokens), end - begin), 1)
    others[:, 0] = tokens[:, begin]
    for replacement in (others, np.full_like(others, BOS_ID), inner_tokens(others.shape, 2)):
        changed = tokens.copy()
        changed[:, begin:end] = replacement
        yield changed


@pytest.mark.parametrize("name,flags,backend,case", models_with(SEVERAL))
def test_no_change_of_a_document_moves_a_bit_of_another(name, flags, backend, case):
    cfg, arrays = build(name, flags)
    tokens, documents = window(case)
    before = logits_of(cfg, arrays, tokens, backend)
    for begin, end in documents:
        for changed in rewritten(tokens, begin, end):
            after = logits_of(cfg, arrays, changed, backend)
            assert np.array_equal(after[:, :begin], before[:, :begin]) and np.array_equal(after[:, end:], before[:, end:])
            assert np.array_equal(changed, tokens) or not np.array_equal(after[:, begin:end], before[:, begin:end])


@pytest.mark.parametrize("name,flags", [(name, flags) for name in arch_names() for flags in FLAGS if takes(name, FLAGS[flags])])
def test_without_the_option_documents_do_reach_each_other(name, flags):
    cfg, arrays = build(name, flags, isolated=False)
    tokens, documents = window("middle")
    begin, end = documents[1]
    changed = next(rewritten(tokens, begin, end))
    moved = np.abs(logits_of(cfg, arrays, changed) - logits_of(cfg, arrays, tokens)).max((0, 2))
    assert (moved[:begin] == 0).all() and (moved[end:] > 0).all()


@pytest.mark.parametrize("name,flags,backend,case", models_with(["whole", "unfinished"]))
def test_one_document_alone_is_scored_as_without_the_option(name, flags, backend, case):
    cfg, arrays = build(name, flags)
    tokens = window(case)[0]
    difference = logits_of(cfg, arrays, tokens, backend) - logits_of(build(name, flags, False)[0], arrays, tokens, backend)
    assert np.abs(difference).max() <= 1e-5


def by_itself(cfg, tokens, begin, end):
    """(tokens of one document, how many others stand before it): blocks are counted from the start of the window, so that a document
    must begin as deep in one as it did."""
    switches = {"capsules": "capsule_block", "feedback_passes": "feedback_block"}
    blocks = [getattr(cfg.arch, block) if getattr(cfg.arch, switch, 0) else 1 for switch, block in switches.items()]
    lead = begin % max(getattr(cfg.arch, "skc_block", 1), *blocks)  # powers of two
    return np.concatenate([np.full((2, lead), BOS_ID + 1, np.int32), tokens[:, begin:end]], 1), lead


@pytest.mark.parametrize("name,flags,backend,case", models_with(SEVERAL))
def test_a_document_inside_a_window_is_scored_as_if_it_were_alone(name, flags, backend, case):
    cfg, arrays = build(name, flags)
    tokens, documents = window(case)
    whole = logits_of(cfg, arrays, tokens, backend)
    for begin, end in documents:
        given, lead = by_itself(cfg, tokens, begin, end)
        alone = logits_of(cfg, arrays, given, backend)[:, lead:]
        assert np.abs(alone - whole[:, begin:end]).max() <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", WINDOWS)
def test_masks_follow_the_documents(case, backend):
    ops = BACKENDS[backend].ops
    tokens, documents = window(case)
    starts = np.concatenate([np.full(end - begin, begin) for begin, end in documents])
    positions = np.arange(len(starts))
    given = ops.from_numpy(tokens)
    assert (ops.to_numpy(document_starts(ops, given)) == starts).all()
    visible = ops.to_numpy(visible_tokens(ops, given))
    wanted = (positions[:, None] >= positions) & (starts[:, None] == starts)
    assert visible.shape == (2, 1, len(starts), len(starts)) and visible.dtype == bool and (visible == wanted).all()
    cfg = tiny_config(isolate_documents=True, engram_buckets=64, engram_orders=3, engram_heads=1)
    masks = ops.to_numpy(engram_rows(ops, cfg, given)[1])
    # Bigrams from the document's second token on, its BOS being the first; trigrams from the third.
    assert (masks == ((positions - starts)[:, None] > np.arange(3))).all()


def test_training_windows_begin_inside_documents():
    """The loader cuts anywhere. What stands before the first BOS of a window is one document, which is scored as such."""
    cfg, arrays = build("unet", "everything")
    stream = inner_tokens(4000, 3)
    stream[::23] = BOS_ID
    loader = TokenLoader([stream.astype(np.uint16)], cfg.train.train_seq_len, 16, 0)
    inputs = loader.next_batch()[0]
    loader.close()
    ops = BACKENDS["torch"].ops
    starts = ops.to_numpy(document_starts(ops, ops.from_numpy(inputs)))
    logits = logits_of(cfg, arrays, inputs)
    assert (inputs[:, 0] != BOS_ID).sum() > 8
    for row in range(len(inputs)):
        first, second = (np.append(np.flatnonzero(inputs[row] == BOS_ID), [32, 32])[:2]).tolist()
        assert (starts[row, :first] == 0).all() and (starts[row, first:second] == first).all()
        if first:
            plain = logits_of(build("unet", "everything", False)[0], arrays, inputs[row : row + 1, :first])
            assert np.abs(logits[row, :first] - plain[0]).max() <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", arch_names())
def test_scores_of_a_text_do_not_cross_documents(name, backend):
    """Through evaluator and sliding windows: a changed document moves its own losses and that of the BOS after it, no other."""
    cfg, arrays = build(name, "everything")
    tokens = inner_tokens(150, 4)
    tokens[[0, 40, 41, 43, 90]] = BOS_ID
    side = BACKENDS[backend]
    arch = load_arch(name)
    model = side.module.evaluator(side.ops, arch, cfg, arrays, side.module.Process(0, 1, "cpu"))
    before = score_tokens(side.ops, arch, cfg, model, tokens)[0]
    changed = tokens.copy()
    changed[44:90] = inner_tokens(46, 5)
    moved = score_tokens(side.ops, arch, cfg, model, changed)[0] != before
    assert moved[43:90].all() and not moved[:43].any() and not moved[90:].any()


@pytest.mark.parametrize("part", ["ngram", "eval_engram"])
def test_contexts_of_online_memories_end_with_the_document(part):
    """What stands at the end of a document is in no context of the next: the memory knows what followed the one, never saw the other."""
    cfg = evaluating("unet", part, isolate_documents="true", memory_chunk_tokens=32)
    arch, side = load_arch("unet"), BACKENDS["torch"]
    model = side.module.evaluator(side.ops, arch, cfg, random_arrays(arch.param_specs(cfg)), side.module.Process(0, 1, "cpu"))
    tokens = np.tile([BOS_ID, 5, 6, 7], 40)
    changed = tokens.copy()
    changed[131] = 9  # scored with all that follows it here: the memory learns of it later
    before, after = (score_tokens(side.ops, arch, cfg, model, text)[0] for text in (tokens, changed))
    assert before[130] != after[130] and np.array_equal(before[132:], after[132:]) and np.array_equal(before[:130], after[:130])


@pytest.mark.parametrize("name", arch_names())
def test_gradients_do_not_cross_documents(name):
    """The gradient of one document's loss is the same inside a window as in a window of its own."""
    cfg, arrays = build(name, "everything")
    tokens, documents = window("middle")
    begin, end = documents[-2]

    def gradients(rows, first):
        p = {key: torch.from_numpy(array).requires_grad_() for key, array in arrays.items()}
        logits = model_logits(torch_ops, load_arch(name), cfg, p, torch.from_numpy(rows))
        losses = torch_ops.cross_entropy(logits[:, first : first + end - begin - 1], torch.from_numpy(tokens[:, begin + 1 : end]))
        return dict(zip(p, (x.numpy() for x in torch.autograd.grad(losses.sum(), list(p.values()))), strict=True))

    inside, alone = gradients(tokens, begin), gradients(*by_itself(cfg, tokens, begin, end))
    largest = max(np.abs(x).max() for x in alone.values())
    assert largest > 0.1 and largest_difference(inside, alone) <= 5e-5 * largest
