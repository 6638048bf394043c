"""From preset, environment and overrides to one `Config` and one `RunArgs`: defaults < TOML preset < environment < key=value.

Every value remembers where it came from. Unknown keys, wrong types and environment names one slip away from a known one are errors.
"""

import dataclasses
import difflib
import json
import os
import tomllib
from pathlib import Path

from trit.config import SECTIONS, Config, ModelConfig, RunArgs
from trit.config_check import validate
from trit.data.files import atomic_write
from trit.models import arch_names, load_arch

ROOT = Path(__file__).resolve().parent.parent
TRACKS = ROOT / "configs" / "tracks.toml"
MANY = 40  # names that nobody reads in an error message


def environment_name(field):
    """Environment variable of a settings field."""
    return field.metadata.get("env") or field.name.upper()


def known_fields(arch_class):
    """{section.key: field} over all sections, the architecture's own and the run's."""
    sections = {**SECTIONS, "arch": arch_class, "run": RunArgs}
    return {f"{section}.{field.name}": field for section, cls in sections.items() for field in dataclasses.fields(cls)}


def convert(name, value, field):
    """`value` (text or TOML value) as the type of the field's default; ValueError names the setting and its type."""
    kind = type(field.default)
    try:
        if isinstance(value, str) and kind is not str:
            text = value.strip().lower()
            if kind is bool:
                if text not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
                    raise ValueError
                return text in ("1", "true", "yes", "on")
            if kind is tuple:
                return tuple(int(part) for part in text.strip("()[]").split(",") if part.strip())
            return kind(text.replace("_", "")) if kind is int else kind(text)
        if kind is tuple and isinstance(value, list):
            return tuple(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not kind:
            raise ValueError
        return value
    except ValueError:
        raise ValueError(f"{name}={value!r} is not of type {kind.__name__} (its default is {field.default!r})") from None


def near(word, names, what):
    """Text that names the closest known name, for error messages."""
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if match:
        return f"{what}; did you mean {match[0]!r}?"
    return f"{what}; known: {', '.join(sorted(names))}" if len(names) < MANY else f"{what}; trit/config.py lists all {len(names)}"


def full_key(key, fields, chosen):
    """`model.num_layers` for either `model.num_layers` or the bare `num_layers`; `fields` are those of the `chosen` architecture."""
    key = key.strip().lower()
    if key in fields:
        return key
    matches = [name for name in fields if name.split(".")[1] == key]
    if len(matches) == 1:
        return matches[0]
    having = [name for name in arch_names() if f"arch.{key.removeprefix('arch.')}" in known_fields(load_arch(name).ArchConfig)]
    if having:
        raise ValueError(f"unknown setting {key!r} of model.name={chosen}; architectures that have it: {', '.join(having)}")
    raise ValueError(near(key, list(fields), f"unknown setting {key!r}"))


def read_toml(path):
    """A TOML file as {section.key: value}; ValueError names file and fault."""
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        presets = sorted(str(p) for p in (ROOT / "configs").glob("*.toml"))
        raise ValueError(near(str(path), presets, f"no preset file {str(path)!r}")) from None
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"{path}: not valid TOML: {fault}") from None
    flat = {}
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {section!r} must stand inside a section such as [model]")
        flat.update({f"{section}.{key}": value for key, value in table.items()})
    return flat


def check_environment(environ, names):
    """Refuse an upper-case variable that differs from a known setting by one letter: a typing slip would be silent. Rotation at export alone is refused by name."""
    if "TURBO_QUANT_EXPORT" in environ:
        raise ValueError(
            "environment variable TURBO_QUANT_EXPORT is refused: a network trained on ternary weights is not itself once they are rotated and "
            "rounded again, so rotate in training (TURBO_QUANT_TRAIN=1) or not at all; unset it"
        )
    for variable in environ:
        if variable in names or not variable.isupper() or "_" not in variable:
            continue
        for name in difflib.get_close_matches(variable, names, n=1, cutoff=0.9):
            if abs(len(name) - len(variable)) <= 1 and name[0] == variable[0]:
                raise ValueError(f"environment variable {variable} is unknown; did you mean {name}? (unset it if it is not for trit)")


def read_tracks():
    """{track: its `TrackConfig` values} of configs/tracks.toml."""
    with open(TRACKS, "rb") as file:
        return tomllib.load(file)


def load_track(name):
    """`TrackConfig` values of one track of configs/tracks.toml."""
    tracks = read_tracks()
    if name not in tracks:
        raise ValueError(near(name, list(tracks), f"unknown track {name!r}"))
    return tracks[name]


