"""Use a record: python -m trit.use RECORD generate "Once upon" | compress FILE OUT | decompress FILE OUT

Compressing takes one pass of the model over windows of the file, decompressing one for every token of a lane: minutes for 100 kB.
"""

import argparse
import math
import sys
import time
from pathlib import Path

from tqdm import tqdm

from trit.data.files import atomic_write
from trit.library import LIBRARIES
from trit.use.compress import LANES, compress, decompress
from trit.use.generate import generated
from trit.use.opened import open_artifact


def parse(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m trit.use", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", help="record folder, for example records/<track>/<date>_<name>")
    parser.add_argument("--backend", default="torch", choices=LIBRARIES)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("generate", help="write on from a beginning")
    action.add_argument("beginning")
    action.add_argument("--tokens", type=int, default=200, help="at most so many")
    action.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    action.add_argument("--top-k", type=int, default=40, help="draw from so many of the likeliest tokens; 0 from all")
    action.add_argument("--seed", type=int, default=0)
    for name in ("compress", "decompress"):
        action = actions.add_parser(name)
        action.add_argument("file")
        action.add_argument("out")
        if name == "compress":
            action.add_argument("--lanes", type=int, default=LANES, help="parts that are coded side by side: faster back, a little larger")
    return parser.parse_args(arguments)


def main(arguments=None):
    """0, or 1 with one line that says what is wrong."""
    options = parse(arguments)
    try:
        opened = open_artifact(options.record, options.backend)
        if options.action == "generate":
            given = options.tokens, options.temperature, options.top_k, options.seed
            print(options.beginning, end="", flush=True)
            for text in generated(opened, options.beginning, *given):
                print(text, end="", flush=True)
            print()
            return
        data, begin = Path(options.file).read_bytes(), time.perf_counter()
        with tqdm(unit=" tokens", unit_scale=True, disable=None, leave=False) as bar:

            def progress(done, total):
                bar.total = total
                bar.update(done - bar.n)

            if options.action == "compress":
                if not 1 <= options.lanes <= 65535:
                    raise ValueError(f"--lanes {options.lanes} must be from 1 to 65535")
                found = compress(opened, data, options.lanes, progress)
                result = found.data
            else:
                result = decompress(opened, data, progress)
        atomic_write(options.out, result)
    except (ValueError, OSError) as fault:
        sys.exit(f"error: {fault}")
    line = f"{options.file}: {len(data):,} -> {len(result):,} bytes in {time.perf_counter() - begin:.1f}s"
    if options.action == "compress" and data:
        own = (
            "stored without the model"
            if math.isnan(found.bits)
            else f"the model's own {found.bits / len(data):.4f}, {found.tokens:,} tokens"
        )
        line += f"; {8 * len(result) / len(data):.4f} bits per byte, {own}"
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
