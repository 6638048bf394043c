"""A finished training run as the evaluation benchmarks use it: packed, reloaded, and evaluated by default settings."""

import json
from dataclasses import replace
from pathlib import Path

from trit.config import RunArgs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import load_artifact, make_artifact
from trit.train.checkpoint import load_checkpoint, trained_arrays


def load_trained(folder):
    """(Config with the default evaluation, RunArgs, architecture module, {name: float32 array} reloaded from the packed weights) of
    the run in `folder`. Nothing is calibrated or pruned; what differs from the default evaluation is the benchmark's to say."""
    config, state, *_ = load_checkpoint(f"{folder}/checkpoint.npz")
    config = replace(config, eval=type(config.eval)(), compress=replace(config.compress, engram_keep=""))
    arch = load_arch(config.model.name)
    loaded = load_artifact(torch_ops, arch, config, make_artifact(torch_ops, arch, config, trained_arrays(state), {}))
    return config, RunArgs(**json.loads((Path(folder) / "run.json").read_text())), arch, loaded
