"""The page of a record and of a study: its numbers are those of the files, it stands alone, and nobody's folder can put anything into it."""

import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from model_fixtures import evaluating
from page_fixtures import HOSTILE, Tags, losses, stands_alone
from record_fixtures import ROOT

from trit.bundle.bundle import shaken_text
from trit.compress.sizes import category_bytes, sizes
from trit.config_load import save
from trit.eval.temperature import artifact_specs
from trit.models import load_arch
from trit.ops import torch_ops
from trit.params import init_params
from trit.report.page import artifact, engram, reading
from trit.report.page.__main__ import main
from trit.submission import make_artifact
from trit.train.checkpoint import save_checkpoint

DEMO = ROOT / "records" / "demo_cpu_256kb" / "2026-12-01_demo"
SECTIONS = ("curves", "bytes", "tensors", "trits", "engram", "speed", "certificate", "seeds", "settings")
CHECKS = [
    {"name": "size", "verdict": "pass", "evidence": "fits"},
    {"name": HOSTILE, "verdict": HOSTILE, "evidence": HOSTILE},
    {"name": "replay", "verdict": "fail", "evidence": "moved by 1 nat"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, data):
    """(record folder, run folder, Config) of a tiny model whose second matrix was calibrated; names and sentences are hostile."""
    folder, run = (tmp_path_factory.mktemp(name) for name in ("record", "run"))
    config = evaluating("unet", "plain", vocab_size=260, engram_buckets=64, matrix_scheme="ternary")
    arch = load_arch("unet")
    specs = artifact_specs(arch, config)
    arrays = init_params(specs, 1)
    ternary = [spec.name for spec in specs if spec.scheme == "ternary"]
    packed = make_artifact(torch_ops, arch, config, arrays, {ternary[1]: (0.6, False)})
    (folder / "artifact.trit").write_bytes(packed)
    save(config, folder / "config.json")
    (folder / "train_gpt_readable.py").write_text(shaken_text(config))
    shutil.copyfile(data / "manifest.json", folder / "manifest.json")
    (folder / "certificate.json").write_text(json.dumps({"checks": CHECKS}))
    opened = artifact.open_artifact(folder)
    said = {
        "name": HOSTILE, "author": HOSTILE, "blurb": HOSTILE, "date": HOSTILE, "track": HOSTILE, "hardware": HOSTILE,
        "val_bpb": 1.23456, "val_loss": 2.25, "val_tokens": 1000, "val_bytes": 2600, "round_trip_gap": 0.0, "seeds": [7],
        "seed_results": {"7": {"val_bpb": 1.23456, "val_loss": 2.25, "steps": 100, "step_avg_ms": 20.0}}, "step_stop": 100,
        "bytes_code": 9876, "bytes_model": len(packed), "bytes_total": 9876 + len(packed), "bytes_cap": 30000,
        "bytes_by_category": {"code": 9876, **category_bytes(opened.rows)}, "train_time_seconds": 2.0, "versions": {"torch": HOSTILE},
        "comparison": {HOSTILE: 2.5}, "data_path": str(data),
    }  # fmt: skip
    (folder / "submission.json").write_text(json.dumps(said))
    log, metrics = losses(5.0, 20)
    (folder / "train.log").write_text(f"{HOSTILE}\n{log}calibration: {HOSTILE}\n")
    (run / "train.log").write_text(log)
    (run / "metrics.jsonl").write_text(metrics)
    state = {f"p/{name}": array for name, array in arrays.items() if name != "sharpness"}
    save_checkpoint(run / "checkpoint.npz", config, state, 100, 2.0, 100)
    return folder, run, config


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    """The text of the record's page."""
    folder, run, _ = made
    out = tmp_path_factory.mktemp("page") / "report.html"
    main([str(folder), "--run", str(run), "--out", str(out), "--pictures", str(out.parent / "pictures")])
    for name in ("curves.png", "bytes.png"):
        assert (out.parent / "pictures" / name).read_bytes().startswith(b"\x89PNG")
    return out.read_text()


def test_the_page_stands_alone_and_has_every_section(page):
    tags = stands_alone(page)
    assert {a["id"] for tag, a in tags.seen if tag == "section"} == set(SECTIONS)
    assert "class=absent" not in page
    assert "alert(1)" in tags.text and "\u202e" not in page and "\x00" not in page


def test_numbers_are_those_of_the_files(page, made):
    folder, _, config = made
    said, text = json.loads((folder / "submission.json").read_text()), Tags(page).text
    opened = artifact.open_artifact(folder)
    packed = (folder / "artifact.trit").read_bytes()
    for value in (
        f"{said['val_bpb']:.4f}",
        f"{said['bytes_total']:,} of 30,000",
        "0, bit for bit",
        "1 passed, 1 failed, 1 unknown",
        "2.2500 nats a token",
    ):
        assert value in text, value
    rows = sizes(config, opened.specs, opened.tensors, packed)
    assert sum(row.size for row in rows) == len(packed)
    for row in rows:
        assert f"{row.name}{row.category}{row.count:,}{row.size:,}" in text
    for name, home, size in artifact.code_rows(folder, "torch"):
        assert f"{name}{home or '-'}{size:,}" in text
    for step, seconds, loss, _ in reading.curves(folder)[0].steps:
        assert f"{step}{seconds:.1f}{loss:.4f}" in text
    assert text.index("moved by 1 nat") < text.index("fits")


def test_tensors_tell_their_rule_and_their_trits(made):
    folder, run, config = made
    opened = artifact.open_artifact(folder)
    found = {t.name: t for t in artifact.compared(opened, torch_ops, run)}
    ternary = [spec.name for spec in opened.specs if spec.scheme == "ternary"]
    usual = f"dead zone {config.quant.ternary_threshold:g}, scale mean magnitude"
    for name in ternary:
        codes = opened.tensors[name].codes
        assert found[name].rule == ("dead zone 0.6, scale mean magnitude" if name == ternary[1] else usual)
        assert found[name].shares == pytest.approx([(codes == code).mean() for code in (-1, 0, 1)], abs=1e-9)
        p = np.array(found[name].shares)
        assert found[name].ideal == pytest.approx(-(p * np.log2(p)).sum()) and 0.3 < found[name].error < 0.8
    assert all(t.differing == 0 for t in found.values() if t.name != "sharpness")
    state = dict(np.load(run / "checkpoint.npz"))
    state[f"p/{ternary[0]}"] = -state[f"p/{ternary[0]}"]
    moved = run.parent / "moved"
    moved.mkdir()
    np.savez(moved / "checkpoint.npz", **state)
    again = {t.name: t for t in artifact.compared(opened, torch_ops, moved)}[ternary[0]]
    assert again.differing == (opened.tensors[ternary[0]].codes != 0).sum() and "nearest of those tried" in again.rule


def test_engram_counts_are_those_of_a_count_by_hand(made, data):
    config = made[2]
    tables, _ = engram.engram_tables(torch_ops, config, data)
    (train, _, _), (val, _, _) = (engram.split_windows(config, data, split) for split in ("train", "val"))
    for place, table in enumerate(tables):
        homes, reads = {}, {"train": [], "val": []}
        for split, windows in (("train", train), ("val", val)):
            rows, masks = engram.table_rows(torch_ops, config, windows)
            for window, row, mask in zip(windows.tolist(), rows[:, :, place].tolist(), masks[:, :, place].tolist()):
                for at in range(len(window)):
                    if at >= table.order - 1:
                        assert mask[at]
                        reads[split].append((tuple(window[at - table.order + 1 : at + 1]), row[at]))
        for gram, row in reads["train"]:
            homes.setdefault(row, set()).add(gram)
        known = {gram for gram, _ in reads["train"]}
        assert table.rows == config.engram.engram_buckets and table.grams == len(known)
        assert table.train == pytest.approx(len(homes) / table.rows) and table.val == pytest.approx(
            len({r for _, r in reads["val"]}) / table.rows
        )
        assert table.crowded == pytest.approx(sum(len(grams) for grams in homes.values() if len(grams) > 1) / len(known))
        assert table.known == pytest.approx(np.mean([gram in known for gram, _ in reads["val"]]))
        assert table.met == pytest.approx(np.mean([row in homes for _, row in reads["val"]]))


def test_the_committed_record_has_a_page(tmp_path, capsys):
    main([str(DEMO), "--out", str(tmp_path / "demo.html")])
    text = (tmp_path / "demo.html").read_text()
    said, tags = json.loads((DEMO / "submission.json").read_text()), stands_alone(text)
    for value in (f"{said['val_bpb']:.4f}", f"{said['bytes_total']:,} of {said['bytes_cap']:,}", "round trip", "NgramMemory"):
        assert value in tags.text, value
    assert {a["id"] for tag, a in tags.seen if tag == "section"} == set(SECTIONS)
    fault = None
    try:
        artifact.open_artifact(DEMO)
    except ValueError as found:
        fault = str(found)
    assert ("The artifact was not opened" in tags.text) == (fault is not None)
    assert fault is None or "left out: artifact" in capsys.readouterr().err


def test_what_a_folder_cannot_tell_is_said(made, tmp_path, capsys):
    folder = shutil.copytree(made[0], tmp_path / "record")
    for name in ("artifact.trit", "certificate.json", "train_gpt_readable.py", "manifest.json"):
        (folder / name).unlink()
    (folder / "train.log").write_text("nothing\n")
    said = json.loads((folder / "submission.json").read_text())
    (folder / "submission.json").write_text(
        json.dumps({"val_bpb": math.nan, "data_path": "nowhere", "seeds": 3, "seed_results": [1], "versions": said["blurb"]})
    )
    main([str(folder), "--out", str(tmp_path / "bare.html")])
    tags = stands_alone((tmp_path / "bare.html").read_text())
    for words in (
        "there is no artifact.trit",
        "There is no certificate.json",
        "No step line",
        "does not say how its bytes",
        "Hit rates need the shards",
    ):
        assert words in tags.text, words


@pytest.mark.parametrize(
    "name,content,words",
    [
        ("submission.json", "[1]", "holds no JSON object"),
        ("submission.json", "[" * 100_000, "not JSON"),
        ("submission.json", "", "no submission.json"),
        ("train.log", "x" * (reading.MOST_BYTES + 1), "more than 16,000,000 bytes"),
    ],
)
def test_bad_folders_end_with_one_line(made, tmp_path, name, content, words):
    folder = tmp_path / "record"
    folder.mkdir()
    shutil.copyfile(made[0] / "submission.json", folder / "submission.json")
    (folder / name).write_text(content)
    with pytest.raises(SystemExit, match=f"^error: .*{words}"):
        main([str(folder), "--out", str(tmp_path / "x.html")])
    assert not (tmp_path / "x.html").exists()


def test_folders_that_are_none_and_files_that_lead_elsewhere(tmp_path):
    with pytest.raises(SystemExit, match="^error: .*is no folder"):
        main([str(tmp_path / "none")])
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "submission.json").symlink_to(tmp_path / "secret")
    assert reading.read_bytes(tmp_path / "record", "submission.json") == b""


