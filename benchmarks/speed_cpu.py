"""Speed of training on this machine's processor: python -m benchmarks.speed_cpu [--peer train_gpt.py] [--json FILE]

Without --peer: tokens/s, milliseconds by phase, MFU against the measured matrix rate, peak memory, recompilations and host reads of
shapes from 1 M to 120 M parameters, each row in a process of its own. With --peer: the contest's own script, adapted to the processor
(benchmarks/speed_peer.py), and this trainer run in turns on the same tokens, shape and threads; both sides first choose their fastest
of float32 and bfloat16, compiled and eager, eight micro-batches and fewer. Only the ratio is comparable between machines.

The peer's shape: 3 layers, 72 wide, 4 query and 2 key heads of 18 channels, MLP 2x, vocabulary 1024, tied embedding, windows of 256,
16,384 tokens a step. Ours: the same, without value residual and engram memory; `dense` stores all weights as 16-bit floats, `ternary`
matrices in groups of 72 and an 8-bit embedding.
"""

import argparse
import itertools
import os
import tempfile

from benchmarks.speed import LENGTHS, SHAPES, shape_environment, shape_settings, table, write_json
from benchmarks.speed_peer import CONTEST, PEER_COLUMNS, alternate, fastest, ours, peer, write_tokens
from benchmarks.speed_rows import COLUMNS, measured_rows

SEQUENCE, TOKENS = 256, 16384
DENSE = ["quant.matrix_scheme=fp16", "quant.embed_bits=16"]
ROWS = [("1m", 512), ("1m", 2048), ("5m", 512), ("5m", 8192), ("23m", 512), ("67m", 512), ("120m", 512)]


def peers(path, folder, steps, tiny):
    """The contest's script in all its variants."""
    environment = shape_environment("contest", SEQUENCE, 2048 if tiny else TOKENS, steps, folder)
    environment |= {"WARMUP_STEPS": 2, "TRAIN_LOG_EVERY": 5}
    environment = {name: str(value) for name, value in environment.items()}
    choices = itertools.product(([], ["float32"]), (["eager"],) if tiny else ([], ["eager"]), ([], ["one_part"]))
    for edits in (["cpu", *itertools.chain(*choice)] for choice in choices):
        yield peer("peer " + " ".join(edits[1:]), path, CONTEST, edits, environment, folder)


def trained_alike(kind, folder, tokens, steps):
    """`key=value` strings of this trainer for the peer's shape, `tokens` a step; `kind` is dense or ternary."""
    settings = shape_settings("contest", SEQUENCE, tokens) + (DENSE if kind == "dense" else [])
    return settings + ["model.value_residual=false", "train.muon_backend_steps=5", f"train.iterations={steps}", f"data_path={folder}"]


def variants(kind, folder, steps, tiny):
    """This trainer in the same variants."""
    settings = trained_alike(kind, folder, 2048 if tiny else TOKENS, steps) + ["train.log_every=5"]
    forms = [(False, 1)] if tiny else [(True, 8), (True, 2), (False, 8)]
    for dtype, (compiled, parts) in itertools.product(("float32", "bfloat16"), forms):
        choice = [f"train.compute_dtype={dtype}", f"train.compile={compiled}", f"train.grad_accum_steps={parts}"]
        choice.append("train.attention_kernel=float32")
        name = f"{kind} {dtype} {'compiled' if compiled else 'eager'} {parts}"
        yield ours(name, settings + choice, folder)


def compare(path, rounds, steps, tiny, names, say):
    """Rows of `PEER_COLUMNS`, the peer's first: of the fastest variants, or of those called `names`."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokens(folder, SHAPES["contest"][5], 1 << 20, SEQUENCE)
        sides = [list(peers(path, folder, steps, tiny)), *(list(variants(kind, folder, steps, tiny)) for kind in ("dense", "ternary"))]
        if names:
            chosen = [contender for side in sides for contender in side if contender.name in names]
        else:
            say("choosing the fastest variants")
            chosen = [fastest(side, steps // 3, say) for side in sides]
        return alternate(chosen, rounds, steps // 3, 2048 if tiny else TOKENS, say)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the contest's train_gpt.py")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--variant", action="append", help="compare these alone, the peer's first, by names that an earlier run printed")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=30, help="steps of a turn, the last two thirds of them timed")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--row", action="append", help=f"SHAPE:LENGTH of {', '.join(SHAPES)} and {LENGTHS}; repeat")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step of the rows, at least one window")
    parser.add_argument("--more", type=int, default=0, help="further steps in which only the growth of memory is watched")
    parser.add_argument("--give-back", action="store_true", help="rows whose freed memory goes back to the system after every use")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, for a test")
    parser.add_argument("settings", nargs="*", help="key=value for the rows")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    def say(text):
        print(text, flush=True)

    results = {}
    if options.peer:
        results["peer"] = compare(options.peer, options.rounds, options.steps, options.tiny, options.variant, say)
        say(table(results["peer"], PEER_COLUMNS))
    if options.row or not options.peer:
        rows = [(name, int(length)) for name, length in (row.split(":") for row in options.row)] if options.row else ROWS
        results["machine"], results["rows"] = measured_rows(
            rows[:1] if options.tiny else rows,
            options.tokens,
            options.settings,
            options.threads,
            2 if options.tiny else 5,
            options.more,
            say,
            keep=not options.give_back,
        )
        say(f"{results['machine']}\n{table(results['rows'], COLUMNS)}")
    write_json(options.json, results)


if __name__ == "__main__":
    main()
