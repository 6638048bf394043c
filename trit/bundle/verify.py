"""Check a counted file without running it: expand, compile under every supported Python. Running it is `trit.bundle.alone`'s job.

In: a `Bundle`, or the bytes of a wrapped file. Out: a report, or BundleError with what to do. No project code is imported.
"""

import ast
import functools
import io
import os
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

from trit.bundle.wrap import expand

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
COMPILE = """import sys
data, length = sys.stdin.buffer.read(), int(sys.argv[1])
compile(data[:length], "wrapped file", "exec", dont_inherit=True)
compile(data[length:], "expanded source", "exec", dont_inherit=True)
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
        command = [path, "-I", "-S", "-c", COMPILE, str(len(wrapped))]
        result = subprocess.run(command, input=wrapped + source.encode(), capture_output=True, check=False)
        if result.returncode:
            message = result.stderr.decode(errors="replace").strip()
            what = "expanded source" if "expanded source" in message else "wrapped file"
            raise BundleError(
                f"the {what} is not valid Python {version}: {message.splitlines()[-1:]}; change the source to what every Python from 3.10 "
                "accepts"
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


@functools.cache
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
