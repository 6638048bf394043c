"""Loss of settings that should learn alike, on the same batches: python -m benchmarks.paired_loss [--config FILE] NAME:key=value,... ...

Example, the cost of products in 8-bit floats: python -m benchmarks.paired_loss plain: eight_bits:train.fp8=true --base
quant.bitnet_group_size=4096 train.compile=false

Every name trains from the same weights on the same batches, for each of --seeds, a fixed number of --steps that the schedule is made for.
Printed: the loss in nats a token of the weights as stored, on held-out training text, and its distance from the first name's, with the
standard error over seeds. Validation text is never read.
"""

import argparse
import statistics

import torch

from trit.compress.calibrate import stored_arrays
from trit.config_load import load
from trit.data.loader import calibration_tokens
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import loss_meter, train_weights
from trit.train import torch_backend
from trit.train.log import Log

FIXED = ["train.max_wallclock_seconds=0", "track=non_record_16mb", "train.warmup_steps=1", "eval.fit_temperature=false"]


def held_out_loss(preset, settings, seed):
    """Train one configuration and measure the stored weights -> nats a token."""
    config, run, _ = load(preset, environ={}, overrides=settings)
    arch, process = load_arch(config.model.name), torch_backend.start_process()
    torch._dynamo.reset()
    arrays, _ = train_weights(torch_ops, torch_backend, arch, config, process, run.data_path, seed, Log(rank=1))
    p = {name: torch_ops.from_numpy(array) for name, array in arrays.items()}
    stored = stored_arrays(torch_ops, config, artifact_specs(arch, config), p, {})
    return loss_meter(torch_ops, torch_backend, arch, config, process, calibration_tokens(config, run.data_path))(stored)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--base", nargs="*", default=[], help="key=value of every name")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out tokens")
    parser.add_argument("names", nargs="+", metavar="NAME:key=value,...")
    options = parser.parse_args()
    fixed = [*FIXED, f"train.iterations={options.steps}", f"compress.calibration_tokens={options.tokens}", *options.base]
    variants = {name: [part for part in changes.split(",") if part] for name, _, changes in (item.partition(":") for item in options.names)}
    found = {name: [] for name in variants}
    for seed in range(options.seeds):
        for name, changes in variants.items():
            found[name].append(held_out_loss(options.config, fixed + changes, seed))
            print(f"seed {seed} {name}: {found[name][-1]:.4f}", flush=True)
    first = next(iter(found.values()))
    for name, losses in found.items():
        apart = [b - a for a, b in zip(first, losses)]
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        print(f"{name}: {statistics.mean(losses):.4f}, {statistics.mean(apart):+.4f} +- {error:.4f} from the first")


if __name__ == "__main__":
    main()