def split_override(item):
    """(key, value) of a `key=value` string; ValueError on another form."""
    key, sign, value = item.partition("=")
    if not sign:
        raise ValueError(f"{item!r} is not of the form key=value, for example model.num_layers=4")
    return key.removeprefix("--"), value


def load(preset=None, environ=None, overrides=(), world_size=1):
    """(Config, RunArgs, origins) from a preset file, an environment mapping and `key=value` strings.

    `origins` maps each section.key to default, preset, environment, track or override. ValueError says what would be right.
    """
    environ = os.environ if environ is None else environ
    layers = [("preset", read_toml(preset) if preset else {}), ("override", {})]
    layers[1][1].update(map(split_override, overrides))
    preset_values, override_values = layers[0][1], layers[1][1]
    choices = (override_values.get("model.name"), environ.get("ARCHITECTURE"), preset_values.get("model.name"))
    chosen = next((name for name in choices if name), ModelConfig.name)
    arch_class = load_arch(chosen).ArchConfig
    fields = known_fields(arch_class)
    variables = {environment_name(field): key for key, field in fields.items()}
    check_environment(environ, list(variables))
    layers.insert(1, ("environment", {variables[name]: value for name, value in environ.items() if name in variables}))
    values = {key: field.default for key, field in fields.items()}
    origins = dict.fromkeys(values, "default")
    for origin, layer in layers:
        for key, value in layer.items():
            key = full_key(key, fields, chosen)
            values[key], origins[key] = convert(key, value, fields[key]), origin
    for key, value in load_track(values["track.track"]).items():
        key = f"track.{key}"
        if origins[key] == "default":
            values[key], origins[key] = convert(key, value, fields[key]), "track"
    sections = {**SECTIONS, "arch": arch_class, "run": RunArgs}
    built = {name: cls(**{f.name: values[f"{name}.{f.name}"] for f in dataclasses.fields(cls)}) for name, cls in sections.items()}
    run = built.pop("run")
    config = Config(**built)
    validate(config, world_size)
    return config, run, origins


def to_dict(config):
    """Config as nested plain values, ready for JSON."""
    return {field.name: dataclasses.asdict(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(values):
    """Inverse of `to_dict`. An unknown key is an error; a missing one, of a file older than the setting, takes the default, so a new
    setting's default must keep what was."""
    arch_class = load_arch(values["model"]["name"]).ArchConfig
    sections = {**SECTIONS, "arch": arch_class}
    if set(values) != set(sections):
        raise ValueError(f"config has sections {sorted(values)}; expected {sorted(sections)}")
    built = {}
    for name, cls in sections.items():
        known = {field.name: field for field in dataclasses.fields(cls)}
        for key in set(values[name]) - set(known):
            raise ValueError(near(f"{name}.{key}", [f"{name}.{k}" for k in known], f"unknown setting {name}.{key!r}"))
        built[name] = cls(**{key: convert(f"{name}.{key}", value, known[key]) for key, value in values[name].items()})
    return Config(**built)


def with_overrides(config, overrides):
    """`config` with `key=value` strings applied and validated again."""
    values, fields = to_dict(config), known_fields(type(config.arch))
    for key, value in map(split_override, overrides):
        section, name = full_key(key, fields, config.model.name).split(".")
        if section not in values:
            raise ValueError(f"{key} belongs to a run, not to its model; it cannot be changed here")
        values[section][name] = value
    changed = from_dict(values)
    validate(changed)
    return changed


def save(config, path):
    """Write `config.json`."""
    atomic_write(path, (json.dumps(to_dict(config), indent=1, sort_keys=True) + "\n").encode())


def run_folder(run):
    """Path of the folder that a run's files go to."""
    return Path(run.out_path or f"runs/{run.run_id}")


def describe(config, run, origins, changed=False):
    """The resolved configuration as text: one line a section, values that are not defaults marked with their origin; or those alone."""
    lines = []
    for name, values in [*((f.name, getattr(config, f.name)) for f in dataclasses.fields(config)), ("run", run)]:
        parts = []
        for field in dataclasses.fields(values):
            origin = origins.get(f"{name}.{field.name}", "default")
            if changed and origin == "default":
                continue
            mark = "" if origin == "default" else f" ({origin})"
            parts.append(f"{field.name}={getattr(values, field.name)}{mark}")
        lines += [f"{name}: " + ", ".join(parts)] if parts else []
    return "\n".join(lines)
