"""Follow a page literally in a fresh clone: python -m benchmarks.follow docs/tutorial.md [--list] [--json FILE]

Runs the commands of the page's blocks that are marked ```bash, in order, in one shell in a clone of this repository's last commit, as a
reader would type them; other blocks are not run. Prints the seconds of each and the sum, and stops at the first that fails (exit 1).
The clone lies in a temporary folder that is removed, or in --folder, which stays.
"""

import argparse
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")


def commands(text):
    """[command] of a page's bash blocks: lines, but that a here-document and what a backslash continues belong to theirs."""
    found = []
    for block in BLOCK.findall(text):
        lines = iter(block.splitlines())
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            command = [line]
            while command[-1].endswith("\\"):
                command.append(next(lines))
            if ends := HERE.search(line):
                while command[-1] != ends.group(1):
                    command.append(next(lines))
            found.append("\n".join(command))
    return found


def script(wanted, mark):
    """One bash script that says `mark` and a number before each command, and ends where one fails."""
    parts = ["set -e -o pipefail"]
    for number, command in enumerate(wanted):
        parts += [f"echo {mark} {number}", command]
    return "\n".join([*parts, f"echo {mark} {len(wanted)}\n"])


def follow(wanted, folder, say=print):
    """[seconds] of the commands that ended well, run in `folder`; fewer than `wanted` where one failed, which was the next."""
    environ = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    mark, begun, seconds = secrets.token_hex(8), 0.0, []
    process = subprocess.Popen(
        ["bash", "-c", script(wanted, mark)],
        cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    for line in process.stdout:
        said, marked, number = line.rstrip("\n").partition(mark + " ")
        if said or not marked:
            say("    " + said)
        if not marked:
            continue
        number, now = int(number), time.perf_counter()
        if number:
            seconds.append(now - begun)
            say(f"  {seconds[-1]:.1f} s")
        if number < len(wanted):
            say(f"$ {wanted[number]}")
        begun = now
    process.wait()
    return seconds


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.follow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", help="Markdown file, for example docs/tutorial.md")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    parser.add_argument("--folder", help="where the clone goes and stays; it must not exist")
    parser.add_argument("--json", help="file for the commands and their seconds")
    options = parser.parse_args(arguments)
    try:
        wanted = commands(Path(options.page).read_text(encoding="utf-8"))
        if not wanted:
            raise ValueError(f"{options.page}: no block is marked bash, so there is nothing to follow")
    except (OSError, ValueError) as fault:
        sys.exit(f"error: {fault}")
    if options.list:
        return print("\n".join(wanted))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or f"{temporary}/clone")
        cloned = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], capture_output=True, text=True, check=False)
        if cloned.returncode:
            sys.exit(f"error: cannot clone {ROOT} to {folder}: {cloned.stderr.strip()}")
        seconds = follow(wanted, folder, lambda line: print(line, flush=True))
    print("\nseconds  command")
    for spent, command in zip(seconds, wanted):
        print(f"{spent:7.1f}  {command.splitlines()[0]}")
    print(f"{sum(seconds):7.1f}  {len(seconds)} of {len(wanted)} commands")
    if options.json:
        rows = [{"command": command, "seconds": round(spent, 1)} for spent, command in zip(seconds, wanted)]
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    if len(seconds) < len(wanted):
        sys.exit(f"error: this failed: {wanted[len(seconds)]}")


if __name__ == "__main__":
    main()
