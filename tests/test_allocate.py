"""Rounding after training and the allocator: what error feedback buys, what a cap guarantees, what may never be rotated."""

import dataclasses

import numpy as np
import pytest
from model_fixtures import random_arrays, random_tokens, tiny_config

from trit.compress.allocate import Choice, allocate, hull, ladders, select
from trit.compress.gptq import feedback_factor, rounded
from trit.compress.pack import pack, stored_specs, unpack
from trit.compress.quantize import QuantTensor, dequantize, quantize
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import ParamSpec, on_grid
from trit.submission import loss_meter, statistics
from trit.train import torch_backend
from trit.train.log import Log

FLOATS = {"matrix_scheme": "fp16", "embed_bits": 16, "engram_bits": 16, "allocate": "true", "num_layers": 1, "num_kv_heads": 4}
QUIET = Log(rank=1)


def correlated(columns, generator):
    """Second moment (columns, columns) of strongly correlated inputs with channels of different power."""
    mix = generator.normal(0, 1, (columns, 6)) * generator.uniform(0.2, 2.0, (columns, 1))
    return mix @ mix.T + 0.05 * np.eye(columns)


def spec_of(rows, columns, bits, group_size, rotate=False):
    return on_grid(ParamSpec("w", (rows, columns), rotate=rotate), bits, group_size, 2.5)


def rounding_error(spec, array, scales, codes, moment):
    cfg = tiny_config(rotate_matrices=str(spec.rotate).lower(), bitnet_group_size=16)
    tensors = {"w": QuantTensor(codes.astype(np.int8), scales.astype(np.float16))}
    change = dequantize(torch_ops, cfg, [spec], tensors)["w"] - array
    return float(((change @ moment) * change).sum())


@pytest.mark.parametrize(("bits", "rotate"), [(1, False), (2, False), (4, False), (4, True)])
def test_error_feedback_beats_plain_rounding_on_correlated_inputs(bits, rotate):
    generator = np.random.default_rng(bits)
    spec, moment = spec_of(24, 32, bits, 16, rotate), correlated(32, generator)
    array = generator.normal(0, 0.1, spec.shape).astype(np.float32)
    top = 1 if bits == 1 else 2 ** (bits - 1) - 1
    scales = np.full((48, 1), np.float16((0.13 if bits == 1 else 0.25) / top)).astype(np.float32)
    plain, fed = (rounding_error(spec, array, scales, rounded(torch_ops, spec, array, scales, top, 0.0, m), moment) for m in (None, moment))
    assert fed < 0.7 * plain


def test_error_feedback_is_plain_rounding_where_inputs_are_independent_and_alike():
    generator = np.random.default_rng(0)
    spec = spec_of(9, 40, 4, 16)  # rows with a padded tail
    array, scales = generator.normal(0, 0.1, spec.shape).astype(np.float32), generator.uniform(0.02, 0.05, (27, 1)).astype(np.float32)
    assert np.array_equal(*(rounded(torch_ops, spec, array, scales, 7, 0.1, m) for m in (None, 3.0 * np.eye(40))))
    factor = feedback_factor(correlated(40, generator))
    assert np.allclose(factor, np.triu(factor)) and (np.diag(factor) > 0).all()


def choice(bits, harm, name="w"):
    return Choice(ParamSpec(name, (4,)), None, float(bits), float(harm), 1.0, 0.0, "equal")


def test_hull_keeps_what_no_mixture_of_others_beats():
    line = hull([choice(10, 5), choice(20, 4.9), choice(30, 1), choice(30, 2), choice(5, 9), choice(40, 1.5)])
    assert [(c.bits, c.harm) for c in line] == [(5, 9), (10, 5), (30, 1)]


def test_selection_keeps_to_its_budget_is_monotone_and_prefers_what_helps_more():
    generator = np.random.default_rng(3)
    hulls = [hull([choice(b, h * scale) for b, h in generator.uniform(1, 100, (30, 2))]) for scale in (1, 10, 0.1, 3)]
    before = np.inf
    for budget in range(0, 420, 7):
        places, _ = select(hulls, budget)
        chosen = [line[place] for line, place in zip(hulls, places)]
        assert sum(c.bits for c in chosen) <= budget or places == [0] * 4
        assert sum(c.harm for c in chosen) <= before
        before = sum(c.harm for c in chosen)
    tender, robust = ([choice(10, 100 * weight), choice(20, 10 * weight), choice(30, 0)] for weight in (5.0, 0.1))
    assert select([robust, tender], 45)[0] == [0, 2] and select([tender, robust], 45)[0] == [2, 0]


