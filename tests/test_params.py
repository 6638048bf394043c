"""The parameter table: every tensor is named once, counted, started, trained by one group and stored by one scheme."""

import math

import numpy as np
import pytest
from model_fixtures import BACKENDS, FLAG_SETS, MODELS, logits_of, random_tokens, start, tiny_config

from trit.compress.quantize import group_layout, stores_floats
from trit.eval.temperature import model_logits
from trit.models import arch_names, load_arch
from trit.params import ParamSpec, init_params, matrix_spec, parameter_count, scalar_spec
from trit.train.optimizer import group_rate, optimizer_state, stacked, stacks


def table(name, flags):
    cfg = tiny_config(name, **FLAG_SETS[flags])
    return cfg, load_arch(name).param_specs(cfg)


@pytest.mark.parametrize("name,flags", MODELS)
def test_names_are_unique_and_counts_add_up(name, flags):
    _, specs = table(name, flags)
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    arrays = init_params(specs, 1)
    assert list(arrays) == names
    assert parameter_count(specs) == sum(array.size for array in arrays.values())
    for spec in specs:
        assert arrays[spec.name].shape == spec.shape and arrays[spec.name].dtype == np.float32


@pytest.mark.parametrize("name,flags", MODELS)
def test_every_tensor_has_one_optimiser_group_and_one_scheme(name, flags):
    cfg, specs = table(name, flags)
    for spec in specs:
        assert spec.group in ("matrix", "embed", "engram", "scalar") and spec.scheme in ("ternary", "int", "fp16"), spec.name
        assert spec.init in ("normal", "constant"), spec.name
        assert group_rate(cfg, spec) > 0
        if spec.group == "matrix":
            assert len(spec.shape) == 2, f"{spec.name}: Muon needs a matrix"
        if spec.scheme != "fp16":
            groups, size, _ = group_layout(spec)
            assert groups * size >= math.prod(spec.shape)
    ops = BACKENDS["torch"].ops
    held = stacked(ops, specs, {n: ops.from_numpy(x) for n, x in init_params(specs, 1).items()})
    state, members = optimizer_state(ops, specs, held), stacks(specs)
    assert sorted(spec.name for group in members.values() for spec in group) == sorted(spec.name for spec in specs)
    assert state.keys() == {*members, "step"}
    assert all(len(state[key]) == (1 if group[0].group == "matrix" else 2) for key, group in members.items())


@pytest.mark.parametrize("name,flags", MODELS)
def test_init_has_the_declared_statistics(name, flags):
    _, specs = table(name, flags)
    arrays = init_params(specs, 3)
    for spec in specs:
        array = arrays[spec.name].astype(np.float64)
        if spec.init == "constant":
            assert (array == np.float32(spec.value)).all()
            continue
        count = array.size
        assert abs(array.mean()) < 5 * spec.value / math.sqrt(count), spec.name
        assert abs(array.std() / spec.value - 1) < 5 / math.sqrt(2 * count), spec.name


def test_a_tensor_starts_the_same_whatever_stands_beside_it():
    specs = [ParamSpec("a", (4, 6)), ParamSpec("b", (3, 5)), scalar_spec(tiny_config(), "c", (2,), 0.5)]
    whole, alone = init_params(specs, 9), init_params(specs[1:2], 9)
    assert np.array_equal(whole["b"], alone["b"])
    assert np.array_equal(init_params(specs[::-1], 9)["a"], whole["a"])
    assert not np.array_equal(init_params(specs, 10)["a"], whole["a"])
    assert not np.array_equal(whole["a"].ravel()[:15], whole["b"].ravel())


@pytest.mark.parametrize("name", arch_names())
def test_both_backends_start_from_the_same_arrays(name):
    cfg = tiny_config(name, engram_buckets=64)
    wanted = init_params(load_arch(name).param_specs(cfg), 1)
    for backend in BACKENDS:
        held = start(cfg, backend).export()
        assert held.keys() == wanted.keys()
        assert all(np.array_equal(held[n], wanted[n]) and held[n].dtype == np.float32 for n in wanted)


def test_export_is_a_copy():
    cfg = tiny_config()
    rows = random_tokens(cfg, 4, 33)
    for backend in BACKENDS:
        trained = start(cfg, backend)
        before = trained.export()
        kept = {name: array.copy() for name, array in before.items()}
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
        assert all(np.array_equal(before[name], kept[name]) for name in before)


@pytest.mark.parametrize("name", arch_names())
def test_forward_reads_every_tensor_of_the_table_and_no_other(name):
    cfg = tiny_config(name, **FLAG_SETS["odd_all"])
    arrays, read = init_params(load_arch(name).param_specs(cfg), 1), set()

    class Recorder(dict):
        def __getitem__(self, key):
            read.add(key)
            return dict.__getitem__(self, key)

    ops = BACKENDS["torch"].ops
    p = Recorder({n: ops.from_numpy(x) for n, x in arrays.items()})
    model_logits(ops, load_arch(name), cfg, p, ops.from_numpy(random_tokens(cfg, 1, 20)))
    assert read == arrays.keys()
    missing = dict(arrays)
    del missing[next(iter(missing))]
    with pytest.raises(KeyError):
        logits_of(cfg, missing, random_tokens(cfg, 1, 8))


@pytest.mark.parametrize("scheme,bits", [("ternary", 2), ("int", 4), ("fp16", 16)])
def test_matrix_spec_follows_the_setting(scheme, bits):
    cfg = tiny_config(matrix_scheme=scheme)
    spec = matrix_spec(cfg, "m", 8, 12, 0.1)
    assert (spec.scheme, spec.group, spec.shape, spec.value) == (scheme, "matrix", (8, 12), 0.1)
    assert spec.bits == bits and (scheme == "fp16" or spec.group_size == 12)


@pytest.mark.parametrize("name", arch_names())
def test_no_floats_where_the_settings_promise_none(name):
    """`stores_floats` folds the reading of 16-bit floats away, so every tensor must follow the settings it asks."""
    cfg = tiny_config(name, engram_buckets=64, scalar_bits=6, scale_steps=8)
    assert not stores_floats(cfg) and all(spec.scheme != "fp16" for spec in load_arch(name).param_specs(cfg))
