"""Use a record: python -m trit.use RECORD generate "Once upon" | compress FILE OUT | decompress FILE OUT

Compressing takes one pass of the model over windows of the file, decompressing one for every token of a lane: minutes for 100 kB.
"""

import math
import sys
import time
from pathlib import Path

from trit.console import Parser, command, move, progress
from trit.data.files import atomic_write
from trit.library import LIBRARIES
from trit.use.compress import LANES, compress, decompress
from trit.use.generate import generated
from trit.use.opened import open_artifact


def parse(arguments):
    """The command line."""
    parser = Parser(prog="python -m trit.use", description=__doc__)
    parser.add_argument("record", help="record folder, for example records/<track>/<date>_<name>")
    parser.add_argument("--backend", default="torch", choices=LIBRARIES)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("generate", help="write on from a beginning", answers=True)
    action.add_argument("beginning")
    action.add_argument("--tokens", type=int, default=200, help="at most so many")
    action.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    action.add_argument("--top-k", type=int, default=40, help="draw from so many of the likeliest tokens; 0 from all")
    action.add_argument("--seed", type=int, default=0)
    for name in ("compress", "decompress"):
        action = actions.add_parser(name, answers=True)
        action.add_argument("file")
        action.add_argument("out")
        if name == "compress":
            action.add_argument("--lanes", type=int, default=LANES, help="parts that are coded side by side: faster back, a little larger")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Command line of this module."""
    options = parse(arguments)
    with command(options.json) as answer:
        opened = open_artifact(options.record, options.backend)
        if options.action == "generate":
            given, texts = (options.tokens, options.temperature, options.top_k, options.seed), [options.beginning]
            print(options.beginning, end="", flush=True)
            for text in generated(opened, options.beginning, *given):
                print(text, end="", flush=True)
                texts.append(text)
            print()
            answer["text"] = "".join(texts)
        else:
            answer |= coded(opened, options)


def coded(opened, options):
    """Compress or decompress a file -> what --json prints of it."""
    data, begin = Path(options.file).read_bytes(), time.perf_counter()
    with progress(options.action, unit=" tokens") as bar:

        def moved(done, total):
            bar.total = total
            move(bar, done)

        if options.action == "compress":
            if not 1 <= options.lanes <= 65535:
                raise ValueError(f"--lanes {options.lanes} must be from 1 to 65535")
            found = compress(opened, data, options.lanes, moved)
            result = found.data
        else:
            result = decompress(opened, data, moved)
    atomic_write(options.out, result)
    seconds = time.perf_counter() - begin
    facts = {"file": options.file, "out": options.out, "bytes": len(data), "bytes_out": len(result), "seconds": seconds}
    line = f"{options.file}: {len(data):,} -> {len(result):,} bytes in {seconds:.1f}s"
    if options.action == "compress" and data:
        facts |= {"bits_per_byte": 8 * len(result) / len(data), "model_bits_per_byte": found.bits / len(data), "tokens": found.tokens}
        own = f"the model's own {facts['model_bits_per_byte']:.4f}, {found.tokens:,} tokens"
        line += f"; {facts['bits_per_byte']:.4f} bits per byte, {'stored without the model' if math.isnan(found.bits) else own}"
    print(line, file=sys.stderr)
    return facts


if __name__ == "__main__":
    main()
