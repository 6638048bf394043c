"""Train with PyTorch on CPU or CUDA, alone or under torchrun: python train_gpt.py [--config preset.toml] [key=value ...]

Writes runs/<run_id>/: config.json, train.log, metrics.jsonl, checkpoint.npz. Ctrl-C saves; resume=true continues.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from trit.compress.plan import budget_table, check_plan, plan
from trit.config_load import describe, load, save
from trit.data.manifest import check_vocabulary
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import train_weights
from trit.train.checkpoint import load_checkpoint, save_checkpoint
from trit.train.log import Log
from trit.train.torch_backend import start_process


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="preset, for example configs/demo.toml")
    options, overrides = parser.parse_known_args(arguments)
    try:
        config, run, origins = load(options.config, os.environ, overrides, int(os.environ.get("WORLD_SIZE", 1)))
        folder = Path(run.out_path or f"runs/{run.run_id}")
        checkpoint = folder / "checkpoint.npz"
        resumed = None
        if run.resume:
            before, *resumed = load_checkpoint(checkpoint)
            if before != config:
                raise ValueError(f"{checkpoint} was made with another configuration; resume with the settings of {folder}/config.json")
        process = start_process()
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(process.rank, folder, keep=run.resume)
        if process.rank == 0:
            save(config, folder / "config.json")
            (folder / "run.json").write_text(json.dumps(dataclasses.asdict(run)) + "\n")
        log.line(describe(config, run, origins))
        made = plan(config, load_arch(config.model.name).param_specs(config), config.compress.code_bytes_reserve)
        log.line(budget_table(made, config.track.cap_bytes))
        check_plan(made, config.track.cap_bytes)
        check_vocabulary(run.data_path, config.model.vocab_size)

        def save_state(*state):
            if process.rank == 0:
                save_checkpoint(checkpoint, config, *state)

        train_weights(torch_ops, load_arch(config.model.name), config, process, run.data_path, run.seed, log, resumed, save_state)
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; the state is saved. Continue with the same command and resume=true (checkpoint: {checkpoint})")
    except (ValueError, FloatingPointError) as fault:
        sys.exit(f"error: {fault}")
    log.line(f"checkpoint: {checkpoint}; next: python build_submission.py --run {folder} --dce")


if __name__ == "__main__":
    main()
