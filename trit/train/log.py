"""One stable console line and the same record in a file. Programs read the JSON lines, people the console."""

import json
import os


class Log:
    """Prints on rank 0; with a folder, also writes `train.log` (text) and `metrics.jsonl` (records) there, anew unless `keep`."""

    def __init__(self, rank=0, folder=None, keep=False):
        self.rank, self.folder = rank, folder
        if folder and rank == 0 and not keep:
            for name in ("train.log", "metrics.jsonl"):
                open(os.path.join(folder, name), "w").close()

    def append(self, name, text):
        """Add a line to a file of the folder."""
        if self.folder:
            with open(os.path.join(self.folder, name), "a") as file:
                file.write(text + "\n")

    def line(self, text):
        """A line for people, and for the train log of a record."""
        if self.rank == 0:
            print(text, flush=True)
            self.append("train.log", text)

    def metrics(self, **record):
        """A record for programs."""
        if self.rank == 0:
            self.append("metrics.jsonl", json.dumps(record))
