"""Every architecture and every part, trained on either array library, to a certified record of either: `build_submission.py` certifies
the score, runs the counted file alone and refuses a record where anything differs."""

import json
from pathlib import Path

import pytest
from model_fixtures import TINY_ARCH, TINY_CAPSULES, TINY_EXPERTS, TINY_FEEDBACK
from record_fixtures import TINY, run

GRIDS = {"scalar_bits": 6, "scale_steps": 8}
# Name: architecture, library that trains and, where it is another, the one that builds; settings.
PARTS = {
    "koopman": ("koopman_ssm", "torch", {"xsa_layers": 0}),
    "koopman_mlx": ("koopman_ssm", "mlx to torch", {"xsa_layers": 0, "isolate_documents": "true"} | GRIDS),
    "all_mixers": ("hybrid", "torch", {"layer_map": "aks"} | TINY_ARCH["skc"] | TINY_CAPSULES | GRIDS),
    "all_mixers_mlx": ("hybrid", "mlx", {"layer_map": "aks"} | TINY_ARCH["skc"] | TINY_FEEDBACK),
    "skc_parallel": ("skc", "torch", {"parallel": "true", "num_layers": 4} | TINY_EXPERTS | GRIDS),
    "skc_mlx": ("skc", "mlx", {"parallel": "true", "num_layers": 4} | TINY_CAPSULES),
    "experts_feedback": ("unet", "torch to mlx", TINY_EXPERTS | TINY_FEEDBACK),
    "shared_recurrent": (
        "unet",
        "torch",
        {"num_layers": 4, "shared_blocks": 2, "recurrent_layers": "1,2", "recurrence_start": 0.5} | GRIDS,
    ),
    "sem": ("sem", "torch", {"train.grad_accum_steps": 2} | GRIDS),
    "sem_mlx": ("sem", "mlx to torch", {"isolate_documents": "true", "cayley_solver": "cg", "sparsity": "hard"}),
    "spectral": ("spectral_lm", "torch", {"xsa_layers": 0} | GRIDS),
    "spectral_mlx": ("spectral_lm", "mlx", {"xsa_layers": 0, "embed_dim": 32, "chunk": 4, "chunk_rank": 16}),
    "spectral_climbing": ("spectral_lm", "torch to mlx", {"ladder": "0.25,1", "chunk": 4, "chunk_rank": 16, "embed_dim": 32}),
    "energy": ("energy", "torch", {"xsa_layers": 0} | GRIDS),
    "energy_mlx": ("energy", "mlx to torch", {"relaxation_steps": 3, "isolate_documents": "true"}),
    "moving": ("unet", "torch", {"seq_schedule": "8:0.3,16:0.6", "batch_schedule": "128:0.5", "noise": 0.1, "drop_path": 0.1}),
    "moving_mlx": ("hybrid", "mlx to torch", {"seq_schedule": "8:0.3", "noise": 0.1, "drop_path": 0.1, "ema_decay": 0.8}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_record_of_every_part(name, data, tmp_path):
    arch, libraries, settings = PARTS[name]
    trainer, _, builder = libraries.partition(" to ")
    changed = [f"{key}={value}" for key, value in (TINY_ARCH.get(arch, {}) | settings).items()]
    script = "train_gpt.py" if trainer == "torch" else "train_gpt_mlx.py"
    trained = run(script, *TINY, f"model.name={arch}", *changed, f"data_path={data}", f"out_path={tmp_path}/run")
    assert trained.returncode == 0, trained.stderr
    options = ["--dce", "--quick-start", "--records", tmp_path / "records", "--backend", builder or trainer]
    built = run("build_submission.py", "--run", tmp_path / "run", *options)
    assert built.returncode == 0, built.stdout + built.stderr
    folder = Path(built.stdout.strip().splitlines()[-1])
    checks = json.loads((folder / "certificate.json").read_text())["checks"]
    assert len(checks) >= 12 and all(check["verdict"] == "pass" for check in checks)
    submission, needed = json.loads((folder / "submission.json").read_text()), (folder / "requirements.txt").read_text()
    assert submission["bytes_total"] < 100_000
    assert submission["library"] == (builder or trainer) and needed.startswith(submission["library"] + "==")
