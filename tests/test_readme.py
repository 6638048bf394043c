"""What the README claims is what the committed records say, and every path and command it names exists."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_numbers_are_those_of_the_record_it_links():
    links = re.findall(r"\]\((records/[^)/]+/[^)]+?)/?\)", README)
    assert links, "the README links the record its table shows"
    for link in links:
        submission = json.loads((ROOT / link / "submission.json").read_text())
        for number in (f"{submission['val_bpb']:.4f}", f"{submission['bytes_total']:,}", f"{submission['bytes_code']:,}"):
            assert number in README, f"{number} of {link} is not in the README"
        assert (ROOT / link / "artifact.trit").stat().st_size == submission["bytes_model"]
        assert (ROOT / link / "train_gpt.py").stat().st_size == submission["bytes_code"]


def test_links_and_commands_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for script in re.findall(r"python ([\w/]+\.py)", README):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m ([\w.]+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
