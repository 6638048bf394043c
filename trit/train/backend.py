"""The contract between the training loop and an array library: what `torch_backend` and `mlx_backend` both hand out."""

from typing import NamedTuple


class Process(NamedTuple):
    """This process among its peers: rank, number of ranks, device name."""

    rank: int
    world: int
    device: str


class Evaluator(NamedTuple):
    """What evaluation may ask of a model with fixed weights. `losses(inputs, targets, changes=None, first=0)` -> float32
    (B, T - first) nats; `rows(inputs, changes=None, first=0)` -> log-probabilities float32 (B, T - first, V); `gradients(changes,
    inputs, targets, shares)` -> {name: gradient of the sum of shares * losses} in numpy, None without test-time training; `weights`:
    {name: array of the backend}, never written to; `total(array)`: sum of a numpy array over ranks. `changes` are test-time copies
    (trit/eval/ttt.py); tokens are int arrays; `first` leaves out the positions before it."""

    losses: object
    rows: object
    gradients: object
    weights: dict
    total: object
    rank: int
    world: int


class Backend(NamedTuple):
    """What the training loop may ask of a backend. `step(inputs, targets, factor, rounded, averaging)` begins a step and gives a
    function that waits for it: () -> (loss, gradient norm); where that norm is no finite number, the step changed nothing, but that with
    train.carry no row carries anything on. With settings that need it (`has_moments` in trit/train/phases.py) a sixth argument says the
    step's `Moment`.
    `slowest(seconds)` -> the largest over ranks; `export()` -> {name: array}; `state()` and `restore(state)` hold everything; `ahead`:
    how many steps may be under way when the next one begins."""

    step: object
    slowest: object
    export: object
    state: object
    restore: object
    rank: int
    world: int
    ahead: int = 0
