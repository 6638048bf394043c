"""Bytes before training: the bound holds for any weights, the expected size for Gaussian ones, and the advice is sound."""

import re
import warnings

import numpy as np
import pytest
import torch
from pack_fixtures import random_specs, random_tensors

from trit.compress import plan as planning
from trit.compress.pack import grid_top, pack
from trit.compress.plan import budget_table, check_budget, check_plan, plan
from trit.compress.quantize import QuantTensor, group_layout, quantize
from trit.compress.sizes import predicted_bytes, size_table, sizes
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops as ops


def configuration(*overrides):
    """(Config, specs) of the default architecture under `key=value` overrides."""
    config, _, _ = load(None, environ={}, overrides=overrides)
    return config, load_arch(config.model.name).param_specs(config)


def gaussian(config, specs, seed=0):
    """QuantTensors of Gaussian weights: each tensor has its own spread."""
    generator = np.random.default_rng(seed)
    p = {s.name: torch.tensor((generator.standard_normal(s.shape) * np.exp(generator.normal(-3, 0.3))).astype(np.float32)) for s in specs}
    return quantize(ops, config, specs, p, {})


def test_bound_holds_for_any_weights():
    generator = np.random.default_rng(3)
    for steps in (0, 8, 100) * 20:
        config, _ = configuration(f"quant.scale_steps={steps}")
        specs = random_specs(generator)
        tensors = random_tensors(specs, generator, steps)
        bound, expected = plan(config, specs, 0).model_bytes()
        assert len(pack(config, specs, tensors)) <= bound and expected <= bound


def test_bound_holds_for_incompressible_weights():
    config, specs = configuration("engram.engram_buckets=64", "model.num_layers=2", "quant.embed_bits=6")
    generator = np.random.default_rng(4)
    tensors = {}
    for spec in specs:
        if spec.scheme == "fp16":
            tensors[spec.name] = QuantTensor(generator.integers(0, 0x7C00, spec.shape).astype(np.uint16).view(np.float16), None)
        else:
            groups, size, _ = group_layout(spec)
            codes = generator.integers(-grid_top(spec), grid_top(spec) + 1, (groups, size)).astype(np.int8)
            tensors[spec.name] = QuantTensor(codes, generator.integers(0x400, 0x7C00, (groups, 1)).astype(np.uint16).view(np.float16))
    bound, _ = plan(config, specs, 0).model_bytes()
    assert 0.97 * bound < len(pack(config, specs, tensors)) <= bound


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.num_layers=2", "engram.engram_buckets=512"),
        ("model.num_layers=2", "quant.ternary_threshold=0.9", "quant.bitnet_group_size=64", "quant.embed_bits=8"),
        ("model.num_layers=2", "engram.engram_buckets=512", "quant.engram_bits=1", "quant.ternary_threshold=0.3", "quant.embed_bits=3"),
        ("model.num_layers=2", "quant.matrix_scheme=int", "quant.matrix_bits=5", "quant.int_clip=3.5", "quant.embed_bits=2"),
        ("model.num_layers=1", "quant.matrix_scheme=fp16"),
    ],
)
def test_expected_size_of_gaussian_weights(overrides, monkeypatch):
    monkeypatch.setattr(planning, "TRAINED_SHARE", {})  # these weights are Gaussian, not trained
    monkeypatch.setattr(planning, "SCALE_SPREAD", {})
    config, specs = configuration(*overrides)
    tensors = gaussian(config, specs)
    made = plan(config, specs, 0)
    data = pack(config, specs, tensors)
    bound, expected = made.model_bytes()
    assert len(data) <= bound and abs(expected / len(data) - 1) < 0.03
    rows = sizes(config, specs, tensors, data)
    for category in {row.category for row in made.rows} - {"scalar", "header", "scales"}:
        actual = sum(row.size for row in rows if row.category == category)
        guess = sum(row.expected for row in made.rows if row.category == category)
        assert abs(guess / actual - 1) < 0.03, category


def test_what_only_the_input_reads_stays_gaussian():
    """An embedding beside a head of its own, and small tables with a random start; measured on `sem` (docs/LOG.md)."""
    config, _, _ = load("configs/sem_byte.toml", environ={}, overrides=[])
    specs = {spec.name: spec for spec in load_arch("sem").param_specs(config)}

    def share(name, names=frozenset(specs)):
        spec = specs[name]
        return planning.expected_code_bits(config, spec, names) / planning.grid_bits(grid_top(spec), spec.clip)

    assert share("embed") == share("encoder.codebook") == share("layer0.conv") == 1.0
    assert share("head") < 0.95 and share("vocab_bias") < 0.95 and share("embed", {"embed"}) < 0.95


