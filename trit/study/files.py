"""What the processes of a study say to each other: JSON files that are whole or absent, and an exit code. Needs no array library."""

import json

from trit.data.files import atomic_write

BUSY = 75  # a training's exit code where another process is at it: the code that means "try again later" in sysexits.h


def write_json(path, value):
    """A value as a JSON file."""
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())
