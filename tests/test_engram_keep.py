"""Rows of the engram that the artifact keeps: which they are, that they come back bit for bit, and that a false map is refused."""

import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from model_fixtures import load_arch, random_arrays, tiny_config
from pack_fixtures import refusal, same, sealed

from trit.build import compress_run
from trit.compress import pack as packing
from trit.compress import sizes as sizing
from trit.compress.entropy import best_mode, encode_streams, lane_count
from trit.compress.layouts import PackError
from trit.compress.pack import check_tensor, pack, spec_fingerprint, stream_symbols, stream_table, unpack
from trit.compress.plan import plan
from trit.compress.prune import kept_counts, kept_map, kept_rows
from trit.compress.quantize import dequantize, fake_quantize, group_layout, quantize
from trit.compress.sizes import predicted_bytes, sizes
from trit.config_load import load
from trit.data.firewall import Firewall, validation_files
from trit.data.loader import calibration_tokens
from trit.layers.engram import engram_rows
from trit.library import load_library
from trit.ops import mlx_ops, torch_ops
from trit.submission import find_calibration, load_artifact
from trit.train import torch_backend
from trit.train.log import Log

ROWS = 300
KEEP = {"engram_buckets": ROWS, "engram_keep": "0.5"}
STORAGES = {
    "rows_together": {"engram_bits": 2, "scale_steps": 8},
    "rows_together_halves": {"engram_bits": 4},
    "padded_groups": {"engram_bits": 3, "engram_group_size": 56, "scale_steps": 8},
    "inside_rows": {"engram_bits": 2, "engram_group_size": 4},
    "inside_rows_padded": {"engram_bits": 4, "engram_group_size": 3, "scale_steps": 8},
    "trits": {"engram_bits": 1, "engram_group_size": 8},
    "halves": {"engram_bits": 16, "scale_steps": 8, "scalar_bits": 8},
    "all_coders": {"engram_bits": 4, "coders": "all", "engram_keep": "0.6,0.3"},
}


def table_specs(cfg):
    """The table of tensors, cut down to the engram's tables."""
    return [spec for spec in load_arch("unet").param_specs(cfg) if spec.name == "engram.table"]


def drawn(cfg, specs, tokens=2000, seed=0):
    """{name: float32 array} of random weights with rows of many sizes, some of them zeros, and their mask of kept rows."""
    generator = np.random.default_rng(seed)
    arrays = random_arrays(specs, seed)
    arrays["engram.table"] *= np.exp(generator.normal(0, 1, (len(arrays["engram.table"]), 1))).astype(np.float32)
    arrays["engram.table"][generator.random(len(arrays["engram.table"])) < 0.4] = 0.0
    arrays["engram.kept"] = kept_rows(torch_ops, cfg, arrays["engram.table"], generator.integers(0, 64, tokens).astype(np.int32))
    return arrays


def packed(cfg, seed=0):
    """(specs, tensors, artifact) of `drawn` tables."""
    specs = table_specs(cfg)
    tensors = quantize(torch_ops, cfg, specs, {name: torch_ops.from_numpy(x) for name, x in drawn(cfg, specs, seed=seed).items()}, {})
    return specs, tensors, pack(cfg, specs, tensors)


