"""Other people's record folders: every layout of contest.md 1.3 to 1.5 is read, and every contradiction named there is seen."""

import itertools
import json

import pytest

from trit.report.public import main, read_public

SEEDS = {"1337": (2.0200, 1.1964), "42": (2.0220, 1.1976), "7": (2.0210, 1.1970)}
MEAN, LOSS, DEVIATION = 1.1970, 2.0210, 0.0006
SOURCE = 'log0(f"final_int8_zlib_roundtrip_exact val_loss:{v:.8f} val_bpb:{b:.8f}")\n# val_bpb: 9.9999 is not a score\n'
RESULTS = {seed: {"val_loss": loss, "val_bpb": bpb, "artifact_bytes": 15_800_000, "steps": 5000} for seed, (loss, bpb) in SEEDS.items()}
ABOUT = {"author": "a", "github_id": "a", "name": "n", "date": "2026-04-01T10:00:00Z", "val_bpb": MEAN, "val_loss": LOSS}
SHAPES = {
    "results by seed": ABOUT | {"seeds": [1337, 42, 7], "seed_results": RESULTS, "val_bpb_std": DEVIATION},
    "seeds as an object": ABOUT | {"seeds": {seed: {**row, "bytes_total": 15_900_000} for seed, row in RESULTS.items()}},
    "seeds with names": ABOUT | {"seed_results": {f"seed_{seed}": row for seed, row in RESULTS.items()}},
    "a list of results": ABOUT | {"seed_results": [{"seed": int(seed), **row} for seed, row in RESULTS.items()]},
    "numbers by seed": ABOUT | {"seed_results": {seed: row["val_bpb"] for seed, row in RESULTS.items()}},
    "means under other names": {"author": "a", "mean_val_bpb": MEAN, "mean_val_loss": LOSS, "seed_results": RESULTS},
    "no headline": {"author": "a", "date": "2026-04-01", "seed_results": RESULTS},
}
FINAL = {
    "baseline": "final_int8_zlib_roundtrip_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}",
    "int6": "final_int6_sliding_window_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f} stride:64 eval_time:100ms",
    "phased": "quantized_ttt_phased val_loss:{loss:.8f} val_bpb:{bpb:.8f} eval_time:400000ms",
    "spaced": "5000/20000 val_loss: {loss:.4f} val_bpb: {bpb:.4f}",
    "lab": "final_sliding val_loss:{loss:.4f} val_bpb:{bpb:.4f} (stride=16, T=0.90) eval_time:9ms",
}
PLACES = {"by seed": "train_seed{seed}.log", "text": "train_seed_{seed}.txt", "below": "logs/train_seed{seed}.log"}


def log_text(grammar, seed, bpb=None, parameters=17_059_912, total=15_900_000):
    """A log that begins with its program's source, as the contest's logger writes it."""
    loss, own = SEEDS[seed]
    line = FINAL[grammar].format(loss=loss, bpb=bpb or own)
    steps = "step:4000/20000 val_loss:2.1000 val_bpb:1.2437 train_time:400000ms step_avg:100.00ms"
    rest = f"model_params:{parameters}\nseed:{seed}\n{steps}\nTotal submission size int8+zlib: {total} bytes\n{line}\n"
    return SOURCE + "=" * 100 + "\nRunning Python 3.12\n" + "=" * 100 + "\n" + rest


def write(folder, said, grammar="baseline", place="by seed", name="submission.json", readme=None, code=b"x" * 5000, **changed):
    """A record folder."""
    for seed in SEEDS:
        path = folder / PLACES[place].format(seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log_text(grammar, seed, **changed))
    if said is not None:
        (folder / name).write_text(json.dumps(said))
    (folder / "README.md").write_text(f"# val_bpb {MEAN:.4f}, mean of 3\n" if readme is None else readme)
    (folder / "requirements.txt").write_text("torch\nval_bpb\n")
    if code is not None:
        (folder / "train_gpt.py").write_bytes(code)
    return folder


LAYOUTS = list(itertools.product(SHAPES, FINAL, PLACES))


@pytest.mark.parametrize("shape,grammar,place", LAYOUTS)
def test_every_layout_is_read(shape, grammar, place, tmp_path):
    record = read_public(write(tmp_path, SHAPES[shape], grammar, place))
    assert not record.doubts
    assert record.bpb == pytest.approx(MEAN, abs=1e-6)
    assert {seed.seed: seed.bpb for seed in record.seeds} == {seed: bpb for seed, (_, bpb) in SEEDS.items()}
    assert shape in ("means under other names", "no headline") or record.date == "2026-04-01"


