"""A settings field that carries its own help line: what config sections and architectures declare their fields with."""

import dataclasses


def setting(default, text, env=None, choices=None):
    """A dataclass field with its help line, environment name (the field's name in capitals if None) and allowed values."""
    return dataclasses.field(default=default, metadata={"help": text, "env": env, "choices": choices})
