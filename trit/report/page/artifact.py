"""What an artifact's tensors weigh and hold, and what training had before they were rounded. In: a record's files. Out: `Tensor` rows.

The artifact is read by its bounded loader alone, and only where its configuration describes a model of a size that a record can have.
"""

import ast
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trit.bundle.bundle import Bundle, byte_report
from trit.bundle.emit import minified
from trit.bundle.messages import number_messages
from trit.compress.calibrate import CALIBRATION_CANDIDATES
from trit.compress.layouts import PackError
from trit.compress.pack import filled_rows, stored_specs, stream_symbols, stream_table, unpack
from trit.compress.plan import entropy
from trit.compress.quantize import dequantize, is_float, quantize
from trit.compress.sizes import sizes, stream_owners
from trit.config_check import validate
from trit.config_load import from_dict
from trit.eval.temperature import artifact_specs
from trit.library import LIBRARIES, load_library
from trit.models import load_arch
from trit.params import parameter_count
from trit.report.page.reading import read_bytes, read_object, read_text
from trit.train.checkpoint import load_checkpoint, trained_arrays

MOST_PARAMETERS, MOST_LAYERS = 200_000_000, 4096
NAN = math.nan
BESIDE = (
    "report.",
    "proof.",
    "bundle.",
    "use.",
    "study.",
    "build",
    "launch",
    "data.prepare",
    "data.download",
    "eval.certify",
)  # never counted


class Tensor(NamedTuple):
    """One tensor as stored: `kind` in words, `count` numbers stored of its `shape`, bytes of codes and of scales, `bits` a number as coded,
    `ideal` the entropy of its codes; `shares` of -1, 0, +1 or (), `scales` (smallest, median, largest) or (). Of the weights that training
    had: `rule` that gives the stored codes, `differing` stored numbers that it does not give, `error` of rounding as a share of their RMS."""

    name: str
    group: str
    shape: tuple
    kind: str
    count: int
    code_bytes: int
    scale_bytes: int
    bits: float
    ideal: float
    shares: tuple = ()
    scales: tuple = ()
    rule: str = ""
    differing: int = -1
    error: float = NAN


class Opened(NamedTuple):
    """An artifact: settings, specs as stored, {name: QuantTensor}, [SizeRow], [Tensor]."""

    config: object
    specs: list
    tensors: dict
    rows: list
    found: list


def read_config(folder):
    """The Config of a record. ValueError where it is missing, of an older version of the package, or of no size that a record can have."""
    said = read_object(folder, "config.json")
    if not said:
        raise ValueError("there is no config.json")
    try:
        config = from_dict(said)
        if max(config.model.num_layers, config.model.vocab_size >> 5) > MOST_LAYERS:
            raise ValueError("its configuration describes a model of no size that a record can have")
        validate(config)
        if not 0 < parameter_count(artifact_specs(load_arch(config.model.name), config)) <= MOST_PARAMETERS:
            raise ValueError("its configuration describes a model of no size that a record can have")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, ArithmeticError) as fault:
        raise ValueError(f"config.json is not one of this version of the package: {one_line(fault)}") from None
    return config


def one_line(fault):
    """An error in one line of at most 200 characters."""
    return " ".join(str(fault).split())[:200] or type(fault).__name__


def array_library():
    """The array vocabulary that is installed. ValueError where none is."""
    for name in LIBRARIES:
        try:
            return load_library(name).ops
        except ValueError:
            continue
    raise ValueError("neither PyTorch nor MLX is installed")


def storage_words(cfg, spec):
    """How a tensor is stored, in words."""
    if is_float(cfg, spec):
        return "16-bit floats"
    kind = "ternary" if spec.scheme == "ternary" else f"{spec.bits}-bit codes"
    return f"{kind}, groups of {spec.group_size}{', rotated' if spec.rotate else ''}"


def open_artifact(folder):
    """`Opened` of a record folder. ValueError says why it cannot be opened."""
    config, data = read_config(folder), read_bytes(folder, "artifact.trit")
    if not data:
        raise ValueError("there is no artifact.trit")
    try:
        specs = stored_specs(config, artifact_specs(load_arch(config.model.name), config), data)
        tensors = unpack(config, specs, data)
    except PackError as fault:
        raise ValueError(f"today's version of the package cannot read it, or it is damaged ({one_line(fault)})") from None
    rows = sizes(config, specs, tensors, data)
    owners, _ = stream_owners(config, specs)
    symbols = dict(zip((name for name, _ in owners), stream_symbols(config, specs, tensors)))
    bases = dict(zip((name for name, _ in owners), stream_table(config, specs)))
    by_name, found = {row.name: row for row in rows}, []
    for spec in specs:
        row, scale, codes = by_name[spec.name], by_name.get(f"{spec.name}.scale"), symbols.get(spec.name)
        counts = np.bincount(codes, minlength=bases[spec.name].base) if codes is not None else np.zeros(0, int)
        values = tensors[spec.name].scales
        found.append(
            Tensor(
                spec.name,
                spec.group,
                tuple(spec.shape),
                storage_words(config, spec),
                row.count,
                row.size,
                scale.size if scale else 0,
                8 * row.size / row.count,
                entropy(counts) if len(counts) else NAN,
                tuple((counts / counts.sum()).tolist()) if spec.scheme == "ternary" else (),
                () if values is None else tuple(float(f(values.astype(np.float32))) for f in (np.min, np.median, np.max)),
            )
        )
    return Opened(config, specs, tensors, rows, found)


