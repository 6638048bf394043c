"""Records of several seeds become one that a stranger's check accepts; what does not belong together is refused."""

import json
import shutil
import statistics

import pytest
from cheat_fixtures import SEEDS, honest_data, scored_records
from store import copy

from trit.report.leaderboard import leaderboard
from trit.report.public import read_public
from trit.report.seeds import different_settings, main, merge


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(data folder, [finished records of three seeds])."""
    root = tmp_path_factory.mktemp("seeds")
    folders = [copy(folder, root / folder.name) for folder in scored_records().values()]
    for folder in folders:
        change(folder, compliance={"runs alone": True})
    return honest_data(), folders


def change(folder, name="submission.json", **values):
    """Set top-level values of a JSON file."""
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(said | values))


def test_three_seeds_make_one_certified_record(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, folders = runs
    main([*map(str, folders), "--records", str(tmp_path / "records"), "--data", str(data), "--name", "three"])
    folder = tmp_path / "records" / capsys.readouterr().out.strip().splitlines()[-1].rpartition("records/")[2]
    submission, certificate = (json.loads((folder / name).read_text()) for name in ("submission.json", "certificate.json"))
    assert certificate["summary"]["fail"] == 0 and all(item["verdict"] == "pass" for item in certificate["checks"])
    parts = [json.loads((one / "submission.json").read_text()) for one in folders]
    scores = [part["val_bpb"] for part in parts]
    assert len(set(scores)) == 3 and submission["seeds"] == list(SEEDS)
    assert submission["val_bpb"] == pytest.approx(statistics.fmean(scores))
    assert submission["val_bpb_std"] == pytest.approx(statistics.stdev(scores))
    largest = max(folders, key=lambda one: (one / "artifact.trit").stat().st_size)
    assert (folder / "artifact.trit").read_bytes() == (largest / "artifact.trit").read_bytes()
    assert submission["bytes_total"] == max(part["bytes_total"] for part in parts)
    readme = (folder / "README.md").read_text()
    assert f"seeds {', '.join(map(str, SEEDS))}" in readme and all(
        f"| {seed} | {score:.6f}" in readme for seed, score in zip(SEEDS, scores)
    )
    for seed, one in zip(SEEDS, folders):
        assert (folder / f"train_seed{seed}.log").read_bytes() == (one / "train.log").read_bytes()
    # Others can read it too.
    public = read_public(folder)
    assert [seed.seed for seed in public.seeds] == [str(seed) for seed in SEEDS] and not public.doubts
    assert "| 3 |" in leaderboard(tmp_path / "records") and (tmp_path / "records" / "README.md").exists()


def test_what_does_not_belong_together_is_refused(runs, tmp_path):
    data, folders = runs
    copy = shutil.copytree(folders[0], tmp_path / "copy")

    def refused(words, *given):
        with pytest.raises(ValueError, match=words):
            merge([copy, *given], tmp_path / "records", "x", data)
        assert not (tmp_path / "records").exists()

    refused("one is there twice", folders[0])
    refused("a single record needs no merging")
    config = json.loads((copy / "config.json").read_text())
    change(copy, "config.json", train=config["train"] | {"matrix_lr": 0.5})
    refused(r"other settings: train.matrix_lr: 0.5, 0.02", folders[1])
    change(copy, "config.json", train=config["train"], track=config["track"] | {"track": "10min_16mb"})
    refused("other settings: track.track", folders[1])
    change(copy, "config.json", track=config["track"])
    (copy / "train_gpt.py").write_bytes(b"print(1)")
    refused("other counted files", folders[1])
    shutil.copyfile(folders[0] / "train_gpt.py", copy / "train_gpt.py")
    change(copy, compliance={})
    refused("no certificate; build it again", folders[1])
    change(copy, compliance={"x": True}, seeds=[7, 9])
    refused("give the records of single runs", folders[1])


def test_record_tracks_ask_for_three_seeds(runs, tmp_path):
    data, folders = runs
    pair = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders[:2]]
    for folder in pair:
        config = json.loads((folder / "config.json").read_text())
        change(folder, "config.json", track=config["track"] | {"track": "10min_16mb"})
    with pytest.raises(ValueError, match="2 seeds; the track 10min_16mb asks for at least 3"):
        merge(pair, tmp_path / "records", "x", data)


def test_a_seed_whose_log_says_otherwise_is_not_filed(runs, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data, folders = runs
    lied = shutil.copytree(folders[1], tmp_path / "lied")
    said = json.loads((lied / "submission.json").read_text())
    (seed,) = said["seed_results"]
    change(lied, seed_results={seed: said["seed_results"][seed] | {"val_bpb": said["val_bpb"] - 0.01}})
    with pytest.raises(SystemExit, match="nothing was filed: .*claimed scores"):
        main([str(folders[0]), str(lied), "--records", str(tmp_path / "records"), "--data", str(data)])
    assert not list((tmp_path / "records").rglob("submission.json"))


def test_differences_of_settings_are_named():
    one = {"a": {"b": 1, "c": 2}, "d": 3}
    assert different_settings(one, {"a": {"b": 1, "c": 5}, "e": 4}) == ["a.c: 2, 5", "d: 3, None", "e: None, 4"]
