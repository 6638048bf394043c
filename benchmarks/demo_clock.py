"""Is more time ever worse? python -m benchmarks.demo_clock [--times 0.5 1 2] [--seeds 1 2 3] [--log FILE] [NAME:key=value,... ...]

Example, the demo as it is and with a lower rate: python -m benchmarks.demo_clock --log runs/clock.jsonl demo: low:train.matrix_lr=0.007

Every name trains --config for each seed and each multiple of the preset's seconds, is calibrated and packed as the demo is, reloaded, and
scored by the preset's evaluator on --tokens of held-out training text, which neither training nor calibration has read. Validation text is
never read. Lines are appended to --log as they come, and what stands there is not done again, so that this goes on where it was stopped.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import trit.train.run
from trit.config_load import load, with_overrides
from trit.data.byte_count import byte_table
from trit.data.loader import calibration_tokens, open_train_split
from trit.data.manifest import read_manifest, resolve_tokenizer
from trit.eval.score import score_tokens, summarise
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import compressed, find_calibration, load_artifact, train_weights
from trit.train import torch_backend
from trit.train.log import Log


def measure(config, run, seed, held_out):
    """Train, pack, reload and score one configuration -> what a line of the log says of it."""
    arch, process, log = load_arch(config.model.name), torch_backend.start_process(), Log(rank=1)
    torch._dynamo.reset()
    longer = with_overrides(config, [f"compress.calibration_tokens={config.compress.calibration_tokens + held_out}"])
    arrays, result = train_weights(torch_ops, torch_backend, arch, longer, process, run.data_path, seed, log)
    calibration = find_calibration(torch_ops, torch_backend, arch, config, process, arrays, run.data_path, log)
    _, data = compressed(torch_ops, torch_backend, arch, config, process, arrays, calibration, run.data_path, log)
    loaded = load_artifact(torch_ops, arch, config, data)
    tokens = calibration_tokens(longer, run.data_path)[:held_out]
    table = byte_table(resolve_tokenizer(run.data_path, run.tokenizer_path), config.model.vocab_size)
    model = torch_backend.evaluator(torch_ops, arch, config, loaded, process)
    losses, counts, _ = score_tokens(torch_ops, arch, config, model, tokens)
    text = sum(map(len, open_train_split(longer, run.data_path)[0]))
    return {
        "bpb": summarise(losses, counts, tokens, table).bpb,
        "steps": result.steps,
        "epochs": round(result.steps * config.train.train_batch_tokens / text, 2),
        "train_seconds": round(result.seconds, 1),
        "model_bytes": len(data),
    }


def done_before(path):
    """{key: line} of a log, or nothing where there is none."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def table_of(found, names, times, seeds):
    """Lines: a row for each name and multiple with the mean over seeds, then for each name what each step to more time changed."""
    lines = [f"{'name':<20}{'time':>6}{'bits/byte':>11}{'+-':>8}{'steps':>8}{'epochs':>8}{'bytes':>9}"]
    verdicts = []
    for name in names:
        for factor in times:
            entries = [found[name, factor, seed] for seed in seeds]
            mean = {key: statistics.mean(entry[key] for entry in entries) for key in ("bpb", "steps", "epochs")}
            spread = statistics.stdev(entry["bpb"] for entry in entries) if len(seeds) > 1 else float("nan")
            most = max(entry["model_bytes"] for entry in entries)
            lines.append(f"{name:<20}{factor:>6g}{mean['bpb']:>11.4f}{spread:>8.4f}{mean['steps']:>8.0f}{mean['epochs']:>8.2f}{most:>9}")
        for less, more in zip(times, times[1:]):
            apart = [found[name, more, seed]["bpb"] - found[name, less, seed]["bpb"] for seed in seeds]
            worse = sum(difference > 0 for difference in apart)
            verdicts.append(f"{name}: {less:g} to {more:g} times: {statistics.mean(apart):+.4f}; worse for {worse} of {len(seeds)} seeds")
    return lines + verdicts


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.toml")
    parser.add_argument("--base", nargs="*", default=[], help="key=value of every name")
    parser.add_argument("--times", nargs="+", type=float, default=[0.5, 1.0, 2.0], help="multiples of the preset's seconds")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, help="in place of train.max_wallclock_seconds")
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out tokens that are scored")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU seconds over threads, for a busy machine")
    parser.add_argument("--log", type=Path, help="file of JSON lines")
    parser.add_argument("names", nargs="*", default=["demo:"], metavar="NAME:key=value,...")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.clock == "cpu":
        trit.train.run.wall_clock = lambda: time.process_time() / options.threads
    variants = {name: [part for part in changes.split(",") if part] for name, _, changes in (item.partition(":") for item in options.names)}
    known, found = done_before(options.log), {}
    for seed in options.seeds:
        for name, changes in variants.items():
            for factor in options.times:
                settings = ["track.train_seconds=0", *options.base, *changes]
                config, run, _ = load(options.config, environ={}, overrides=settings)
                seconds = (options.seconds or config.train.max_wallclock_seconds) * factor
                config = with_overrides(config, [f"train.max_wallclock_seconds={seconds}"])
                texts = [part["text_sha256"][:16] for part in (read_manifest(run.data_path) or {"splits": {}})["splits"].values()]
                key = json.dumps([repr(config), run.data_path, texts, seed, options.tokens, options.clock, options.threads])
                entry = known.get(key)
                if not entry:
                    entry = {"name": name, "times": factor, "seed": seed} | measure(config, run, seed, options.tokens) | {"key": key}
                    if options.log:
                        options.log.parent.mkdir(parents=True, exist_ok=True)
                        with open(options.log, "a") as file:
                            file.write(json.dumps(entry) + "\n")
                found[name, factor, seed] = entry
                print(f"seed {seed} {name} {factor:g}: {entry['bpb']:.4f} after {entry['steps']} steps", flush=True)
    print("\n".join(table_of(found, variants, options.times, options.seeds)))


if __name__ == "__main__":
    main()
