"""Hashes and seconds of counted files: is a changed bundler still the same bundler, and how much faster is it?

`python -m benchmarks.counted_files --save FILE` before a change, `--compare FILE` after it: every preset, both libraries, evaluation-only,
quick start, without tree-shaking. Exit 1 where a file's bytes differ. `--package ROOT` bundles the package of another checkout with the
bundler that runs, so that only the bundler differs. `--forms` asks instead which way of shortening packs best: the minifier may give
literals that repeat a name, and may give builtins other names.
"""

import ast
import builtins
import hashlib
import json
import sys
import time
from pathlib import Path

from trit.bundle.bundle import ALL_CODECS, QUICK_CODECS, bundle, shaken_text
from trit.bundle.emit import ascii_form, shorten, shorten_parameters
from trit.bundle.messages import number_messages
from trit.bundle.wrap import wrap
from trit.config_load import ROOT, load
from trit.console import Parser, command, counted

ONLY = ("eval.evaluation_only=true",)
FLAGS = ("eval.ttt_scope=scales", "arch.capsules=4", "arch.experts=4", "compress.allocate=true")


def configurations():
    """{name: (preset, overrides, library, shake, codecs)} of the files that are compared."""
    presets = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem != "tracks")
    found = {f"{preset} torch": (preset, (), "torch", True, QUICK_CODECS) for preset in presets}
    for preset in ("demo", "hybrid", "sem_byte"):
        found[f"{preset} mlx"] = preset, (), "mlx", True, QUICK_CODECS
    for preset in ("demo", "ternary_10x768"):
        found[f"{preset} evaluation only"] = preset, ONLY, "torch", True, QUICK_CODECS
    found["demo all codecs"] = "demo", (), "torch", True, ALL_CODECS
    for preset, library in (("demo", "torch"), ("hybrid", "mlx")):
        found[f"{preset} {library} without --dce"] = preset, (), library, False, QUICK_CODECS
    for flag in FLAGS:
        found[f"unet {flag}"] = "unet", (flag,), "torch", True, QUICK_CODECS
    return found


def built(preset, overrides, library, shake, codecs, root):
    """{"sha256", "readable_sha256", "bytes", "seconds"} of one counted file, or {"refused": why} of settings that cannot be."""
    try:
        config = load(ROOT / "configs" / f"{preset}.toml", {}, list(overrides))[0]
    except ValueError as fault:
        return {"refused": str(fault)}
    begin = time.process_time()
    made = bundle(config, library=library, root=root, shake=shake, codecs=codecs, remember=False)
    seconds = time.process_time() - begin
    readable = hashlib.sha256(made.readable.encode()).hexdigest()
    return {"sha256": made.sha256, "readable_sha256": readable, "bytes": len(made.wrapped), "seconds": round(seconds, 2)}


def form_sizes(preset, library):
    """{form: bytes of the counted file} of the four ways to shorten a preset's program."""
    tree = ast.parse(shaken_text(load(ROOT / "configs" / f"{preset}.toml", {})[0], library=library))
    number_messages(tree)
    tree.body[-1:] = tree.body[-1].body
    text, sizes = shorten_parameters(tree), {}
    for named in (False, True):
        for kept in ((), sorted(dir(builtins))):
            form = f"{'literals named' if named else 'literals in place'}, {'builtins kept' if kept else 'builtins renamed'}"
            sizes[form] = len(wrap(ascii_form(shorten(text, named, kept)), QUICK_CODECS))
    return sizes


def main(arguments=None):
    """Command line: 0 where nothing differs."""
    parser = Parser(prog="python -m benchmarks.counted_files", description=__doc__.splitlines()[0], answers=True)
    parser.add_argument("--save", help="write hashes and seconds to this file")
    parser.add_argument("--compare", help="a file that --save wrote")
    parser.add_argument("--package", help="root of the checkout whose package is bundled; by default this one")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="configurations whose name has one of these words")
    parser.add_argument("--forms", action="store_true", help="bytes of each way of shortening, for every preset")
    options = parser.parse_args(arguments)
    differing = []
    with command(options.json) as answer:
        if options.forms:
            for name, (preset, changed, library, _, _) in configurations().items():
                if name == f"{preset} {library}" and not changed:
                    answer[name] = form_sizes(preset, library)
                    print(name, *(f"{size:,} ({form})" for form, size in answer[name].items()), sep="  ", flush=True)
            return 0
        before = json.loads(Path(options.compare).read_text()) if options.compare else {}
        chosen = {name: made for name, made in configurations().items() if not options.only or any(word in name for word in options.only)}
        for name in counted(list(chosen), "bundling", len(chosen), " files"):
            answer[name] = now = built(*chosen[name], options.package)
            old = before.get(name, {})
            same = [key for key in ("sha256", "readable_sha256", "refused") if old.get(key) != now.get(key)] if old else []
            differing += [name] * bool(same)
            verdict = "not compared" if not old else f"differs in {', '.join(same)}" if same else "same"
            print(
                f"{name:45} {now.get('bytes', 0):7} bytes {now.get('seconds', 0):7.2f} s (was {old.get('seconds', 0):.2f})  {verdict}",
                flush=True,
            )
            if options.save:
                Path(options.save).write_text(json.dumps(answer, indent=1))
        print(f"{len(chosen)} counted files, {len(differing)} differ" if before else f"{len(chosen)} counted files")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
