"""What the tests of pages share: words that want to be more than words, logs, and what every page must be."""

import html.parser
import json
import re

from trit.report.page.__main__ import MOST_PAGE

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x00"


def losses(first, count):
    """(train.log, metrics.jsonl) of a training of `count` logged steps."""
    lines, records = [], []
    for step in range(5, 5 * count + 1, 5):
        loss = first / (1 + 0.1 * step)
        lines.append(f"step:{step}/{5 * count} train_loss:{loss:.4f} train_time:{step * 20}ms step_avg:20.00ms tok/s:{9000 + step} left:1s")
        if step % 20 == 0:
            lines.insert(-1, f"predicted size: {20000 - step:,} bytes with code, 5 bytes free")
            records.append(
                {"look": step + 2, "predicted_bytes": 20000 - step, "noughts": {"a": 0.4, "b": 0.3}, "churn": {"a": 1 / step, "b": 0.01}}
            )
        records.append({"step": step, "train_loss": loss, "seconds": step * 0.02, "tokens_per_second": 9000 + step})
    lines += ["eval_step:1/2 val_loss_so_far:2.5", "eval_step:2/2 val_loss_so_far:2.25"]
    return "\n".join(lines) + "\n", "".join(json.dumps(record) + "\n" for record in records)


class Tags(html.parser.HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    EMPTY = {"meta", "link"}

    def __init__(self, text):
        super().__init__()
        self.seen, self.open, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def stands_alone(text):
    """Nothing is fetched, nothing runs, and what reads pages aloud finds its way."""
    tags = Tags(text)
    assert len(text.encode()) < MOST_PAGE and not {"script", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in tags.seen}
    for tag, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("href", "src", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), attributes
        assert tag != "svg" or "viewBox" not in attributes and "viewbox" not in attributes or attributes.get("aria-label")
    assert not re.search(r"url\(|@import|https?:|//\w", text.partition("<body>")[0])
    assert {tag: a["lang"] for tag, a in tags.seen if tag == "html"} == {"html": "en"}
    assert any(a.get("name") == "viewport" for _, a in tags.seen) and "default-src 'none'" in text and "prefers-color-scheme:dark" in text
    targets = {a["id"] for _, a in tags.seen if "id" in a}
    assert all(a["href"][1:] in targets for tag, a in tags.seen if tag == "a")
    return tags
