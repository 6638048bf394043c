"""Speed of training on GPUs: python -m benchmarks.speed_gpu [--peer SCRIPT] [--json FILE], or under torchrun for several GPUs.

Prints the roofline of the public ternary entry's shape (benchmarks/speed.py), with or without a GPU. With one: tokens/s, milliseconds
by phase (GPU events), MFU against the measured bf16 matrix rate, peak memory, recompilations and host synchronisations after the first
steps, of shapes from 1 M to 120 M parameters and windows from 512 to 8192. With --peer: the public ternary entry's own script and this
trainer in turns on one GPU, the same shape and 65,536 tokens a step, as each of its eight GPUs takes. Only the ratio is comparable.

The entry's shape: 10 layers, 768 wide, 8 query and 4 key heads, MLP 4x, vocabulary 8192, embedding 254 (ours 256), groups of 128,
windows of 1024, 3 Newton-Schulz steps; its remaining settings are those of its launch script. `--device cpu --tiny` runs everything on
a shape that a test can afford.
"""

import argparse
import importlib.util
import os
import tempfile

import torch

from benchmarks.speed import (
    H100,
    LENGTHS,
    SHAPES,
    build,
    flops_per_token,
    roofline,
    roofline_table,
    shape_environment,
    shape_settings,
    table,
    write_json,
)
from benchmarks.speed_peer import PEER_COLUMNS, TERNARY, alternate, fastest, ours, peer, write_tokens
from benchmarks.speed_rows import COLUMNS, measured_rows

ENTRY, SEQUENCE, TOKENS = "67m", 1024, 65536
FAST = ["train.compute_dtype=bfloat16", "train.compile=true"]
ROWS = [(name, SEQUENCE) for name in ("1m", "5m", "23m", "67m", "120m")] + [(ENTRY, n) for n in LENGTHS if n != SEQUENCE]
# What the entry's launch script sets beside its shape.
ENTRY_SETTINGS = {
    "TVERSKY_NUM_FEATURES": 0,
    "TRAINING_DEPTH_RECURRENCE": 0,
    "EVAL_DEPTH_RECURRENCE": 0,
    "MUON_BACKEND_STEPS": 3,
    "MATRIX_OPTIMIZER": "muon",
    "LOGIT_SOFTCAP": 10,
    "QK_GAIN_INIT": 2.25,
    "ROPE_TYPE": "yarn",
    "YARN_MAX_LEN": 2048,
    "ROPE_BASE": 5000,
    "SEQ_SCHEDULE_FRACTION": 0.0,
    "WARMUP_STEPS": 5,
    "VAL_LOSS_EVERY": 0,
    "CHURN_LOG_EVERY": 0,
    "VAL_MAX_TOKENS": 0,
    "ACTIVATION": "relu2",
    "SOFTCAP_TYPE": "poly",
    "FP_STORAGE": "FP8",
    "COMPILE_MODE": "default",
}


def contenders(path, folder, steps, tiny, cpu):
    """([peers], [ours], tokens a step) that read the tokens in `folder`."""
    shape = "tiny" if tiny else ENTRY
    vocabulary, embedding = SHAPES[shape][5:]
    length, tokens = (64, 256) if tiny else (SEQUENCE, TOKENS)
    write_tokens(folder, vocabulary, (steps + 20) * tokens, length)
    environment = ENTRY_SETTINGS | shape_environment(shape, length, tokens, steps, folder)
    environment |= {
        "EMBED_DIM": embedding if tiny else 254,
        "BITNET_GROUP_SIZE": 32 if tiny else 128,
        "TRAIN_LOG_EVERY": 2 if tiny else 10,
    }
    environment = {name: str(value) for name, value in environment.items()}
    edits = ["one_part"] + (["cpu", "eager"] if cpu else [])
    if cpu or not importlib.util.find_spec("flash_attn_interface"):
        edits.append("torch_attention")
    settings = shape_settings(shape, length, tokens) + ([] if tiny else FAST)
    settings += [f"train.iterations={steps}", f"train.log_every={environment['TRAIN_LOG_EVERY']}", f"data_path={folder}"]
    choices = [["train.loss_chunk_tokens=0"], ["train.loss_chunk_tokens=16384"]]
    mine = [ours("ours " + " ".join(choice), settings + choice, folder) for choice in (choices[:1] if tiny else choices)]
    return [peer("peer " + " ".join(edits), path, TERNARY, edits, environment, folder)], mine, tokens


def rooflines(world, say):
    """The roofline of the entry's shape with bf16 and fp8 products, printed -> {name: rows}."""
    found = {}
    for name in ("bfloat16", "float8"):
        config, _, specs = build(shape_settings(ENTRY, SEQUENCE, TOKENS * world) + FAST, world)
        rows = roofline(config, specs, world, product_type=name)
        found[name] = [row._asdict() for row in rows]
        say(f"roofline of {ENTRY} on one of {world} H100, {TOKENS:,} tokens a GPU, products in {name}:")
        say(roofline_table(rows, TOKENS, flops_per_token(config, specs), H100["bfloat16"]) + "\n")
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the public ternary entry's training script")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=90, help="steps of a turn, the last two thirds of them timed")
    parser.add_argument("--row", action="append", help=f"SHAPE:LENGTH of {', '.join(SHAPES)} and {LENGTHS}; repeat")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens a step of the rows on each GPU")
    parser.add_argument("--more", type=int, default=0, help="further steps in which only the growth of memory is watched")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, for a test")
    parser.add_argument("settings", nargs="*", help="key=value for the rows")
    options = parser.parse_args(arguments)
    rank, world, cpu = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)), options.device == "cpu"

    def say(text):
        if rank == 0:
            print(text, flush=True)

    results = {"roofline": rooflines(world, say)}
    if not cpu and not torch.cuda.is_available():
        say("no GPU here: nothing is measured (--device cpu --tiny tries the code)")
    else:
        if options.peer:
            with tempfile.TemporaryDirectory() as folder:
                peers, mine, tokens = contenders(options.peer, folder, options.steps, options.tiny, cpu)
                best = [fastest(side, options.steps // 3, say) for side in (peers, mine)]
                results["peer"] = alternate(best, options.rounds, options.steps // 3, tokens, say)
            say(table(results["peer"], PEER_COLUMNS))
        if options.row or not options.peer:
            rows = [(name, int(length)) for name, length in (row.split(":") for row in options.row)] if options.row else ROWS
            rows, settings = ([("tiny", 64)], []) if options.tiny else (rows, FAST)
            results["machine"], results["rows"] = measured_rows(
                rows, 256 if options.tiny else options.tokens * world, settings + options.settings, 0, 20, options.more, say, alone=False
            )
            say(f"{results['machine']}\n{table(results['rows'], COLUMNS)}")
    if rank == 0:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
