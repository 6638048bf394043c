"""What tests of the relaxation's probes share: a run folder of a small equilibrium model, on characters of the embedded documentation."""

import contextlib
import dataclasses
import json
from collections import Counter

import numpy as np
from model_fixtures import start, tiny_config

from trit.config import RunArgs
from trit.config_load import save
from trit.data.corpus import pydocs
from trit.data.shards import write_shard
from trit.models import load_arch
from trit.ops import torch_ops
from trit.train.checkpoint import save_checkpoint
from trit.train.log import RunLog
from trit.train.probe import with_probe
from trit.train.run import run_training

# The smallest size at which the instabilities of the large one appear: without a penalty it loses its rests after some 400 steps.
SMALL = {
    "num_layers": 1,
    "model_dim": 64,
    "embed_dim": 64,
    "num_heads": 4,
    "mlp_mult": 4,
    "train_batch_tokens": 512,
    "relax_steps": 60,
    "relax_rate": 0.25,
    "free_budget": 200,
    "residual_gate": 0.01,
    "jacobian_penalty": 0.0,
    "cell_optimizer": "adam",
    "scalar_lr": 0.003,
    "embed_lr": 0.003,
    "matrix_scheme": "fp16",
    "embed_bits": 16,
    "calibration_tokens": 2048,
    "warmup_steps": 0,
}
TINIEST = {"num_layers": 1, "model_dim": 16, "embed_dim": 16, "mlp_mult": 2, "relax_steps": 16, "relax_rate": 0.25, "train_seq_len": 8}


def character_shards(folder, characters=200_000):
    """A data folder of the documentation's 63 commonest characters, all others being one; training split and a short validation split."""
    text = "".join(pydocs())[: characters + 2000]
    places = {letter: number + 1 for number, (letter, _) in enumerate(Counter(text).most_common(63))}
    ids = np.array([places.get(letter, 0) for letter in text])
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "chars_train_000000.bin", ids[:characters])
    write_shard(folder / "chars_val_000000.bin", ids[characters:])
    return str(folder)


def run_folder(folder, data, arch="equilibrium", stop=0, **settings):
    """Folder of a run trained on the shards in `data`: what the command line of training leaves there. With `stop` its checkpoint is that of
    that step, as an interrupted run's is."""
    cfg = tiny_config(arch, **{"vocab_size": 64} | settings)
    folder.mkdir(parents=True, exist_ok=True)
    save(cfg, folder / "config.json")
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(RunArgs(data_path=data, out_path=str(folder)))))
    module, log, last = load_arch(arch), RunLog(0, folder), []
    specs = module.param_specs(cfg)
    backend, taken = with_probe(start(cfg), torch_ops, module, cfg, specs, log), []

    def step(*arguments):
        wait = backend.step(*arguments)

        def finish():
            taken.append(wait())
            if len(taken) == stop:
                raise KeyboardInterrupt
            return taken[-1]

        return finish

    with contextlib.suppress(KeyboardInterrupt):
        run_training(
            cfg,
            specs,
            backend._replace(step=step),
            data,
            1,
            log,
            None,
            lambda *state: last.append(save_checkpoint(folder / "checkpoint.npz", cfg, *state)),
        )
    assert last
    return folder
