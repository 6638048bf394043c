"""Bytes and loss of a trained run whose engram is pruned: python -m benchmarks.engram_keep --run RUN [--data FOLDER] [--json FILE]

For each share of rows kept: the packed bytes (nothing is calibrated), those of the map of rows, and the loss on training text that was
never trained on. Rows are chosen on the first half of that text and the loss is the second half's. Validation text is not opened.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from trit.compress.pack import unpack
from trit.compress.prune import kept_rows
from trit.compress.sizes import sizes
from trit.config import RunArgs
from trit.config_load import with_overrides
from trit.data.loader import calibration_tokens
from trit.models import load_arch
from trit.ops import torch_ops
from trit.submission import load_artifact, loss_meter, make_artifact
from trit.train import torch_backend
from trit.train.checkpoint import load_checkpoint, trained_arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a training run with an engram")
    parser.add_argument("--data", default="", help="folder of token shards; empty takes the run's own")
    parser.add_argument("--keep", default="1 0.5 0.35 0.2 0.15", help="values of compress.engram_keep, blanks between them; 1 is off")
    parser.add_argument("--norm-weight", type=float, default=0.85, help="compress.engram_keep_norm_weight")
    parser.add_argument("--json", help="file for one JSON line a row")
    options = parser.parse_args()
    trained, state, *_ = load_checkpoint(Path(options.run) / "checkpoint.npz")
    run = RunArgs(**json.loads((Path(options.run) / "run.json").read_text()))
    trained = replace(trained, eval=replace(type(trained.eval)(), eval_batch_seqs=8))
    arch, arrays, process = load_arch(trained.model.name), trained_arrays(state), torch_backend.start_process()
    specs, tokens = arch.param_specs(trained), calibration_tokens(trained, options.data or run.data_path)
    chosen_on, measured_on = tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]
    start = None
    print(
        "| rows kept | bytes | engram | of it the map | bits a code | loss, nats | bytes saved | loss added |\n|---|---|---|---|---|---|---|---|"
    )
    for keep in options.keep.split():
        overrides = [f"compress.engram_keep_norm_weight={options.norm_weight}"] + ([] if keep == "1" else [f"compress.engram_keep={keep}"])
        config = with_overrides(trained, overrides)
        weights = dict(arrays)
        if config.compress.engram_keep:
            weights["engram.kept"] = kept_rows(torch_ops, config, arrays["engram.table"], chosen_on)
        data = make_artifact(torch_ops, arch, config, weights, {})
        rows = {row.name: row for row in sizes(config, specs, unpack(config, specs, data), data)}
        table, kept_map = rows["engram.table"], rows.get("engram.table.map")
        loss = loss_meter(torch_ops, torch_backend, arch, config, process, measured_on)(load_artifact(torch_ops, arch, config, data))
        start = start or (len(data), loss)
        found = {
            "run": run.run_id,
            "keep": keep,
            "norm_weight": options.norm_weight,
            "bytes": len(data),
            "engram": table.size + (kept_map.size if kept_map else 0),
            "map": kept_map.size if kept_map else 0,
            "bits_a_code": 8 * table.size / table.count,
            "held_out_nats": loss,
        }
        print(
            f"| {keep} | {found['bytes']:,} | {found['engram']:,} | {found['map']:,} | {found['bits_a_code']:.3f} | {loss:.5f} "
            f"| {start[0] - found['bytes']:,} | {loss - start[1]:+.5f} |",
            flush=True,
        )
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
