"""What the processes of a study say to each other: JSON files that are whole or absent, and an exit code. Needs no array library."""

import json
import os
import sys

from trit.data.files import atomic_write

BUSY = 75  # a training's exit code where another process is at it: the code that means "try again later" in sysexits.h


def write_json(path, value):
    """A value as a JSON file."""
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())


def read_json(path):
    """The value of a JSON file, or None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def become_ranks(module, folder, gpus, held=()):
    """Replace this process by torchrun, which runs `module` on `folder` once for each GPU of this machine. Process id and exit are its
    own, and the open files `held` stay open, so that their locks last as long as it does."""
    for file in held:
        os.set_inheritable(file.fileno(), True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]
    os.execv(sys.executable, [*torchrun, "-m", module, "--rank", str(folder)])
