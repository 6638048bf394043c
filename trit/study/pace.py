"""How long a variant's training takes beside the first variant's: python -m trit.study.pace FILE, which holds preset, first and other settings.

Both train in turn, a few steps each time and through all phases of their schedules, so that a machine's other work slows both alike.
Prints the ratio as JSON. On a shared machine this and a fixed number of steps compare variants at equal time where no clock could.
"""

import json
import statistics
import sys
from pathlib import Path

from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.train.log import Log
from trit.train.run import run_training
from trit.train.torch_backend import make_backend, start_process

STEPS, ROUNDS = 20, 7


def trainer(preset, settings, seed):
    """Function that trains a few steps anew, compiled once -> seconds."""
    fixed = [f"train.iterations={STEPS}", "train.max_wallclock_seconds=0", "track.train_seconds=0"]
    config, run, _ = load(preset, environ={}, overrides=[*settings, *fixed])
    arch = load_arch(config.model.name)
    specs = arch.param_specs(config)
    backend = make_backend(torch_ops, arch, config, specs, init_params(specs, seed), start_process())
    return lambda: run_training(config, specs, backend, run.data_path, seed, Log(rank=1), None, lambda *state: None).seconds


def main():
    """Print {ratio, rounds}: seconds of the other settings over seconds of the first, the median and every round."""
    said = json.loads(Path(sys.argv[1]).read_text())
    both = [trainer(said["preset"], said[name], 1) for name in ("first", "other")]
    for train in both:
        train()
    ratios = []
    for turn in range(ROUNDS):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        seconds = {place: both[place]() for place in order}
        ratios.append(seconds[1] / seconds[0])
    print(json.dumps({"ratio": statistics.median(ratios), "rounds": [round(ratio, 4) for ratio in ratios]}))


if __name__ == "__main__":
    main()
