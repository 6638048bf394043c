"""Check a counted file without trusting it: expand, compile under every supported Python, run it alone.

In: a `Bundle`, or the bytes of a wrapped file. Out: a report, or BundleError with what to do. No project code is imported.
"""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

from trit.bundle.wrap import expand

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
COMPILE = "import sys;compile(sys.stdin.buffer.read(),'train_gpt.py','exec',dont_inherit=True)"
RUNNER = """
import json, os, runpy, sys
evidence, refuse, sys.argv = sys.argv[1], sys.argv[2] == "refuse", sys.argv[3:]
opened = {}
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        opened.setdefault(os.path.abspath(os.fsdecode(args[0])))
    elif refuse and event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        raise PermissionError("the counted file may not use the network (" + event + "); remove the access or pass network=True")
sys.addaudithook(watch)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    seen = list(opened)
    with open(evidence, "w") as file:
        json.dump(seen, file)
"""


class BundleError(RuntimeError):
    """A counted file fails a check; the message says which and what to do."""


def verify(built, pythons=None):
    """Expand and compile a build; returns {"source", "bytes", "pythons": {version: path}, "missing": [versions]}.

    `built` is a Bundle or wrapped bytes. `pythons` are the interpreters to use, all supported ones that are installed by default.
    """
    wrapped = getattr(built, "wrapped", built)
    try:
        source = expand(wrapped)
    except ValueError as error:
        raise BundleError(str(error)) from None
    if hasattr(built, "source") and source != built.source:
        raise BundleError(
            "the wrapped file expands to another text than the build's source; build it again, and report a bug in wrap.py if it stays"
        )
    check_syntax(source)
    pythons = find_pythons() if pythons is None else pythons
    for version, path in pythons.items():
        for what, text in (("wrapped file", wrapped), ("expanded source", source.encode())):
            result = subprocess.run([path, "-I", "-S", "-c", COMPILE], input=text, capture_output=True, check=False)
            if result.returncode:
                message = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise BundleError(
                    f"the {what} is not valid Python {version}: {message}; change the source to what every Python from 3.10 accepts"
                )
    return {"source": source, "bytes": len(wrapped), "pythons": pythons, "missing": [v for v in VERSIONS if v not in pythons]}


def check_syntax(source):
    """Refuse syntax newer than Python 3.10, whatever Python this runs under."""
    try:
        tree = ast.parse(source, feature_version=(3, 10))
        compile(tree, "train_gpt.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BundleError(f"line {error.lineno} is not valid Python 3.10: {error.msg}; use the older form") from None
    if hasattr(tokenize, "FSTRING_START"):
        check_f_strings(source)


def check_f_strings(source):
    """Refuse what only PEP 701 allows inside an f-string: its own quote, a backslash, a comment, a line break."""
    stack = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.FSTRING_START:
            refuse_nested(token, stack)
            stack.append(token.string.lstrip("rRfFbBuU"))
        elif token.type == tokenize.FSTRING_END:
            stack.pop()
        elif stack and token.type == tokenize.STRING:
            refuse_nested(token, stack)
        elif stack and (token.type == tokenize.COMMENT or token.type == tokenize.NL and len(stack[-1]) == 1):
            raise BundleError(f"line {token.start[0]}: comment or line break inside an f-string needs Python 3.12; move the expression out")


def refuse_nested(token, stack):
    """Refuse a string that reuses the quote of an f-string around it, or has a backslash there."""
    quote = token.string.lstrip("rRfFbBuU")[:1]
    if (
        any(outer[0] == quote and len(outer) == 1 for outer in stack)
        or any(outer[0] * 3 in token.string for outer in stack)
        or stack
        and "\\" in token.string
    ):
        raise BundleError(
            f"line {token.start[0]}: a string inside an f-string reuses its quote or has a backslash, which needs Python 3.12; move it out"
        )


def find_pythons():
    """{version: path} of the supported Pythons that are installed and really run: on PATH, or under pyenv."""
    found = {}
    for version in VERSIONS:
        named = [shutil.which(f"python{version}"), sys.executable if sys.version_info[:2] == tuple(map(int, version.split("."))) else None]
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        named += sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python"))
        for path in filter(None, named):
            probe = "import sys;print('%d.%d'%sys.version_info[:2])"
            result = subprocess.run([path, "-I", "-S", "-c", probe], capture_output=True, text=True, check=False)
            if result.returncode == 0 and result.stdout.strip() == version:
                found[version] = path
                break
    return found


def run_alone(wrapped, files=None, args=(), environ=None, timeout=600, python=sys.executable, folder=None, network=False):
    """Run a counted file in an empty folder with `python -I`, a scrubbed environment and no network; returns the CompletedProcess.

    `files` maps names in the folder to paths to copy there; `environ` is all the program gets beside PATH, HOME and TMPDIR.
    The result has two more attributes: `opened`, the paths the process opened (None if it was killed), and `isolation`, how the network
    was refused. `folder` keeps the run in an empty folder of yours, so that what the program wrote can be read afterwards.
    """
    if folder is not None and Path(folder).exists() and any(Path(folder).iterdir()):
        raise BundleError(f"{folder} is not empty; a counted file must run alone, give an empty or new folder")
    with tempfile.TemporaryDirectory() as outside:
        place = Path(folder) if folder is not None else Path(outside) / "alone"
        place.mkdir(parents=True, exist_ok=True)
        (place / "train_gpt.py").write_bytes(getattr(wrapped, "wrapped", wrapped))
        for name, path in (files or {}).items():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target) if Path(path).is_dir() else shutil.copyfile(path, target)
        home, evidence = Path(outside) / "home", Path(outside) / "opened.json"
        home.mkdir()
        clean = {"PATH": os.defpath, "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8", **(environ or {})}
        before = [] if network else network_wall()
        command = [*before, python, "-I", "-c", RUNNER, str(evidence), "allow" if network else "refuse", "train_gpt.py", *map(str, args)]
        result = subprocess.run(command, cwd=place, env=clean, capture_output=True, text=True, timeout=timeout, check=False)
        result.opened = json.loads(evidence.read_text()) if evidence.exists() else None
        result.isolation = "allowed" if network else "network namespace and audit hook" if before else "audit hook"
        return result


def network_wall():
    """The command that takes the network away from a process and its children, where this machine permits it."""
    unshare = shutil.which("unshare")
    for flags in (["-n"], ["-rn"]) if unshare else ():
        if subprocess.run([unshare, *flags, "true"], capture_output=True, check=False).returncode == 0:
            return [unshare, *flags]
    return []
