"""Speed of training with MLX beside the contest's own MLX script: python -m benchmarks.speed_mlx --peer train_gpt_mlx.py [--json FILE]

Both run in turns on the same random tokens, shape and machine (benchmarks/speed_peer.py), each in its fastest form of float32 and
bfloat16, compiled and eager, one micro-batch and several. On a Mac that is its GPU; elsewhere MLX's CPU kernels, whose matrix products
are slow: tiny shapes. Only the ratios are comparable between machines.

The shape: 3 layers, 72 wide, 4 query and 2 key heads of 18 channels, MLP 2x, vocabulary 1024, tied embedding, windows of 256. Ours: the
same, without value residual and engram memory; `dense` stores all weights as 16-bit floats, `ternary` matrices in groups of 72.
"""

import argparse
import itertools
import tempfile

from benchmarks.speed import SHAPES, shape_environment, table, write_json
from benchmarks.speed_cpu import SEQUENCE, trained_alike
from benchmarks.speed_peer import PEER_COLUMNS, alternate, fastest, ours, peer, write_tokens

OURS_MLX = """import sys; sys.path.insert(0, sys.argv[1])
import mlx.core as mx; from train_gpt_mlx import main
main(sys.argv[2:])
print(f"peak memory allocated: {mx.get_peak_memory() // 1024 // 1024} MiB")"""
# No tokenizer, no validation, nothing written: training alone.
CONTEST_MLX = {
    "always": [
        ("sp = spm.SentencePieceProcessor(model_file=args.tokenizer_path)", "sp = None", 1),
        ("if int(sp.vocab_size()) != args.vocab_size:", "if False:", 1),
        (
            "validate_dataset_tokenizer_pair(\n        args.data_path,\n        args.tokenizer_path,\n    )",
            '"tokens", 1, None',
            1,
        ),
        ("build_sentencepiece_luts(\n        sp, args.vocab_size\n    )", "None, None, None", 1),
        ("if last_step or (args.val_loss_every > 0 and step % args.val_loss_every == 0):", "if False:", 1),
        (
            '    out_path = out_dir / f"{args.run_id}_mlx_model.npz"\n',
            '    print(f"peak memory allocated: {mx.get_peak_memory() // 1024 // 1024} MiB")\n    return\n',
            1,
        ),
    ],
    "float32": [("COMPUTE_DTYPE = mx.bfloat16", "COMPUTE_DTYPE = mx.float32", 1)],
    "eager": [
        ("mx.compile(lambda x, y: model.loss(x, y), inputs=model.state, outputs=model.state)", "model.loss", 1),
        (
            "mx.compile(\n        nn.value_and_grad(model, lambda x, y: model.loss(x, y)),\n"
            "        inputs=model.state,\n        outputs=model.state,\n    )",
            "nn.value_and_grad(model, lambda x, y: model.loss(x, y))",
            1,
        ),
    ],
}


def forms(tiny):
    """(float32 or not, compiled or not, micro-batches) to choose the fastest of."""
    return [(True, False, 1)] if tiny else itertools.product((True, False), (True, False), (1, 4))


def peers(path, folder, tokens, steps, tiny):
    """The contest's script in all its forms."""
    for float32, compiled, parts in forms(tiny):
        environment = shape_environment("contest", SEQUENCE, tokens, steps, folder) | {
            "WARMUP_STEPS": 2,
            "TRAIN_LOG_EVERY": 2,
            "GRAD_ACCUM_STEPS": parts,
            "VAL_BATCH_SIZE": SEQUENCE * parts,
            "MLX_MAX_MICROBATCH_TOKENS": tokens,
            "TOKENIZER_PATH": "none.model",
        }
        edits = ["float32"] * float32 + ["eager"] * (not compiled)
        name = " ".join(["peer", *edits, str(parts)])
        yield peer(name, path, CONTEST_MLX, edits, {name: str(value) for name, value in environment.items()}, folder)


def variants(kind, folder, tokens, steps, tiny):
    """This trainer in the same forms."""
    for float32, compiled, parts in forms(tiny):
        dtype = "float32" if float32 else "bfloat16"
        settings = trained_alike(kind, folder, tokens, steps) + ["train.log_every=2", f"train.compute_dtype={dtype}"]
        settings += [f"train.compile={compiled}", f"train.grad_accum_steps={parts}"]
        yield ours(f"{kind} {dtype} {'compiled' if compiled else 'eager'} {parts}", settings, folder, OURS_MLX)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="the contest's train_gpt_mlx.py")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--variant", action="append", help="compare these alone, the peer's first, by names that an earlier run printed")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=12, help="steps of a turn, the last two thirds of them timed")
    parser.add_argument("--tiny", action="store_true", help="one form of each, for a test")
    options = parser.parse_args(arguments)

    def say(text):
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_tokens(folder, SHAPES["contest"][5], 1 << 18, SEQUENCE)
        given = folder, options.tokens, options.steps, options.tiny
        sides = [list(peers(options.peer, *given)), *(list(variants(kind, *given)) for kind in ("dense", "ternary"))]
        if options.variant:
            chosen = [contender for side in sides for contender in side if contender.name in options.variant]
        else:
            say("choosing the fastest forms")
            chosen = [fastest(side, options.steps // 3, say) for side in sides]
        rows = alternate(chosen, options.rounds, options.steps // 3, options.tokens, say)
    say(table(rows, PEER_COLUMNS))
    write_json(options.json, {"peer": rows})


if __name__ == "__main__":
    main()