@pytest.mark.parametrize(
    "settings, wanted",
    [
        ({"engram_buckets": 1000, "engram_keep": "0.35"}, [350] * 4),
        ({"engram_buckets": 1000, "engram_keep": "0.35,0.2"}, [350, 350, 200, 200]),
        ({"engram_buckets": 1000, "engram_keep": "0.5,0.25,0.15", "engram_orders": 3, "engram_heads": 1}, [500, 250, 150]),
        ({"engram_buckets": 500, "engram_keep": "0.2"}, [128] * 4),
        ({"engram_buckets": 100, "engram_keep": "0.2,1"}, [100] * 4),
        ({"engram_buckets": 1000, "engram_keep": "1"}, [1000] * 4),
    ],
)
def test_shares_leave_at_least_128_rows_of_a_table(settings, wanted):
    assert kept_counts(tiny_config(**settings)) == wanted


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"engram_buckets": 64, "engram_keep": "0"}, "compress.engram_keep='0' must be one share above 0 and at most 1"),
        ({"engram_buckets": 64, "engram_keep": "1.5"}, "at most 1, or one for each of the 2 orders"),
        ({"engram_buckets": 64, "engram_keep": "nan"}, "must be one share"),
        ({"engram_buckets": 64, "engram_keep": "half"}, "must be one share"),
        ({"engram_buckets": 64, "engram_keep": "0.5,"}, "must be one share"),
        ({"engram_buckets": 64, "engram_keep": "0.5,0.4,0.3"}, "for each of the 2 orders"),
        ({"engram_keep": "0.5"}, "changes nothing without a memory"),
        ({"engram_buckets": 64, "engram_keep": "0.5", "engram_keep_norm_weight": 1.1}, "norm_weight=1.1 must lie between 0 and 1"),
        ({"engram_buckets": 64, "engram_keep": "0.5", "allocate": "true"}, "compress.allocate=True both decide"),
    ],
)
def test_impossible_settings_are_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**settings)


@pytest.mark.parametrize("ops", [torch_ops, mlx_ops], ids=["torch", "mlx"])
@pytest.mark.parametrize("isolated", ["false", "true"])
def test_rows_that_are_large_or_often_read_stay(ops, isolated):
    cfg = tiny_config(isolate_documents=isolated, **KEEP | {"engram_keep": "0.5,0.45"})
    generator = np.random.default_rng(2)
    tokens, table = generator.integers(0, 64, 700).astype(np.int32), generator.normal(0, 1, (4 * ROWS, 8)).astype(np.float32)
    hits = np.zeros(4 * ROWS)
    for start in range(0, 700 - 31, 32):  # windows of 32 tokens; the tail that fills none is left out
        rows, masks = (torch_ops.to_numpy(x) for x in engram_rows(torch_ops, cfg, torch_ops.from_numpy(tokens[None, start : start + 32])))
        for place in range(32):
            for number in range(4):
                silent = masks[place, number] == 0 if isolated == "false" else masks[0, place, number] == 0
                hits[rows[0, place, number]] += not silent
    assert hits.sum() < 4 * 21 * 32
    norms = np.linalg.norm(table.astype(np.float64), axis=1)
    for weight in (1.0, 0.85, 0.0):
        weighed = replace(cfg, compress=replace(cfg.compress, engram_keep_norm_weight=weight))
        kept = kept_rows(ops, weighed, table, tokens)
        for number, count in enumerate((150, 150, 135, 135)):
            part = slice(number * ROWS, number * ROWS + ROWS)
            score = weight * norms[part] / norms[part].max() + (1 - weight) * hits[part] / hits[part].max()
            found = kept[part]
            assert found.sum() == count and score[found].min() >= score[~found].max() - 1e-12
    with_nothing = kept_rows(ops, cfg, np.zeros((4 * ROWS, 8), np.float32), tokens[:0])
    assert with_nothing.reshape(4, -1).sum(1).tolist() == [150, 150, 135, 135]


@pytest.mark.parametrize("storage", STORAGES)
def test_kept_rows_come_back_as_they_were_trained_and_the_others_as_zeros(storage):
    cfg = tiny_config(**KEEP | STORAGES[storage])
    specs = table_specs(cfg)
    arrays = drawn(cfg, specs)
    p = {name: torch_ops.from_numpy(array) for name, array in arrays.items()}
    tensors = quantize(torch_ops, cfg, specs, p, {})
    data = pack(cfg, specs, tensors)
    assert same(unpack(cfg, specs, data), tensors)
    loaded, forward = dequantize(torch_ops, cfg, specs, unpack(cfg, specs, data)), fake_quantize(torch_ops, cfg, specs, p, {})
    plain = {name: x for name, x in p.items() if name != "engram.kept"}
    whole = fake_quantize(torch_ops, cfg, specs, plain, {})
    kept = arrays["engram.kept"]
    for spec in specs:
        assert loaded[spec.name].tobytes() == torch_ops.to_numpy(forward[spec.name]).tobytes(), spec.name
        wanted = torch_ops.to_numpy(whole[spec.name])
        if spec.name == "engram.table":
            wanted = np.where(kept[:, None], wanted, 0.0)
            assert kept.sum() == sum(kept_counts(cfg)) < len(kept) and (wanted[kept] != 0).any()
        assert np.array_equal(loaded[spec.name], wanted)
    off = tiny_config(**KEEP | STORAGES[storage] | {"engram_keep": ""})
    assert len(data) < len(pack(off, specs, quantize(torch_ops, off, specs, plain, {})))
    rows = sizes(cfg, specs, tensors, data)
    assert sum(row.size for row in rows) == len(data) and {row.name for row in rows} >= {"engram.table.map", "engram.table"}
    assert next(row for row in rows if row.name == "engram.table").count == 8 * kept.sum()


