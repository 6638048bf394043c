"""What every probe looks at: the force of one checkpoint on a few texts, in 64 bits, with the weights as they are stored.

Nothing is guessed: settings are those that the checkpoint holds, weights those of its moving average where it has one, rounded as training's
forward and the artifact have them. The texts are the training split's last tokens, of which no batch had any and which are no validation text.
Shapes: B texts, T tokens, D width.
"""

import copy
import json
from pathlib import Path

import numpy as np

from trit.config import RunArgs
from trit.data.loader import calibration_tokens
from trit.dynamics.precise import precise_ops, precise_weights
from trit.layers.equilibrium import capped, cell_tables, drive, force, own_force
from trit.layers.implicit import transposed
from trit.layers.newton import newton, own_blocks
from trit.layers.relaxation import residual, stepping
from trit.models import load_arch
from trit.ops import torch_ops
from trit.train.checkpoint import load_checkpoint, trained_arrays
from trit.train.loss import seen_weights

ARCHITECTURE = "equilibrium"
ROOT_TOLERANCE = 1e-10  # residual of a point that counts as a rest
FLOW_RATE, FLOW_STEPS = 0.05, 400  # short steps that Newton's method begins after
MOST_BYTES = 2e9  # of all blocks of a Jacobian's diagonal


class Operator:
    """F and its derivatives for fixed weights and texts. `arrays` {name: float32} are seen weights, `windows` int (B, T + 1) token ids, of
    which the last T are what the first T foretell."""

    def __init__(self, cfg, arrays, windows):
        self.cfg, self.ops, self.arrays, self.windows = cfg, precise_ops(), arrays, np.asarray(windows, np.int32)
        self.weights = precise_weights(arrays)
        self.capped = capped(self.ops, self.weights, cfg)
        ids = torch_ops.from_numpy(self.windows)
        self.tokens, self.targets = ids[:, :-1], ids[:, 1:]
        self.tables = cell_tables(self.ops, cfg, self.tokens)
        self.drive = drive(self.ops, self.capped, cfg, self.tokens)
        self.shape, self.rate, self.found = tuple(self.drive.shape), cfg.arch.relax_rate, None

    def text(self, row, length=None):
        """The operator of one text, of its first `length` tokens: what these do does not depend on those behind them."""
        return Operator(self.cfg, self.arrays, self.windows[row : row + 1, : None if length is None else length + 1])

    def scaled(self, gain):
        """The operator with attention's output times `gain`."""
        other = copy.copy(self)
        names = {f"cell{i}.output" for i in range(self.cfg.model.num_layers)}
        other.capped = {name: weight * gain if name in names else weight for name, weight in self.capped.items()}
        other.found = None
        return other

    def force(self, z):
        """F(z) (B, T, D)."""
        return force(self.ops, self.capped, self.cfg, z, self.drive, self.tables)

    def own_force(self, own, past):
        """F at every position where that position's state is `own` and those before it are `past`."""
        return own_force(self.ops, self.capped, self.cfg, own, past, self.drive, self.tables)

    def residuals(self, z):
        """|F(z)| / |z| by token, numpy (B, T)."""
        return self.ops.to_numpy(residual(self.ops, self.force(z), z))

    def deployed(self, steps=None, rate=None):
        """State after explicit steps from the drive, as evaluation takes them unless told otherwise."""
        z = self.drive
        for _ in range(self.cfg.arch.relax_steps if steps is None else steps):
            z = z + (rate or self.rate) * self.force(z)
        return z

    def rest_from(self, z):
        """(state, mask (B, T) of tokens at rest with all before them) by short steps and Newton's method from z."""
        flow = stepping(self.ops, self.force, z, min(self.rate, FLOW_RATE), FLOW_STEPS, ROOT_TOLERANCE)
        state = newton(self.ops, self.own_force, flow.state, ROOT_TOLERANCE).state
        return state, np.logical_and.accumulate(self.residuals(state) <= 10 * ROOT_TOLERANCE, 1)

    def rest(self):
        """`rest_from` the drive, found once."""
        if self.found is None:
            self.found = self.rest_from(self.drive)
        return self.found

    def blocks(self, z):
        """Blocks J_tt, numpy (B, T, D, D)."""
        size = 8 * np.prod(self.shape) * self.shape[2]
        if size > MOST_BYTES:
            raise ValueError(
                f"the blocks of {self.shape[0]} texts of {self.shape[1]} tokens take {size / 1e9:.0f} GB; lower --texts or --tokens"
            )
        return self.ops.to_numpy(own_blocks(self.ops, self.own_force, z))

    def along(self, z):
        """Function v -> J v at z, numpy arrays that hold as many numbers as z, in any shape."""

        def product(v):
            tangent = self.ops.reshape(torch_ops.from_numpy(np.asarray(v, np.float64)), self.shape)
            return self.ops.to_numpy(self.ops.pushforward(self.force, [z], [tangent])[1]).reshape(np.shape(v))

        return product

    def back(self, z):
        """Function v -> J^T v at z, likewise."""
        transpose = transposed(self.ops, self.capped, self.cfg, z, self.tables)

        def product(v):
            return self.ops.to_numpy(transpose(self.ops.reshape(torch_ops.from_numpy(np.asarray(v, np.float64)), self.shape))).reshape(
                np.shape(v)
            )

        return product


def stored_weights(cfg, state):
    """{name: float32 array} that the forward sees of a checkpoint's state, rounded as training rounds: in 32 bits."""
    specs = load_arch(cfg.model.name).param_specs(cfg)
    latent = {name: torch_ops.from_numpy(array) for name, array in trained_arrays(state).items()}
    latent = {spec.name: latent[spec.name] for spec in specs}
    return {name: torch_ops.to_numpy(x) for name, x in seen_weights(torch_ops, cfg, specs, latent, True).items()}


def held_windows(cfg, data_path, texts, length):
    """int32 (texts, length + 1): windows evenly spread over the training tokens that no batch contains."""
    tokens = calibration_tokens(cfg, data_path)
    if len(tokens) < length + 1:
        raise ValueError(f"the run kept {len(tokens)} tokens out of training, a text of {length} takes {length + 1}; lower --tokens")
    starts = np.linspace(0, len(tokens) - length - 1, texts).astype(int)
    return np.stack([tokens[start : start + length + 1] for start in starts])


def open_run(folder, texts=4, tokens=0, data_path=None):
    """(Operator, step of the checkpoint) of a run's folder on `texts` texts of `tokens` tokens (0: a training window, at most 64). ValueError
    with what would be right where the folder holds no such run."""
    folder = Path(folder)
    cfg, state, step, *_ = load_checkpoint(folder / "checkpoint.npz")
    if cfg.model.name != ARCHITECTURE:
        raise ValueError(
            f"{folder} trains model.name={cfg.model.name}, which has no relaxation to probe; give a run of model.name={ARCHITECTURE}"
        )
    if data_path is None:
        try:
            data_path = RunArgs(**json.loads((folder / "run.json").read_text())).data_path
        except (OSError, ValueError, TypeError):
            raise ValueError(f"{folder}/run.json does not say where the shards are; give their folder with --data") from None
    if texts < 1 or tokens < 0 or tokens > cfg.train.train_seq_len:
        raise ValueError(f"--texts must be at least 1 and --tokens at most train.train_seq_len={cfg.train.train_seq_len}")
    length = tokens or min(cfg.train.train_seq_len, 64)
    return Operator(cfg, stored_weights(cfg, state), held_windows(cfg, data_path, texts, length)), step
