"""All that a page on a record tells, gathered once. In: a record's folder, its run folder and its shards where they are there."""

import math
from pathlib import Path
from typing import NamedTuple

from trit.report.page import artifact, engram, reading

GROUPS = ("code", "engram", "matrix", "embed", "scales", "scalar", "header")  # each keeps its colour on every chart


class Check(NamedTuple):
    """A check of a certificate: its name, its verdict (pass, fail or unknown), its evidence."""

    name: str
    verdict: str
    evidence: str


def read_checks(folder):
    """[Check] of a record's certificate.json, [] where there is none. A verdict of another name is an unknown one."""
    said = reading.part(reading.read_object(folder, "certificate.json"), "checks", list)[:500]
    rows = [(str(c.get("name"))[:120], c.get("verdict"), str(c.get("evidence"))[:2000]) for c in said if isinstance(c, dict)]
    return [Check(name, verdict if verdict in ("pass", "fail") else "unknown", evidence) for name, verdict, evidence in rows]


class Facts:
    """All that is known of a record; `faults` say why what is None is missing, by "artifact", "code", "engram" or "rounding"."""

    def __init__(self, folder, run=None, data=None):
        self.folder, self.faults = Path(folder), {}
        self.said = reading.read_object(folder, "submission.json")
        if not self.said:
            raise ValueError(f"{folder}: no submission.json and no record of a study; give a record's folder or that of a study's results")
        self.checks = read_checks(folder)
        self.manifest, self.settings = reading.read_object(folder, "manifest.json"), reading.read_object(folder, "config.json")
        self.curves = reading.curves(folder, run)
        self.run, self.opened, self.tensors = run, self.tried("artifact", lambda: artifact.open_artifact(folder)), []
        if self.opened:
            self.tensors = self.opened.found
            if run:
                self.tensors = self.tried("rounding", lambda: artifact.compared(self.opened, artifact.array_library(), run)) or self.tensors
        self.code = self.tried("code", lambda: artifact.code_rows(folder, self.said.get("library", "torch")))
        self.engram = self.tried("engram", lambda: self.engram_tables(data))

    def tried(self, what, make):
        """What `make` gives, or None with the reason kept."""
        try:
            return make()
        except (ValueError, OSError, MemoryError) as fault:
            self.faults[what] = artifact.one_line(fault)

    def engram_tables(self, data):
        """([Table], words); None for a model without an engram."""
        config = self.opened.config if self.opened else artifact.read_config(self.folder)
        if not config.engram.engram_buckets:
            return None
        named = reading.part(self.said, "data_path", str)
        place = Path(data) if data else self.folder / named
        if not data and not (named and place.is_dir()):
            raise ValueError("the shards that the record names are not here; give their folder with --data")
        return engram.engram_tables(artifact.array_library(), config, place)

    def number(self, *keys):
        """A number of submission.json, NaN where there is none."""
        return reading.number(self.said, *keys)

    def bytes_a_token(self, split):
        """Bytes of text a token of a split, NaN where the record does not tell."""
        if split == "val":
            return self.number("val_bytes") / (self.number("val_tokens") or math.nan)
        tokens = reading.number(self.manifest, "splits", split, "tokens")
        return reading.number(self.manifest, "splits", split, "counted_bytes") / (tokens or math.nan)

    def categories(self):
        """{category: bytes} of submission.json, largest first."""
        said = reading.part(self.said, "bytes_by_category", dict)
        sizes = {str(name)[:40]: reading.number(said, name) for name in list(said)[:40]}
        return dict(sorted(((name, size) for name, size in sizes.items() if size > 0), key=lambda pair: -pair[1]))


def whole(value):
    """A count with thousands marked, or a dash."""
    return "-" if math.isnan(value) else f"{value:,.0f}"


def fixed(value, digits):
    """A number with so many digits behind the point, or a dash."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def running(points, share=0.06):
    """Mean of each point and those before it, the older the less, over about `share` of them; as they are where there are few."""
    keep, found, mean = 1 - 1 / max(share * len(points), 1), [], None
    for x, y in points if len(points) > 20 else ():
        mean = y if mean is None else keep * mean + (1 - keep) * y
        found.append((x, mean))
    return found or points


def colour(group):
    """The colour of a category."""
    return GROUPS.index(group) if group in GROUPS else 7


def numbers(said):
    """The numbers of a JSON object's values."""
    return [value for key in list(said)[:2000] if not math.isnan(value := reading.number(said, key))] if isinstance(said, dict) else []


def middle(values):
    """Median of a list."""
    return sorted(values)[len(values) // 2]
