"""Every recurrence of the family contracts, at the start and after 500 steps at ten times the learning rates."""

import numpy as np
import pytest
import torch
from model_fixtures import TINY_CAPSULES, TINY_KOOPMAN, TINY_SKC, random_tokens, start, tiny_config

from trit.layers.hadamard import hadamard_matrix
from trit.layers.koopman import koopman_tables
from trit.layers.operator import advanced
from trit.layers.scan import block_horizon_logits, state_share
from trit.layers.skc import skc_tables
from trit.ops import torch_ops

STEPS, FACTOR = 500, 10.0


def operators(p, cfg, name):
    """(N, C, C): what advances each capsule by a block, read off its effect on unit vectors."""
    count, size = p[name + ".diagonal"].shape
    basis = torch.eye(size).unsqueeze(1).expand(size, count, size)
    return advanced(torch_ops, p, cfg, name, basis, hadamard_matrix(torch_ops, size, basis)).permute(1, 2, 0).double().numpy()


def shares(p, cfg, tokens):
    """The share that each channel replaces, of every recurrence: per token in the local ones for streams of any kind, per block."""
    stream = torch.from_numpy(np.random.default_rng(0).standard_normal((256, cfg.model.model_dim)).astype(np.float32)) * 3
    found = []
    for name, tables in (("block1.koopman", koopman_tables), ("block2.skc", skc_tables)):
        rows = p[name + ".in"][p[name + ".rate"].shape[0] :][: p[name + ".rate"].shape[0]]
        found.append(state_share(torch_ops, stream @ rows.T + p[name + ".rate"] + tables(torch_ops, cfg, tokens)[0]))
    for name, count, memory in (("block2.skc", 32, cfg.arch.skc_memory), ("capsules", cfg.arch.capsules, cfg.arch.capsule_memory)):
        found.append(state_share(torch_ops, p[name + ".memory"] + block_horizon_logits(torch_ops, count, memory, stream)))
    return torch.cat([each.flatten() for each in found])


@pytest.mark.slow
def test_recurrences_contract_at_the_start_and_after_500_steps_at_ten_times_the_rate():
    base = tiny_config("hybrid")
    rates = {name: FACTOR * getattr(base.train, name) for name in ("matrix_lr", "scalar_lr", "embed_lr")}
    parts = TINY_KOOPMAN | TINY_SKC | TINY_CAPSULES
    cfg = tiny_config("hybrid", num_layers=3, layer_map="aks", warmdown_fraction=0.0, iterations=STEPS, **parts, **rates)
    trained, before = start(cfg), None
    text = random_tokens(cfg, 1, 4096)[0]
    for step in range(STEPS + 1):
        if step in (0, STEPS):
            p = {name: torch.from_numpy(array) for name, array in trained.export().items()}
            assert all(torch.isfinite(x).all() for x in p.values())
            for name in ("block2.skc", "capsules"):
                assert np.abs(np.linalg.eigvals(operators(p, cfg, name))).max() < 1
            share = shares(p, cfg, torch.from_numpy(text[None, :33]))
            assert (share > 0).all() and (1.0 - share > 0).all() and (1.0 - share < 1).all()
            if before is not None:
                assert all((before[name] - p[name]).abs().max() > 0.05 for name in ("block2.skc.diagonal", "capsules.diagonal"))
            before = p
        rows = np.stack([text[(step * 4 + row) * 32 % 4000 :][:33] for row in range(4)])
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
