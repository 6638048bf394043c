"""Train and score a list of small variants one after another, at equal training cost: python benchmarks/sweep.py STUDY.toml

STUDY.toml: `preset` (a config file), `base` (list of key=value) and a table `variants` (name -> list of key=value). Training is
charged in CPU seconds of the process over the number of threads, so that a busy machine does not change the number of steps.
Appends one JSON line a variant to OUT (default runs/<study name>.jsonl) and skips variants that are there already; the trained
weights stay beside it, in a folder of the study's name.
"""

import argparse
import json
import time
import tomllib
from pathlib import Path

import numpy as np
import torch

import trit.train.run
from trit.config_load import load
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import find_calibration, load_artifact, make_artifact, score_arrays, train_weights
from trit.train.log import Log
from trit.train.torch_backend import start_process


def run_variant(name, preset, settings, folder, scored, log):
    """Train, calibrate, pack, reload and score one variant -> record. The trained weights go to `folder`; without `scored` that is all."""
    config, run, _ = load(preset, environ={}, overrides=settings)
    arch, process = load_arch(config.model.name), start_process()
    torch._dynamo.reset()
    arrays, result = train_weights(torch_ops, arch, config, process, run.data_path, run.seed, log)
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    if not scored:
        return {"name": name, "steps": result.steps, "seconds": round(result.seconds, 1), "settings": settings}
    calibration = find_calibration(torch_ops, arch, config, process, arrays, run.data_path, log)
    data = make_artifact(torch_ops, arch, config, arrays, calibration)
    begin = time.perf_counter()
    score, _ = score_arrays(
        torch_ops, arch, config, process, load_artifact(torch_ops, arch, config, data), run.data_path, run.tokenizer_path, log
    )
    tokens = result.steps * config.train.train_batch_tokens
    return {
        "name": name,
        "bpb": round(score.bpb, 4),
        "bytes_model": len(data),
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "tokens_per_second": round(tokens / result.seconds),
        "skipped": result.skipped,
        "eval_seconds": round(time.perf_counter() - begin, 1),
        "settings": settings,
    }


def show_table(records):
    """Markdown table of the records, with what each variant changes."""
    print("| variant | bits per byte | bytes of weights | steps | tokens/s | change |\n|---|---|---|---|---|---|")
    for r in records:
        change = " ".join(r["change"]).replace("|", "/") or "-"
        print(f"| {r['name']} | {r['bpb']:.4f} | {r['bytes_model']:,} | {r['steps']:,} | {r['tokens_per_second']:,} | {change} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--out")
    parser.add_argument("--table", action="store_true", help="print the finished variants as a Markdown table and stop")
    parser.add_argument("--weights-only", action="store_true", help="train and keep the weights, do not score")
    parser.add_argument("--only", nargs="*", help="names of the variants to run")
    options = parser.parse_args()
    with open(options.study, "rb") as file:
        study = tomllib.load(file)
    out = Path(options.out or f"runs/{Path(options.study).stem}.jsonl")
    out.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if options.table:
        return show_table([r | {"change": [s for s in r["settings"] if s not in study["base"]]} for r in records])
    done = {record["name"] for record in records}
    threads = torch.get_num_threads()
    trit.train.run.wall_clock = lambda: time.process_time() / threads
    for name, settings in study["variants"].items():
        if name in done or (options.only and name not in options.only):
            continue
        print(f"== {name}", flush=True)
        record = run_variant(name, study.get("preset"), study["base"] + settings, out.with_suffix(""), not options.weights_only, Log())
        with open(out, "a") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