def test_mlx_prunes_alike():
    cfg = tiny_config(**KEEP | STORAGES["inside_rows_padded"])
    specs = table_specs(cfg)
    arrays = drawn(cfg, specs)
    left, right = (
        dequantize(ops, cfg, specs, quantize(ops, cfg, specs, {name: ops.from_numpy(x) for name, x in arrays.items()}, {}))
        for ops in (torch_ops, mlx_ops)
    )
    assert np.array_equal(left["engram.table"], right["engram.table"]) and (left["engram.table"][~arrays["engram.kept"]] == 0).all()


def test_only_kept_rows_are_stored():
    """Streams hold as many codes as rows are kept, whatever the rows; and of groups inside rows as many scales."""
    for storage, scales in (("rows_together", group_layout), ("inside_rows_padded", None)):
        cfg = tiny_config(**KEEP | STORAGES[storage])
        spec = table_specs(cfg)[0]
        kept_map_stream, codes, places = stream_table(cfg, [spec])[:3]
        assert (kept_map_stream.base, kept_map_stream.count, kept_map_stream.columns) == (2, 4 * ROWS, 1)
        assert codes.count == 4 * 150 * 8 and places.count == (scales(spec)[0] if scales else 4 * 150 * 3)


def test_a_table_that_nobody_pruned_is_no_artifact():
    cfg = tiny_config(**KEEP)
    specs = table_specs(cfg)
    p = {name: torch_ops.from_numpy(x) for name, x in random_arrays(specs).items()}
    with pytest.raises(PackError, match="table 0 of the engram holds 300 rows where compress.engram_keep leaves 150"):
        pack(cfg, specs, quantize(torch_ops, cfg, specs, p, {}))
    specs, tensors, _ = packed(tiny_config(**KEEP | STORAGES["inside_rows"]))
    tensors["engram.table"].scales[:] = 0.5
    with pytest.raises(PackError, match="a row that is not kept has a scale"):
        pack(tiny_config(**KEEP | STORAGES["inside_rows"]), specs, tensors)


def test_the_map_follows_from_what_is_filled():
    cfg = tiny_config(**KEEP | {"engram_buckets": 4, "engram_keep": "0.5"})
    assert kept_map(cfg, np.array([0, 0, 1, 0] * 4) > 0).tolist() == [True] * 16  # fewer than 128 rows: all stay
    cfg = tiny_config(**KEEP)
    filled = np.zeros((4, ROWS), bool)
    filled[0, 7], filled[1, 100:250] = True, True
    kept = kept_map(cfg, filled.reshape(-1)).reshape(4, ROWS)
    assert np.flatnonzero(kept[0]).tolist() == list(range(150)) and np.array_equal(kept[1], filled[1])


def forged(cfg, specs, tensors, change):
    """An artifact whose streams of symbols `change` has altered, sealed as a hostile writer would."""
    streams, symbols = stream_table(cfg, specs), [part.copy() for part in stream_symbols(cfg, specs, tensors)]
    change(symbols)
    modes, _, coded = encode_streams(streams, symbols, {})
    head = packing.PACK_MAGIC + bytes([packing.PACK_VERSION]) + spec_fingerprint(cfg, specs) + bytes(8)
    return sealed(head + bytes(modes) + coded)