def test_hostile_artifacts_and_settings_cost_nothing(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "record")
    config = json.loads((folder / "config.json").read_text())
    for section, key, value in (
        ("model", "num_layers", 10**9),
        ("model", "model_dim", 10**7),
        ("model", "name", "../x"),
        ("model", "vocab_size", "x"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {section: config[section] | {key: value}}))
        with pytest.raises(ValueError, match="config.json is not one"):
            artifact.open_artifact(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "artifact.trit").write_bytes((made[0] / "artifact.trit").read_bytes()[:-4])
    with pytest.raises(ValueError, match="cannot read it, or it is damaged"):
        artifact.open_artifact(folder)
    (folder / "train_gpt_readable.py").write_text("(" * 5000)
    with pytest.raises(ValueError, match="is no program"):
        artifact.code_rows(folder, "torch")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium on PATH")
def test_chromium_shows_it_without_a_word_and_without_scrolling_sideways(page, tmp_path):
    """At a phone's width: the console stays empty and nothing but tables is wider than the window."""
    probe = "<script>addEventListener('load',()=>document.title='w'+document.documentElement.scrollWidth+'of'+innerWidth)</script>"
    (tmp_path / "page.html").write_text(page)
    # The window of headless Chromium is at least 500 wide: a frame gives the page a phone's width.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", probe + "</body>")
    (tmp_path / "probe.html").write_text(probed)
    frame = "<iframe src=probe.html width=390 height=800 style='border:0'></iframe><script>onload=()=>document.title=frames[0].document.title</script>"
    (tmp_path / "frame.html").write_text(frame)
    common = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--v=0",
    ]
    common.append(f"--user-data-dir={tmp_path}/profile")
    shown = subprocess.run([*common, "--dump-dom", f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0 and "CONSOLE" not in shown.stderr, shown.stderr
    framed = subprocess.run([*common, "--dump-dom", f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>w(\d+)of390</title>", framed.stdout)
    assert found and 300 < int(found.group(1)) <= 390, framed.stdout[:300]
