"""The real package, flag by flag: the counted file alone in an empty folder gives the package's losses, bit for bit."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
from data_fixtures import write_shards
from model_fixtures import EVAL_SETS, FLAG_SETS, evaluating, random_arrays, takes, tiny_config

from trit.bundle.alone import Job, run_jobs
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
ONLY, ABSENT = "evaluation only", "evaluation only, without an artifact"
# The fast suite takes training's flags at once on every architecture, the rest on one.
FAST = ["odd_all"], [("integers", "unet"), ("one_pass_all", "hybrid"), ("all", "skc")]


def marked(sets):
    """[(architecture, flags)] of all `sets`, those that are not `FAST` marked as slow."""
    whole, single = FAST
    pairs = [(arch, flags) for flags in sets for arch in arch_names() if takes(arch, sets[flags])]
    return [pytest.param(arch, flags, marks=[] if flags in whole or (flags, arch) in single else pytest.mark.slow) for arch, flags in pairs]


def test_the_grid_is_run_on_every_architecture():
    assert arch_names() and set(FAST[0]) | {flags for flags, _ in FAST[1]} <= set(GRID) | set(EVAL_SETS)


class Case(NamedTuple):
    """A configuration whose counted file runs alone, the positions of the rows it writes, and the codecs it is packed with."""

    cfg: object
    rows_at: tuple = ()
    codecs: tuple = ("brotli",)


def case(arch, flags):
    """The `Case` of a row of either table, or of the evaluation-only form."""
    if flags in GRID:
        return Case(tiny_config(arch, vocab_size=260, **GRID[flags]))
    cfg = evaluating(arch, "all" if flags == ONLY else flags, vocab_size=260, ngram_nodes=2000)
    if flags != ONLY:
        return Case(cfg, (0, 40, 333))
    # Mixing takes long and packs whatever text it is given: once is enough.
    only = dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, evaluation_only=True))
    return Case(only, (0, 40, 333), ALL_CODECS if arch == "unet" else ("brotli",))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(request, text, tmp_path_factory):
    """{(architecture, flags): (artifact, build, its run)} of all cases that this session tests, and of each evaluation-only form without an
    artifact under `ABSENT`. One isolated process runs them all: loading PyTorch takes longer than scoring a tiny text."""
    root, made, jobs = tmp_path_factory.mktemp("alone"), {}, {}
    chosen = [item.callspec.params for item in request.session.items if item.module is request.module and hasattr(item, "callspec")]
    for arch, flags in dict.fromkeys((given["arch"], given["flags"]) for given in chosen if "flags" in given):
        cfg, rows_at, codecs = case(arch, flags)
        module = load_arch(arch)
        arrays = random_arrays(artifact_specs(module, cfg))
        if cfg.compress.engram_keep:
            arrays["engram.kept"] = kept_rows(torch_ops, cfg, arrays["engram.table"], calibration_tokens(cfg, text))
        artifact = make_artifact(torch_ops, module, cfg, arrays, {})
        built = bundle(cfg, codecs=codecs)
        verify(built, None if not made else {})  # under every Python once
        environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260", "LOSSES": "losses", "OMP_NUM_THREADS": "1"}
        environ |= {"ROWS": "rows", "ROWS_AT": ",".join(map(str, rows_at))}
        made[arch, flags] = artifact, built
        jobs[arch, flags] = Job(f"{arch} {flags}", built.wrapped, {"artifact.trit": artifact, "data": text}, environ)
        if flags == ONLY:
            jobs[arch, ABSENT] = Job(f"{arch} {ABSENT}", built.wrapped, {"data": text}, environ)
    results = dict(zip(jobs, run_jobs(list(jobs.values()), root, 60 + 60 * len(jobs)).results, strict=True))
    return {key: (*made.get(key, (None, None)), result) for key, result in results.items()}


def compare(arch, flags, alone, text):
    """The counted file's losses, printed score and rows are the package's, on the same artifact."""
    cfg, rows_at, _ = case(arch, flags)
    artifact, _, done = alone[arch, flags]
    assert done.returncode == 0, done.stderr
    loaded, process = load_artifact(torch_ops, load_arch(arch), cfg, artifact), torch_backend.start_process()
    given = torch_ops, torch_backend, load_arch(arch), cfg, process, loaded, text, "byte260", Log(rank=1), rows_at
    score, losses, rows = score_rows(*given)
    assert (np.fromfile(done.folder / "losses") == losses).all()
    assert (np.fromfile(done.folder / "rows") == rows.ravel()).all()
    assert f"val_bpb:{score.bpb:.8f}" in done.stdout


@pytest.mark.parametrize("arch,flags", marked(GRID))
def test_counted_file_alone_equals_the_package(arch, flags, alone, text):
    compare(arch, flags, alone, text)


@pytest.mark.parametrize("arch,flags", marked(EVAL_SETS))
def test_counted_evaluator_alone_equals_the_package(arch, flags, alone, text):
    compare(arch, flags, alone, text)


@pytest.mark.parametrize("flags", [ONLY])
@pytest.mark.parametrize("arch", [pytest.param(name, marks=[] if name == "unet" else pytest.mark.slow) for name in arch_names()])
def test_evaluation_only_form_scores_alike_and_cannot_train(arch, flags, alone, text):
    compare(arch, flags, alone, text)
    only = case(arch, flags).cfg
    cfg = dataclasses.replace(only, eval=dataclasses.replace(only.eval, evaluation_only=False))
    small, whole = (bundle(each, codecs=("brotli",)) for each in (only, cfg))
    assert len(small.wrapped) < 0.75 * len(whole.wrapped) and set(small.kept) < set(whole.kept)
    trainers = ("trit.train.loop:", "trit.train.run:", "trit.train.loss:", "trit.train.optimizer:", "trit.train.schedule:")
    trainers += ("trit.train.torch_backend:make_backend", "trit.compress.pack:pack", "trit.compress.quantize:fake_quantize")
    trainers += ("trit.compress.calibrate:", "trit.params:init_params", "trit.data.loader:TokenLoader", "trit.submission:find_calibration")
    for trainer in trainers:
        assert any(name.startswith(trainer) for name in whole.kept), trainer
        assert not any(name.startswith(trainer) for name in small.kept), trainer
    done = alone[arch, ABSENT][2]
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
