"""Checkpoints: every state of a run in one file without pickle, written aside and renamed, so that a crash leaves the old one."""

import json
import os
from pathlib import Path

import numpy as np

from trit.config_load import from_dict, to_dict

KEY = "checkpoint.json"


def save_checkpoint(path, config, state, step, seconds, position):
    """Write {name: array} `state` with step, seconds on the clock and the loader's position."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"config": to_dict(config), "step": step, "seconds": seconds, "position": position}
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, **state, **{KEY: np.frombuffer(json.dumps(about).encode(), np.uint8)})
    os.replace(temporary, path)


def load_checkpoint(path):
    """(config, state, step, seconds, position); ValueError where the file is missing or damaged."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no checkpoint at {path}; train first (python train_gpt.py ...) or name another run folder")
    try:
        with np.load(path, allow_pickle=False) as file:
            state = {name: file[name] for name in file.files if name != KEY}
            about = json.loads(bytes(file[KEY]))
    except Exception as fault:
        raise ValueError(f"{path} is damaged ({fault}); delete it and train again") from None
    return from_dict(about["config"]), state, about["step"], about["seconds"], about["position"]


def trained_arrays(state):
    """The weights a checkpoint stands for: the moving average where there is one, else the parameters."""
    kind = "ema/" if any(name.startswith("ema/") for name in state) else "p/"
    return {name.removeprefix(kind): array for name, array in state.items() if name.startswith(kind)}