@pytest.fixture(scope="module")
def tiny():
    """(Config, specs, tensors as trained, Ladders, loss) of a tiny model in floats."""
    cfg = tiny_config(calibration_seconds=1e9, calibration_evals=8, **FLOATS)
    arch, process = load_arch("unet"), torch_backend.start_process()
    specs = arch.param_specs(cfg)
    arrays, tokens = random_arrays(specs), random_tokens(cfg, 1, 385)[0]
    kept = quantize(torch_ops, cfg, specs, {name: torch_ops.from_numpy(array) for name, array in arrays.items()}, {})
    found = statistics(torch_ops, torch_backend, arch, cfg, process, dequantize(torch_ops, cfg, specs, kept), tokens)
    return cfg, specs, kept, ladders(torch_ops, cfg, specs, kept, *found), loss_meter(torch_ops, torch_backend, arch, cfg, process, tokens)


def test_allocation_never_exceeds_its_cap_and_comes_back_bit_for_bit(tiny):
    cfg, specs, kept, made, loss = tiny
    whole, found = len(pack(cfg, specs, kept)), []
    for share in (0.15, 0.45):
        stored, tensors = allocate(torch_ops, cfg, made, loss, int(share * whole), QUIET)
        data = pack(cfg, stored, tensors)
        assert 0.95 * share * whole < len(data) <= share * whole
        assert stored_specs(cfg, specs, data) == [s._replace(clip=t.clip) for s, t in zip(stored, specs)]
        before, after = (dequantize(torch_ops, cfg, stored, x) for x in (tensors, unpack(cfg, stored_specs(cfg, specs, data), data)))
        assert all(np.array_equal(before[name], after[name]) for name in before)
        found.append(sum(((after[curve.spec.name] - curve.array) ** 2 * curve.curvature).sum() for curve in made.curves))
    assert found[0] > 4 * found[1] > 0
    with pytest.raises(ValueError, match=r"coarsest storages take .* compress\.model_bytes_cap"):
        allocate(torch_ops, cfg, made, loss, 300, QUIET)


def test_allocation_is_deterministic_and_spends_no_more_than_its_evaluations(tiny):
    cfg, _, kept, made, loss = tiny
    calls = []

    def counted(weights):
        calls.append(1)
        return loss(weights)

    first, again = (allocate(torch_ops, cfg, made, counted, 4000, QUIET) for _ in range(2))
    assert first[0] == again[0] and pack(cfg, *first) == pack(cfg, *again)
    assert 2 < len(calls) / 2 <= cfg.compress.calibration_evals
    none = dataclasses.replace(cfg, compress=dataclasses.replace(cfg.compress, calibration_seconds=0.0))
    calls.clear()
    allocate(torch_ops, none, made, counted, 4000, QUIET)
    assert not calls


def test_nothing_trained_unrotated_is_ever_stored_rotated():
    cfg = tiny_config(num_layers=1, num_kv_heads=4, allocate="true", calibration_evals=0)
    arch, process = load_arch("unet"), torch_backend.start_process()
    specs = arch.param_specs(cfg)
    p = {name: torch_ops.from_numpy(array) for name, array in random_arrays(specs).items()}
    kept = quantize(torch_ops, cfg, specs, p, {})
    found = statistics(torch_ops, torch_backend, arch, cfg, process, dequantize(torch_ops, cfg, specs, kept), random_tokens(cfg, 1, 129)[0])
    stored, _ = allocate(torch_ops, cfg, ladders(torch_ops, cfg, specs, kept, *found), None, 3000, QUIET)
    assert not any(spec.rotate for spec in stored)
    assert {spec.scheme for spec in stored} > {"ternary"}


def test_rotation_at_export_alone_is_refused():
    with pytest.raises(ValueError, match=r"TURBO_QUANT_EXPORT is refused: .*TURBO_QUANT_TRAIN=1"):
        load(None, {"TURBO_QUANT_EXPORT": "1"}, [])
    assert load(None, {"TURBO_QUANT_TRAIN": "1"}, [])[0].quant.rotate_matrices
