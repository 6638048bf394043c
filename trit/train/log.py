"""One stable console line and the same record in a file. Programs read the JSON lines, people the console."""

import json
import os


class Log:
    """Lines on the console, from rank 0: all that the counted program keeps."""

    def __init__(self, rank=0):
        self.rank = rank

    def line(self, text):
        """A line for people, and for the train log of a record."""
        if self.rank == 0:
            print(text, flush=True)

    def metrics(self, **record):
        """A record for programs."""


class RunLog(Log):
    """Writes `train.log` (text) and `metrics.jsonl` (records) in a folder too, anew unless `keep`."""

    def __init__(self, rank, folder, keep=False):
        self.rank, self.folder = rank, folder
        if rank == 0 and not keep:
            for name in ("train.log", "metrics.jsonl"):
                open(os.path.join(folder, name), "w").close()

    def append(self, name, text):
        """Add a line to a file of the folder."""
        if self.rank == 0:
            with open(os.path.join(self.folder, name), "a") as file:
                file.write(text + "\n")

    def line(self, text):
        """The line on the console and in `train.log`."""
        if self.rank == 0:
            print(text, flush=True)
        self.append("train.log", text)

    def metrics(self, **record):
        """The record in `metrics.jsonl`."""
        self.append("metrics.jsonl", json.dumps(record))