def test_entropy_of_the_grids_against_samples():
    x = np.random.default_rng(0).standard_normal(400_000)
    for threshold in (0.2, 0.5, 1.0):
        codes = np.sign(x) * (np.abs(x) > threshold * np.abs(x).mean())
        assert abs(planning.ternary_bits(threshold) - planning.entropy(np.unique(codes, return_counts=True)[1])) < 0.004
    for bits in (2, 3, 4, 8):
        top = 2 ** (bits - 1) - 1
        codes = np.clip(np.round(x / (2.5 * x.std() / top)), -top, top)
        assert abs(planning.grid_bits(top, 2.5) - planning.entropy(np.unique(codes, return_counts=True)[1])) < 0.004
    assert planning.entropy([1]) == 0 and planning.entropy([1, 1, 0]) == 1
    assert abs(planning.ternary_bits(0.5) - 1.583) < 0.001


def test_sizes_sum_to_the_artifact():
    config, specs = configuration("engram.engram_buckets=64", "model.num_layers=2")
    tensors = gaussian(config, specs)
    data = pack(config, specs, tensors)
    rows = sizes(config, specs, tensors, data)
    assert sum(row.size for row in rows) == len(data) and rows == sizes(config, specs, tensors)
    assert rows[0].name == "header" and rows[0].size <= plan(config, specs, 0).rows[0].bound + len(rows)  # every row is rounded down
    assert {row.category for row in rows} == {"header", "matrix", "embed", "engram", "scalar", "scales"}
    stored = {row.name: row.count for row in rows}
    assert all(stored[spec.name] == np.prod(spec.shape) for spec in specs)
    assert min(row.size for row in rows) >= 0
    text = size_table(rows)
    assert "embed.scale" in text and f"{len(data):,}" not in text and len(text.splitlines()) == len(rows) + 1 + 6


def test_rows_cover_every_kind_once():
    config, specs = configuration("engram.engram_buckets=64")
    made = plan(config, specs, 1234)
    kinds = {(spec.group, spec.scheme, spec.bits) for spec in specs}
    assert len(made.rows) == 2 + len(kinds) and len({(row.category, row.storage) for row in made.rows}) == len(made.rows)
    assert sum(row.count for row in made.rows if row.category not in ("header", "scales")) == sum(int(np.prod(s.shape)) for s in specs)
    text = budget_table(made, 256_000)
    bound, expected = made.model_bytes()
    for number in (bound, expected, 1234, bound + 1234, 256_000 - expected - 1234):
        assert f"{number:,}" in text


def test_check_plan_says_by_how_much_and_what_would_help():
    config, specs = configuration("engram.engram_buckets=4096")
    made = plan(config, specs, 20_000)
    _, expected = made.model_bytes()
    cap = 20_000 + expected - 10_000
    with pytest.raises(ValueError) as caught:
        check_plan(made, cap)
    text = str(caught.value)
    assert (
        f"expected size {20_000 + expected:,} bytes (code 20,000, artifact {expected:,}) exceeds track.cap_bytes={cap:,} by 10,000 bytes"
        in text
    )
    assert re.search(r"engram\.engram_buckets=4096 -> 3584 saves about [\d,]+ bytes", text)
    advice = re.findall(r"([a-z_]+\.[a-z_]+)=\d+ -> (\d+) saves about ([\d,]+)", text)
    assert len(advice) >= 4
    for name, value, saving in advice:  # each on its own is enough, and saves what it says
        changed, smaller = configuration("engram.engram_buckets=4096", f"{name}={value}")
        assert expected - plan(changed, smaller, 20_000).model_bytes()[1] == int(saving.replace(",", ""))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert check_plan(plan(changed, smaller, 20_000), cap) >= 0


def test_check_plan_where_nothing_is_enough():
    config, specs = configuration()
    with pytest.raises(ValueError, match=r"no single setting saves enough; .*model\.num_layers=4 -> 1 saves about"):
        check_plan(plan(config, specs, 20_000), 21_000)


def test_check_plan_warns_where_only_the_bound_is_over():
    config, specs = configuration()
    made = plan(config, specs, 0)
    bound, expected = made.model_bytes()
    with pytest.warns(UserWarning, match=f"guaranteed bound {bound:,} exceeds it by {bound - expected:,} bytes"):
        assert check_plan(made, expected) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_plan(made, bound) == bound - expected


def test_check_budget():
    assert check_budget(1000, 2000, 3000) == 0 and check_budget(1000, 2000, 3500) == 500
    with pytest.raises(ValueError, match=re.escape("code 1,000 + artifact 2,001 = 3,001 bytes exceeds the cap of 3,000 by 1 bytes")):
        check_budget(1000, 2001, 3000)


def test_live_prediction_is_close_to_what_packing_gives():
    config, specs = configuration("engram.engram_buckets=4096", "quant.scale_steps=8", "quant.scalar_bits=6", "model.model_dim=256")
    generator = np.random.default_rng(7)
    rows = {"engram.table": np.exp(generator.normal(0, 0.5, (4 * 4096, 1)))}
    arrays = {s.name: (generator.standard_normal(s.shape) * 0.05 * rows.get(s.name, 1.0)).astype(np.float32) for s in specs}
    tensors = quantize(ops, config, specs, {name: torch.tensor(array) for name, array in arrays.items()}, {})
    assert abs(predicted_bytes(ops, config, specs, arrays) / len(pack(config, specs, tensors)) - 1) < 0.005