@pytest.mark.parametrize("storage", ["rows_together", "inside_rows_padded", "halves"])
def test_a_false_map_is_refused_with_its_reason(storage):
    cfg = tiny_config(**KEEP | STORAGES[storage])
    specs, tensors, data = packed(cfg)
    assert forged(cfg, specs, tensors, lambda symbols: None) == data
    place = next(i for i, stream in enumerate(stream_table(cfg, specs)) if stream.base == 2)

    def more(symbols):
        symbols[place][np.flatnonzero(symbols[place] == 0)[0]] = 1

    def other_table(symbols):
        symbols[place][np.flatnonzero(symbols[place] == 1)[0]] = 0
        symbols[place][2 * ROWS + np.flatnonzero(symbols[place][2 * ROWS :] == 0)[0]] = 1

    def every(symbols):
        symbols[place][:] = 1

    for change, held in ((more, "151, 150, 150, 150"), (other_table, "149, 150, 151, 150"), (every, "300, 300, 300, 300")):
        assert f"the map keeps [{held}] rows of the tables, not [150, 150, 150, 150]" in refusal(
            cfg, specs, forged(cfg, specs, tensors, change)
        )


def test_a_map_that_keeps_other_rows_of_zeros_than_a_writer_would_is_refused():
    cfg = tiny_config(**KEEP)
    specs = table_specs(cfg)
    arrays = drawn(cfg, specs)
    arrays["engram.table"][:] = 0.0
    tensors = quantize(torch_ops, cfg, specs, {name: torch_ops.from_numpy(x) for name, x in arrays.items()}, {})
    place = next(i for i, stream in enumerate(stream_table(cfg, specs)) if stream.base == 2)

    def moved(symbols):
        symbols[place][149], symbols[place][200] = 0, 1

    assert "keeps a row of zeros where another" in refusal(cfg, specs, forged(cfg, specs, tensors, moved))


