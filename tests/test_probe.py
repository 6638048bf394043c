"""What a run logs of an architecture that reports on itself, and that a report changes nothing."""

import numpy as np
import pytest
from model_fixtures import BACKENDS, Records, largest_difference, random_tokens, start, tiny_config

from trit.models import load_arch
from trit.train.probe import first_moments, gradient_sizes, with_probe


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_reports_energy_leaks_gradients_and_offsets_and_trains_alike(backend):
    cfg = tiny_config("spectral_lm", chunk=4, chunk_rank=8, embed_dim=32, log_every=1, warmup_steps=0)
    ops, arch, log = BACKENDS[backend].ops, load_arch("spectral_lm"), Records()
    plain, probed = start(cfg, backend), start(cfg, backend)
    probed = with_probe(probed, ops, arch, cfg, arch.param_specs(cfg), log)
    for seed in range(12):
        rows = random_tokens(cfg, 4, 33, seed)
        for each in (plain, probed):
            each.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
    assert largest_difference(plain.state(), probed.state()) == 0.0
    assert [record["event"] for record in log.found] == ["start", *["gradients", "probe"] * 2]
    counts = log.found[0]["parameters"]
    assert set(counts) == {"embed", "scalar", "matrix"} and sum(counts.values()) > 10_000
    for found in log.found[2::2]:
        assert all(abs(found[f"energy{i}"] - 1.0) < 1e-6 and found[f"rms{i}"] > 0.1 for i in range(2))
        assert found["leak_scored"] == 0.0 and found["leak_fft"] < 1e-4 and all(found[f"offset{j}"] > 1 for j in (1, 2, 3, 4))
    for found in log.found[1::2]:
        assert all(0 < found[group]["max"] <= found[group]["norm"] for group in ("phase", "taps"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_of_sem_reports_its_solves_its_norms_and_its_plan(backend):
    """Statistics of the next step's own solves and plan; without conjugate gradients, and without propagators, there are none of these."""
    cfg = tiny_config("sem", cayley_solver="cg", cg_tolerance="schedule", log_every=1, warmup_steps=0, engram_buckets=64)
    ops, arch, log = BACKENDS[backend].ops, load_arch("sem"), Records()
    plain, probed = start(cfg, backend), start(cfg, backend)
    probed = with_probe(probed, ops, arch, cfg, arch.param_specs(cfg), log)
    for seed in range(11):
        batch = random_tokens(cfg, 4, 33, seed)
        for each in (plain, probed):
            each.step(batch[:, :-1], batch[:, 1:], 1.0, True, False)()
    assert largest_difference(plain.state(), probed.state()) == 0.0
    found = [record for record in log.found if record["event"] == "probe"]
    assert len(found) == 2
    for each in found:
        assert all(0 < each[f"energy_{name}"] < 1e-5 for name in ("middle", "last"))
        assert all(0 < each[f"iterations_{name}_warm"] < 3 and each[f"iterations_{name}_cold"] < 6 for name in ("middle", "last"))
        assert all(each[f"iterations_{name}_warm"] < each[f"iterations_{name}_cold"] for name in ("middle", "last"))
        assert 0 < each["plan_columns"] < 0.2 and abs(each["plan_support"] / 4 - 1) < 0.35
    assert all(record[group]["max"] > 0 for record in log.found if record["event"] == "gradients" for group in ("rates", "propagators"))
    bare = tiny_config("sem", propagators=0, encoder="embedding", embed_dim=32)
    p = {name: ops.from_numpy(array) for name, array in start(bare, backend).export().items()}
    assert arch.probe(ops, p, bare, ops.from_numpy(batch)) == {} and list(arch.probed_groups(bare)) == ["rates"]


def test_gradients_are_read_off_the_moments():
    """Against the gradients of the loss itself, before clipping, of Adam's tensors and Muon's."""
    import torch

    from trit.ops import torch_ops
    from trit.train.loss import seen_weights, training_loss

    cfg = tiny_config("spectral_lm", grad_clip_norm=0.01)
    arch = load_arch("spectral_lm")
    specs, trained = arch.param_specs(cfg), start(cfg)
    names = {name for members in arch.probed_groups(cfg).values() for name in members}
    for seed in range(3):
        rows = random_tokens(cfg, 4, 33, seed)
        p = {name: torch.from_numpy(trained.state()[f"p/{name}"]) for name in (spec.name for spec in specs)}
        leaves = {name: x.detach().requires_grad_() for name, x in seen_weights(torch_ops, cfg, specs, p, True).items()}
        given = (torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy()))
        wanted = dict(zip(leaves, torch.autograd.grad(training_loss(torch_ops, arch, cfg, leaves, *given)[0], list(leaves.values()))))
        before = first_moments(cfg, specs, trained.state(), names)
        _, norm = trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)()
        found = gradient_sizes(cfg, before, first_moments(cfg, specs, trained.state(), names), norm)
        for name in names:
            assert np.abs(found[name] - wanted[name].numpy()).max() <= 1e-3 * np.abs(wanted[name].numpy()).max() + 1e-7, name


def test_an_architecture_without_a_report_keeps_its_backend():
    cfg = tiny_config("unet")
    backend = start(cfg)
    assert with_probe(backend, None, load_arch("unet"), cfg, load_arch("unet").param_specs(cfg), Records()) is backend