def test_there_are_layouts_enough():
    assert len(LAYOUTS) >= 50


@pytest.mark.parametrize("grammar", FINAL)
def test_a_record_of_one_seed_is_read(grammar, tmp_path):
    one = ABOUT | {"val_bpb": SEEDS["1337"][1], "val_loss": SEEDS["1337"][0], "bytes_total": 15_863_489, "bytes_code": 5000}
    record = read_public(write(tmp_path, one, grammar, readme="1.1964"))
    assert not record.doubts and record.bytes_total == 15_863_489
    assert [(seed.seed, seed.bpb) for seed in record.seeds] == [("1337", 1.1964)]


WRONG = {
    "size of the code": ({"said": ABOUT | {"bytes_code": 50_919}}, "says bytes_code 50,919, train_gpt.py has 5,000"),
    "an empty program": ({"code": b""}, "train_gpt.py is empty"),
    "no program": ({"code": None}, "there is no train_gpt.py"),
    "a stub": ({"code": b'exec(open("big_decode.py").read())'}, "stub of 34 bytes that runs big_decode.py (80,000 bytes)"),
    "another run's log": ({"bpb": 1.1666}, "no log has the 1.1964 bits per byte of seed 1337"),
    "the best seed": ({"said": ABOUT | {"val_bpb": 1.1964, "seed_results": RESULTS}, "readme": "1.1964"}, "the headline is the best seed"),
    "another deviation": ({"said": ABOUT | {"seed_results": RESULTS, "val_bpb_std": 0.002}}, "val_bpb_std says 0.00200"),
    "over the cap in the log": ({"total": 16_186_500}, "says 16,186,500 bytes, over the cap"),
    "over the cap by its own word": ({"said": ABOUT | {"bytes_total": 16_638_468}}, "submission.json says 16,638,468 bytes, over the cap"),
    "a seed over the cap": (
        {"said": ABOUT | {"seed_results": RESULTS | {"7": RESULTS["7"] | {"artifact_bytes": 16_000_001}}}},
        "seed 7 says 16,000,001 bytes, over the cap",
    ),
    "no submission.json": ({"said": None}, "there is no submission.json"),
    "one by another name": ({"name": "submission_ternary.json"}, "submission_ternary.json was read"),
    "a README of another score": ({"readme": "# 1.2154"}, "README.md does not name the claimed 1.1970"),
    "a loss alone": ({"said": {"val_loss": 1.14276}}, "names no val_bpb"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_contradiction_is_seen(name, tmp_path):
    changed, words = WRONG[name]
    folder = write(tmp_path, **{"said": ABOUT | {"seed_results": RESULTS}} | changed)
    (folder / "big_decode.py").write_bytes(b"#" * 80_000)
    assert any(words in doubt for doubt in read_public(folder).doubts), read_public(folder).doubts


def test_logs_of_two_models_and_a_seed_twice_are_seen(tmp_path):
    twice = [{"seed": 42, **RESULTS["42"]}, {"seed": 42, **RESULTS["7"]}, {"seed": 7, **RESULTS["7"]}]
    folder = write(tmp_path, ABOUT | {"seed_results": twice})
    (folder / "train_seed7.log").write_text(log_text("baseline", "7", parameters=21_780_000))
    doubts = " ".join(read_public(folder).doubts)
    assert "logs are of different models" in doubts and "21,780,000" in doubts and "no log has" not in doubts


def test_damaged_folders_are_doubted_not_believed(tmp_path, capsys):
    (tmp_path / "submission.json").write_text("{half")
    (tmp_path / "train.log").write_bytes(b"\xff\xfe\x00val_bpb:")
    record = read_public(tmp_path)
    assert any("is not JSON" in doubt for doubt in record.doubts) and not record.seeds
    (tmp_path / "submission.json").write_text("[1, 2]")
    assert any("holds no object" in doubt for doubt in read_public(tmp_path).doubts)
    with pytest.raises(SystemExit, match="is no folder; give a record's"):
        main([str(tmp_path / "absent")])
    main([str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out)["records"][0]["doubts"]