@pytest.mark.parametrize("storage", ["inside_rows_padded", "rows_together_halves", "halves", "all_coders"])
def test_damage_is_refused_or_storable_and_costs_no_more_memory(storage):
    cfg = tiny_config(**KEEP | STORAGES[storage])
    specs, _, data = packed(cfg)
    generator = np.random.default_rng(1)

    def peak(data):
        """(what `unpack` makes of an artifact or None where it is refused, bytes of memory that took)."""
        tracemalloc.start()  # for no longer: it slows everything down
        try:
            return unpack(cfg, specs, data), tracemalloc.get_traced_memory()[1]
        except PackError:
            return None, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    usual, most = peak(data)[1], 0
    for end in (0, 25, len(data) // 2, len(data) - 4):
        refusal(cfg, specs, data[:end])
        refusal(cfg, specs, sealed(data[: max(end, 21)]))
    for _ in range(5):
        damaged = bytearray(data)
        for place in generator.integers(21, len(data), generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        tensors, taken = peak(sealed(bytes(damaged)))
        most = max(most, taken)
        if tensors is not None:
            for spec in specs:
                check_tensor(cfg, spec, tensors[spec.name])
            assert same(unpack(cfg, specs, pack(cfg, specs, tensors)), tensors)
    assert 0 < most < 3 * usual


def test_other_numbers_of_rows_are_another_configuration():
    specs, _, data = packed(tiny_config(**KEEP))
    for keep in ("", "0.51", "0.5,0.6"):
        assert "another configuration" in refusal(tiny_config(**KEEP | {"engram_keep": keep}), specs, data)
    assert unpack(tiny_config(**KEEP | {"engram_keep": "0.5,0.5"}), specs, data)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_plan_bounds_the_artifact_and_counts_the_map(storage):
    cfg = tiny_config(**KEEP | STORAGES[storage])
    specs, _, data = packed(cfg)
    made = plan(cfg, specs, 0)
    bound, expected = made.model_bytes()
    whole = plan(tiny_config(**KEEP | STORAGES[storage] | {"engram_keep": ""}), specs, 0).model_bytes()
    assert len(data) <= bound < whole[0] and expected < whole[1]
    row = next(row for row in made.rows if row.storage == "map")
    assert row.count == 4 * ROWS and 0.9 * 150 < row.expected < row.bound < 2 * 150 + 20


def test_the_live_prediction_knows_what_pruning_leaves(monkeypatch):
    monkeypatch.setattr(sizing, "SAMPLE", 1 << 15)  # a quarter of the rows
    settings = {"engram_buckets": 2000, "engram_row_dim": 16, "engram_keep": "0.3,0.2", "engram_keep_norm_weight": 1.0}
    settings |= {"scalar_bits": 6, "engram_bits": 2, "engram_group_size": 4096, "scale_steps": 8}
    for extra in ({}, {"engram_group_size": 4}, {"engram_group_size": 4, "scale_steps": 0}, {"engram_bits": 16}):
        cfg = tiny_config(**settings | extra)
        specs = table_specs(cfg)
        arrays = drawn(cfg, specs)
        tensors = quantize(torch_ops, cfg, specs, {name: torch_ops.from_numpy(x) for name, x in arrays.items()}, {})
        assert abs(predicted_bytes(torch_ops, cfg, specs, arrays) / len(pack(cfg, specs, tensors)) - 1) < 0.02, extra


def test_rows_are_chosen_on_held_out_training_text_and_no_other(shard_folder):
    """The counts are those of the slice that no batch holds; validation shards are not opened, and need not be there."""
    cfg = tiny_config(calibration_evals=2, calibration_tokens=640, fit_temperature="true", **KEEP)
    arch, lines = load_arch("unet"), []
    log = Log(1)
    log.line = lines.append
    arrays = drawn(cfg, arch.param_specs(cfg))
    del arrays["engram.kept"]
    with Firewall(validation_files(shard_folder)) as firewall:
        forward, artifact, _ = compress_run(load_library("torch"), cfg, arrays, shard_folder, log)
        firewall.release(artifact)
    assert firewall.summary()[0]
    assert any("pruning: 600 of 1200 rows of the engram stay" in line for line in lines)
    loaded = load_artifact(torch_ops, arch, cfg, artifact)
    assert all(loaded[name].tobytes() == forward[name].tobytes() for name in loaded)
    wanted = kept_rows(torch_ops, cfg, arrays["engram.table"], calibration_tokens(cfg, shard_folder))
    assert np.array_equal(arrays["engram.kept"], wanted) and (loaded["engram.table"][~wanted] == 0).all()
    os.remove(f"{shard_folder}/tiny_val_000000.bin")
    again = {name: array for name, array in arrays.items() if name not in ("engram.kept", "sharpness")}
    find_calibration(torch_ops, torch_backend, arch, cfg, torch_backend.start_process(), again, shard_folder, log)
    assert np.array_equal(again["engram.kept"], wanted)


def test_off_is_what_was():
    """No share, no trace: the same streams, fingerprint and bytes as without the setting."""
    cfg = load(None, {}, ["engram.engram_buckets=64"])[0]
    assert cfg.compress.engram_keep == "" and all(stream.base != 2 for stream in stream_table(cfg, load_arch("unet").param_specs(cfg)))
    specs = table_specs(tiny_config(engram_buckets=ROWS))
    arrays = random_arrays(specs)
    p = {name: torch_ops.from_numpy(x) for name, x in arrays.items()}
    p["engram.kept"] = torch_ops.from_numpy(np.zeros(4 * ROWS, bool))
    tensors = quantize(torch_ops, tiny_config(engram_buckets=ROWS), specs, p, {})
    assert tensors["engram.table"].codes.any()


def test_the_map_costs_about_its_entropy():
    cfg = tiny_config(engram_buckets=3000, engram_keep="0.2", engram_row_dim=4, engram_group_size=4096)
    specs, tensors, _ = packed(cfg)
    number = next(i for i, stream in enumerate(stream_table(cfg, specs)) if stream.base == 2)
    stream, symbols = stream_table(cfg, specs)[number], stream_symbols(cfg, specs, tensors)[number]
    bits, _ = best_mode(stream, symbols, lane_count(stream_table(cfg, specs)))
    assert bits < 1.03 * 12000 * -(0.2 * np.log2(0.2) + 0.8 * np.log2(0.8))
