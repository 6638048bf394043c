"""Train with MLX on Apple GPUs or any CPU, alone or under mlx.launch: python train_gpt_mlx.py [--config preset.toml] [key=value ...]

Writes runs/<run_id>/: config.json, train.log, metrics.jsonl, checkpoint.npz. Ctrl-C saves; resume=true continues.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from trit.config_load import describe, load, save
from trit.models import load_arch
from trit.ops import mlx_ops
from trit.params import init_params
from trit.train.checkpoint import load_checkpoint, save_checkpoint
from trit.train.log import Log
from trit.train.mlx_backend import make_backend, start_process
from trit.train.run import run_training


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="preset, for example configs/demo.toml")
    options, overrides = parser.parse_known_args(arguments)
    try:
        process = start_process()
        config, run, origins = load(options.config, os.environ, overrides, process.world)
        folder = Path(run.out_path or f"runs/{run.run_id}")
        checkpoint = folder / "checkpoint.npz"
        resumed = None
        if run.resume:
            before, *resumed = load_checkpoint(checkpoint)
            if before != config:
                raise ValueError(f"{checkpoint} was made with another configuration; resume with the settings of {folder}/config.json")
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(process.rank, folder, keep=run.resume)
        if process.rank == 0:
            save(config, folder / "config.json")
            (folder / "run.json").write_text(json.dumps(dataclasses.asdict(run)) + "\n")
        log.line(describe(config, run, origins))

        def save_state(*state):
            if process.rank == 0:
                save_checkpoint(checkpoint, config, *state)

        arch = load_arch(config.model.name)
        specs = arch.param_specs(config)
        backend = make_backend(mlx_ops, arch, config, specs, init_params(specs, run.seed), process)
        run_training(config, specs, backend, run.data_path, run.seed, log, resumed, save_state)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; the state is saved. Continue with the same command and resume=true (checkpoint: {checkpoint})")
    except (ValueError, FloatingPointError) as fault:
        sys.exit(f"error: {fault}")
    log.line(f"checkpoint: {checkpoint}; next: python build_submission.py --run {folder} --dce")


if __name__ == "__main__":
    main()
