"""The real package, flag by flag: the counted file alone in an empty folder gives the package's losses, bit for bit."""

import numpy as np
import pytest
from model_fixtures import FLAG_SETS, random_arrays, tiny_config

from trit.bundle.bundle import bundle
from trit.bundle.verify import run_alone, verify
from trit.models import arch_names, load_arch
from trit.ops import torch_ops
from trit.submission import load_artifact, make_artifact, score_arrays
from trit.train.log import Log
from trit.train.torch_backend import start_process

GRID = FLAG_SETS | {
    "integers": {"matrix_scheme": "int", "engram_buckets": 64, "engram_bits": 4},
    "halves": {"matrix_scheme": "fp16", "ternary_scale": "least_squares"},
    "ternary_rows": {"engram_buckets": 64, "engram_bits": 1, "ema_decay": 0.9, "muon_row_norm": "true"},
    "bfloat16": {"compute_dtype": "bfloat16", "full_precision_fraction": 0.5},
    "compiled": {"compile": "true", "yarn_max_len": 32, "eval_stride": 32},
}
FAST = ("odd_all", "integers")


def test_the_grid_is_run_on_every_architecture():
    assert arch_names() and set(FAST) <= set(GRID)


@pytest.mark.parametrize("arch", arch_names())
@pytest.mark.parametrize("flags", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in GRID])
def test_counted_file_alone_equals_the_package(arch, flags, shard_folder, tmp_path):
    cfg, module = tiny_config(arch, vocab_size=260, **GRID[flags]), load_arch(arch)
    artifact = make_artifact(torch_ops, module, cfg, random_arrays(module.param_specs(cfg)), {})
    (tmp_path / "artifact.trit").write_bytes(artifact)
    built = bundle(cfg)
    verify(built)
    files = {"artifact.trit": tmp_path / "artifact.trit", "data": shard_folder}
    environ = {"DATA_PATH": "data", "TOKENIZER_PATH": "byte260", "LOSSES": "losses", "OMP_NUM_THREADS": "1"}
    done = run_alone(built, files, environ=environ, folder=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    loaded = load_artifact(torch_ops, module, cfg, artifact)
    score, losses = score_arrays(torch_ops, module, cfg, start_process(), loaded, shard_folder, "byte260", Log(rank=1))
    assert (np.fromfile(tmp_path / "alone" / "losses") == losses).all()
    assert f"val_bpb:{score.bpb:.8f}" in done.stdout
