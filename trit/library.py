"""The array libraries by name, imported when asked for: neither is needed where the other is used."""

import importlib
from typing import NamedTuple

LIBRARIES = ("torch", "mlx")


class Library(NamedTuple):
    """An array library: its name, its vocabulary (`trit/ops/*_ops.py`) and its backend (`trit/train/*_backend.py`)."""

    name: str
    ops: object
    backend: object


def load_library(name):
    """The `Library` called `name`; ValueError where it is unknown or not installed."""
    if name not in LIBRARIES:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join(LIBRARIES)}")
    try:
        return Library(name, importlib.import_module(f"trit.ops.{name}_ops"), importlib.import_module(f"trit.train.{name}_backend"))
    except ModuleNotFoundError as fault:
        raise ValueError(
            f"the backend {name} needs a package that is not installed ({fault.name}): pip install -r requirements-dev.txt"
        ) from None
