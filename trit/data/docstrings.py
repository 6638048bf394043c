"""Documents made of docstrings. Input: Python sources, which are parsed and never imported; output: `pydocs`, or one module's document."""

import ast
import functools
import inspect
import sysconfig
from pathlib import Path

# Tests, vendored packages and generated tables: no prose, or not in every installation.
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "ensurepip",
    "lib2to3",
    "encodings",
    "pydoc_data",
}


@functools.cache
def pydocs():
    """Tuple of documents: the language topics, then one per standard-library module with its docstrings, deduplicated.

    Sources are parsed, never imported, so the text depends on the Python version alone.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    topics_file = root / "pydoc_data" / "topics.py"
    if not topics_file.is_file():
        raise ValueError(f"{topics_file}: this Python comes without its documentation; use one from python.org, uv or pyenv")
    seen, documents = set(), []
    for statement in ast.parse(topics_file.read_bytes()).body:
        if isinstance(statement, ast.Assign):
            topics = ast.literal_eval(statement.value)
            texts = [inspect.cleandoc(topics[name]) for name in sorted(topics)]
            documents += [text for text in dict.fromkeys(texts) if text]
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        private = any(part in SKIPPED_FOLDERS or part.startswith("config-") for part in relative.parts)
        # Files that begin with _sysconfigdata are written by the build: they hold the paths of one machine.
        if private or relative.name.startswith("_sysconfigdata"):
            continue
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        text = module_document(path.read_bytes(), name, seen)
        if text:
            documents.append(text)
    return tuple(documents)


def module_document(source, name, seen):
    """The docstrings of one module's source (bytes) under light headings, leaving out those in `seen`, which it extends."""
    paragraphs = []

    def visit(node, heading):
        text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
        if text and text not in seen:
            seen.add(text)
            paragraphs.append(f"{heading}\n\n{text}")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, f"class {child.name}")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                visit(child, f"{owner}{child.name}({', '.join(argument.arg for argument in child.args.args)})")

    visit(ast.parse(source), name)
    # An escape in a docstring may be half a surrogate pair, which UTF-8 cannot hold.
    return "\n\n".join(paragraphs).encode("utf-8", "replace").decode("utf-8")
