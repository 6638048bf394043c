"""The real package, flag by flag: the counted file alone in an empty folder gives the package's losses, bit for bit."""

import dataclasses

import numpy as np
import pytest
from model_fixtures import EVAL_SETS, FLAG_SETS, evaluating, random_arrays, takes, tiny_config

from trit.bundle.alone import run_alone
from trit.bundle.bundle import ALL_CODECS, bundle, shaken_text
from trit.bundle.verify import verify
from trit.compress.prune import kept_rows
from trit.data.loader import calibration_tokens
from trit.eval.temperature import artifact_specs
from trit.models import arch_names, load_arch
from trit.ops import torch_ops
from trit.submission import load_artifact, make_artifact, score_rows
from trit.train import torch_backend
from trit.train.log import Log

GRID = FLAG_SETS | {
    "steps": {"scale_steps": 8, "scalar_bits": 6, "rotate_matrices": "true", "engram_buckets": 64},
    "all_coders": {"coders": "all", "rotate_embedding": "true"},
    "integers": {"matrix_scheme": "int", "engram_buckets": 64, "engram_bits": 4},
    "pruned": {"engram_buckets": 300, "engram_keep": "0.5,0.45", "engram_bits": 2, "scale_steps": 8, "write_every": 2},
    "allocated": {"allocate": "true", "engram_buckets": 64, "engram_bits": 16},
    "halves": {"matrix_scheme": "fp16", "ternary_scale": "least_squares"},
    "ternary_rows": {"engram_buckets": 64, "engram_bits": 1, "ema_decay": 0.9, "muon_row_norm": "true"},
    "bfloat16": {"compute_dtype": "bfloat16", "full_precision_fraction": 0.5},
    "eight_bits": {"fp8": "true", "bitnet_group_size": 64, "attention_kernel": "flash", "compute_dtype": "bfloat16"},
    "compiled": {"compile": "true", "yarn_max_len": 32, "eval_stride": 32},
}
FAST = ("odd_all", "integers")


def test_the_grid_is_run_on_every_architecture():
    assert arch_names() and set(FAST) <= set(GRID)


def compare(cfg, shard_folder, tmp_path, rows_at=(), codecs=("brotli",)):
    """The counted file's losses, printed score and rows are the package's, on the same artifact."""
    module = load_arch(cfg.model.name)
    arrays = random_arrays(artifact_specs(module, cfg))
    if cfg.compress.engram_keep:
        arrays["engram.kept"] = kept_rows(torch_ops, cfg, arrays["engram.table"], calibration_tokens(cfg, shard_folder))
    artifact = make_artifact(torch_ops, module, cfg, arrays, {})
    (tmp_path / "artifact.trit").write_bytes(artifact)
    built = bundle(cfg, codecs=codecs)
    verify(built)
    files = {"artifact.trit": tmp_path / "artifact.trit", "data": shard_folder}
    environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260", "LOSSES": "losses", "OMP_NUM_THREADS": "1"}
    environ |= {"ROWS": "rows", "ROWS_AT": ",".join(map(str, rows_at))}
    done = run_alone(built, files, environ=environ, folder=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    loaded = load_artifact(torch_ops, module, cfg, artifact)
    score, losses, rows = score_rows(
        torch_ops, torch_backend, module, cfg, torch_backend.start_process(), loaded, shard_folder, "byte260", Log(rank=1), rows_at
    )
    assert (np.fromfile(tmp_path / "alone" / "losses") == losses).all()
    assert (np.fromfile(tmp_path / "alone" / "rows") == rows.ravel()).all()
    assert f"val_bpb:{score.bpb:.8f}" in done.stdout


def pairs(rows, fast):
    """[(architecture, name of a row)] of all rows that an architecture takes; those that are not `fast` are slow."""
    found = [(arch, name) for arch in arch_names() for name in rows if takes(arch, rows[name])]
    return [pytest.param(*pair, id="-".join(pair), marks=[] if pair[1] in fast else pytest.mark.slow) for pair in found]


@pytest.mark.parametrize("arch,flags", pairs(GRID, FAST))
def test_counted_file_alone_equals_the_package(arch, flags, shard_folder, tmp_path):
    compare(tiny_config(arch, vocab_size=260, **GRID[flags]), shard_folder, tmp_path)


@pytest.mark.parametrize("arch,part", pairs(EVAL_SETS, ("all", "one_pass_all")))
def test_counted_evaluator_alone_equals_the_package(arch, part, shard_folder, tmp_path):
    compare(evaluating(arch, part, vocab_size=260, ngram_nodes=2000), shard_folder, tmp_path, [0, 40, 333])


@pytest.mark.parametrize("arch", [pytest.param(name, marks=[] if name == "unet" else pytest.mark.slow) for name in arch_names()])
def test_evaluation_only_form_scores_alike_and_cannot_train(arch, shard_folder, tmp_path):
    cfg = evaluating(arch, "all", vocab_size=260, ngram_nodes=2000)
    only = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, evaluation_only=True))
    # Mixing takes most of a minute and packs whatever text it is given: once is enough.
    compare(only, shard_folder, tmp_path, [0, 40, 333], ALL_CODECS if arch == "unet" else ("brotli",))
    small, whole = (bundle(each, codecs=("brotli",)) for each in (only, cfg))
    assert len(small.wrapped) < 0.75 * len(whole.wrapped) and set(small.kept) < set(whole.kept)
    trainers = ("trit.train.loop:", "trit.train.run:", "trit.train.loss:", "trit.train.optimizer:", "trit.train.schedule:")
    trainers += ("trit.train.torch_backend:make_backend", "trit.compress.pack:pack", "trit.compress.quantize:fake_quantize")
    trainers += ("trit.compress.calibrate:", "trit.params:init_params", "trit.data.loader:TokenLoader", "trit.submission:find_calibration")
    for trainer in trainers:
        assert any(name.startswith(trainer) for name in whole.kept), trainer
        assert not any(name.startswith(trainer) for name in small.kept), trainer
    done = run_alone(small, {"data": shard_folder}, environ={"DATA_PATH": "data", "TOKENIZER_PATH": "byte260"})
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("FileNotFoundError") and "artifact.trit" in done.stderr


@pytest.mark.parametrize("arch,attends,recurs", [("unet", True, False), ("koopman_ssm", False, True), ("hybrid", True, True)])
def test_only_the_mixers_of_the_layer_map_ship(arch, attends, recurs):
    for isolated in ("false", "true"):
        text = shaken_text(tiny_config(arch, isolate_documents=isolated))
        for word in ("attention_layer", "attention_tables", "rope_frequencies"):
            assert (f"def {word}(" in text) == attends, word
        for word in ("koopman_layer", "koopman_tables", "ops_chunked_scan", "hadamard_matrix", "causal_conv"):
            assert (f"def {word}(" in text) == recurs, word
        assert "check_settings" not in text and "layer_map" not in text
