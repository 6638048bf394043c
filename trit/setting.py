"""A settings field that carries its own help line: what config sections and architectures declare their fields with."""

import dataclasses


def check_values(*rows):
    """ValueError at the first of the rows (name of a setting in `arch`, value, whether it fits, what would be right) that does not fit."""
    for name, value, fits, reason in rows:
        if not fits:
            raise ValueError(f"arch.{name}={value} {reason}")


def setting(default, text, env=None, choices=None):
    """A dataclass field with its help line, environment name (the field's name in capitals if None) and allowed values."""
    return dataclasses.field(default=default, metadata={"help": text, "env": env, "choices": choices})
