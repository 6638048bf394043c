"""Writes files that are either whole or absent. Input: a path and bytes; output: the file."""

import os


def atomic_write(path, chunks):
    """Write `chunks` (bytes, or an iterable of buffers) to `path`; after an error the old file stays and nothing else does."""
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            file.writelines([chunks] if isinstance(chunks, bytes) else chunks)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