def rule_words(choice):
    """A dead zone and scale rule in words."""
    threshold, refit = choice
    return f"dead zone {threshold:g}, scale {'least squares' if refit else 'mean magnitude'}"


def compared(opened, ops, run):
    """[Tensor] with what the weights in the checkpoint of a run folder tell: which rule gives the stored codes, and the error of rounding.
    ValueError where the checkpoint is of another model."""
    config, tensors = opened.config, opened.tensors
    arrays = trained_arrays(load_checkpoint(Path(run) / "checkpoint.npz")[1])
    trained = {spec.name: spec for spec in load_arch(config.model.name).param_specs(config)}
    for name, spec in trained.items():
        if name not in arrays or arrays[name].shape != tuple(spec.shape):
            raise ValueError(f"{run}/checkpoint.npz is of another model: {name} differs")
    usual = (config.quant.ternary_threshold, config.quant.ternary_scale == "least_squares")
    specs, found = {spec.name: spec for spec in opened.specs}, []
    for tensor in opened.found:
        name, spec = tensor.name, specs[tensor.name]
        if name not in trained:
            found.append(tensor._replace(rule="fitted after training"))
            continue
        latent = {name: ops.from_numpy(arrays[name])}
        if config.compress.engram_keep and name == "engram.table":
            latent["engram.kept"] = ops.from_numpy(filled_rows(spec, tensors[name].codes))
        choices = dict.fromkeys([usual, *CALIBRATION_CANDIDATES]) if spec.scheme == "ternary" else [usual]
        best, rule = None, ""
        for choice in choices:
            made = quantize(ops, config, [spec], latent, {name: choice})[name]
            wrong = int((made.codes != tensors[name].codes).sum())
            wrong += 0 if made.scales is None else int((made.scales != tensors[name].scales).sum())
            if best is None or wrong < best:
                best, rule = wrong, rule_words(choice) if spec.scheme == "ternary" else "nearest"
        stored = dequantize(ops, config, [spec], {name: tensors[name]})[name].astype(np.float64)
        away = float(np.sqrt(((stored - arrays[name]) ** 2).mean() / max(float((arrays[name].astype(np.float64) ** 2).mean()), 1e-30)))
        found.append(tensor._replace(rule=rule if not best else f"{rule}, nearest of those tried", differing=best, error=away))
    return found


def modules(library):
    """{name of a definition: module below trit} of what may be part of a counted program that computes with `library`, for the names that
    one module has."""
    found, root, other = {}, Path(__file__).resolve().parents[2], "torch" if library == "mlx" else "mlx"
    for path in sorted(root.rglob("*.py")):
        home = path.relative_to(root).with_suffix("").as_posix().replace("/", ".")
        if home.startswith(BESIDE) or f".{other}_" in home:
            continue
        for name in re.findall(r"^(?:def|class) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, []).append(home)
    return {name: homes[0] for name, homes in found.items() if len(homes) == 1}


def code_rows(folder, library):
    """[(definition, module or "", bytes)] of a record's counted program for an array `library`, dearest first, from its readable form, which is not run: what the
    packed text would lose without each. ValueError where there is none, or where it is no program."""
    text = read_text(folder, "train_gpt_readable.py")
    if not 0 < len(text) < 1_000_000:
        raise ValueError("there is no train_gpt_readable.py of a size that a record can have")
    try:
        tree = ast.parse(text)
        if isinstance(tree.body[-1], ast.If):
            tree.body[-1:] = tree.body[-1].body
        number_messages(tree)
        names = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        rows = byte_report(Bundle(minified(tree), text, b"", names, [], "", names))
    except (ValueError, SyntaxError, RecursionError, MemoryError, IndexError, KeyError, AttributeError, TypeError) as fault:
        raise ValueError(f"train_gpt_readable.py is no program of this package: {one_line(fault)}") from None
    homes = modules(library)
    return [(name, homes.get(name, ""), size) for name, size in rows]
