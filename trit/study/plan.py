"""What a study file says, checked before anything runs. In: a TOML file. Out: `Study`.

preset = "configs/demo.toml"      what all variants start from; may be missing
base = ["key=value", ...]         changed in all of them
seeds = [1, 2, 3]                 trainings of each variant
threads = 1                       CPU threads of a training
gpus = 0                          GPUs of a training, which sees these alone; on more than one it runs under torchrun. They need clock = "wall"
steps = 760                       steps of the first variant; every other takes as many as last as long, by a ratio measured in turns with
                                  the first. 0 (so where it is missing) leaves the length to the settings and the clock
clock = "cpu"                     charge CPU seconds over threads, which a busy machine disturbs less than "wall"
fill = "engram.engram_buckets"    setting that grows, in steps of `fill_step`, until code and artifact are expected to fill the cap
score = false                     train and keep the weights only
[variants]                        name = ["key=value", ...]; the first is what the others are compared with. A table instead of a list
                                  may name another `fill` ("" is none) and `fill_step`: name = {change = [...], fill = ""}
[grid]                            "section.key" = [values]: every combination is a variant beside those
"""

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from trit.config_load import load, near


@dataclass(frozen=True)
class Variant:
    """Settings (`key=value`) that a variant changes, and the setting that grows until its bytes fill the cap ("" for none)."""

    name: str
    change: tuple
    fill: str
    fill_step: int


@dataclass(frozen=True)
class Study:
    """A list of variants and how each is trained."""

    name: str
    variants: tuple
    preset: str | None = None
    base: tuple = ()
    seeds: tuple = (1337,)
    threads: int = 1
    steps: int = 0
    clock: str = "cpu"
    score: bool = True
    gpus: int = 0

    def settings(self, variant):
        """[key=value] of a variant, before it is filled and paced."""
        fixed = [f"train.iterations={self.steps}", "train.max_wallclock_seconds=0", "track.train_seconds=0"] if self.steps else []
        return [*self.base, *fixed, *variant.change]


def take(table, key, default, kind, path):
    """The value of `key`, taken out of a table; ValueError where it has another type than `kind`."""
    value = table.pop(key, default)
    if value is not default and not isinstance(value, kind):
        raise ValueError(f"{path}: {key}={value!r} is not of type {kind.__name__}")
    return value


def read_variant(path, name, said, fill, step):
    """`Variant` of a list of settings, or of a table with `change`."""
    if isinstance(said, list):
        said = {"change": said}
    if not isinstance(said, dict):
        raise ValueError(f'{path}: variant {name} must be a list of "key=value" or a table with change = [...]')
    said = dict(said)
    change = take(said, "change", [], list, path)
    variant = Variant(name, tuple(change), take(said, "fill", fill, str, path), take(said, "fill_step", step, int, path))
    if said:
        raise ValueError(f"{path}: variant {name}: {near(next(iter(said)), ['change', 'fill', 'fill_step'], 'unknown key')}")
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"{path}: variant {name!r} names a folder: letters, digits, - and _ only")
    return variant


def read_study(path):
    """`Study` of a TOML file. ValueError names what is wrong, also in the settings of any variant, before anything runs."""
    try:
        with open(path, "rb") as file:
            said = tomllib.load(file)
    except (FileNotFoundError, tomllib.TOMLDecodeError) as fault:
        raise ValueError(f"{path}: {fault}") from None
    fill, step = take(said, "fill", "", str, path), take(said, "fill_step", 64, int, path)
    listed = take(said, "variants", {}, dict, path)
    grid = take(said, "grid", {}, dict, path)
    if grid:
        for values in itertools.product(*grid.values()):
            change = [f"{key}={value}" for key, value in zip(grid, values)]
            name = "_".join(f"{key.partition('.')[2]}-{value}" for key, value in zip(grid, values)).replace(".", "p")
            listed[name] = change
    if not listed:
        raise ValueError(f"{path}: no [variants] and no [grid]: a study compares at least one")
    study = Study(
        Path(path).stem,
        tuple(read_variant(path, name, value, fill, step) for name, value in listed.items()),
        take(said, "preset", None, str, path),
        tuple(take(said, "base", [], list, path)),
        tuple(take(said, "seeds", [1337], list, path)),
        take(said, "threads", 1, int, path),
        take(said, "steps", 0, int, path),
        take(said, "clock", "cpu", str, path),
        take(said, "score", True, bool, path),
        take(said, "gpus", 0, int, path),
    )
    if said:
        known = ["fill", "fill_step", "variants", "grid", "preset", "base", "seeds", "threads", "steps", "clock", "score", "gpus"]
        raise ValueError(f"{path}: {near(next(iter(said)), known, 'unknown key')}")
    if study.clock not in ("cpu", "wall"):
        raise ValueError(f"{path}: clock={study.clock!r} must be 'cpu' or 'wall'")
    if study.steps < 0:
        raise ValueError(f"{path}: steps={study.steps} must be 0 (the settings say how long) or more")
    if study.threads < 1 or not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"{path}: threads={study.threads} must be positive, seeds={list(study.seeds)} at least one and all different")
    if study.gpus < 0 or (study.gpus and study.clock == "cpu"):
        reason = "must be 0 or more" if study.gpus < 0 else 'needs clock = "wall": CPU seconds say nothing about a GPU'
        raise ValueError(f"{path}: gpus={study.gpus} {reason}")
    for variant in study.variants:
        try:
            load(study.preset, environ={}, overrides=study.settings(variant), world_size=max(study.gpus, 1))
        except ValueError as fault:
            raise ValueError(f"{path}: variant {variant.name}: {fault}") from None
    return study
