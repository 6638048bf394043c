"""The contract between the training loop and an array library: what `torch_backend` and `mlx_backend` both hand out."""

from typing import NamedTuple


class Process(NamedTuple):
    """This process among its peers: rank, number of ranks, device name."""

    rank: int
    world: int
    device: str


class Backend(NamedTuple):
    """What the training loop may ask of a backend. `step(inputs, targets, factor, rounded, averaging)` -> (loss, gradient norm);
    `slowest(seconds)` -> the largest over ranks; `export()` -> {name: array}; `state()` and `restore(state)` hold everything."""

    step: object
    slowest: object
    export: object
    state: object
    restore: object
    rank: int
    world: int
