"""No false alarm: honest records of every preset, and of every part of the evaluator alone and together, pass every check."""

import shutil
from pathlib import Path

import pytest
from cheat_fixtures import PIECES, SETTINGS, Cheat, make_data, make_record, score_and_judge, write_text
from model_fixtures import TINY_CAPSULES

from trit.eval.ttt import TTT_SCOPES

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ["eval.ngram_order=0", "eval.eval_engram_buckets=0", "eval.ttt_scope=none"]
PARTS = {
    "plain": PLAIN,
    "chunks of windows": [*PLAIN, "eval.eval_stride=16", "eval.eval_batch_seqs=7"],
    "one window at a time": ["eval.eval_batch_seqs=1", "eval.eval_chunk_tokens=5"],
    "n-gram memory": [*PLAIN, "eval.ngram_order=5"],
    "n-gram memory that forgets": [*PLAIN, "eval.ngram_order=5", "eval.ngram_nodes=1250"],
    "EvalEngram": [*PLAIN, "eval.eval_engram_buckets=32"],
    "documents isolated": ["model.isolate_documents=true", "engram.engram_buckets=64", "engram.engram_row_dim=8"],
    "one pass": [*PLAIN, "eval.eval_segment_tokens=40"],
    "one pass, everything": ["eval.eval_segment_tokens=32", "eval.eval_batch_seqs=2", "model.isolate_documents=true"],
    "temperature": [*PLAIN, "eval.fit_temperature=true"],
    "integers in bfloat16": ["quant.matrix_scheme=int", "train.compute_dtype=bfloat16"],
    **{f"test-time training, {scope}": [*PLAIN, f"eval.ttt_scope={scope}"] for scope in TTT_SCOPES},
}
PARTS["test-time training, capsule_bank"] += [f"arch.{name}={value}" for name, value in TINY_CAPSULES.items()]
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem != "tracks")


def assert_clean(tmp_path, preset, settings):
    """Every check passes for a record of random weights made with `preset` and `settings`."""
    data = make_data(tmp_path, write_text(tmp_path))
    record = make_record(tmp_path / "record", data, preset, settings)
    (found,) = score_and_judge([Cheat("clean", set(), edits=())], record, data, tmp_path).values()
    assert not [item for item in found if item.verdict != "pass"]


def judged(request, root, names):
    """{name: {check that does not pass: its verdict}} of honest records of random weights, of those `names` that this session tests. All are
    scored by one isolated process and judged by another: loading PyTorch takes longer than scoring a tiny text."""
    chosen = [item.callspec.params.get("name") for item in request.session.items if item.module is request.module]
    data, names = make_data(root, write_text(root)), [name for name in names if name in chosen]
    records = {name: make_record(root / f"made_{number}", data, settings=[*SETTINGS, *PARTS[name]]) for number, name in enumerate(names)}
    if not records:
        return {}

    def installed(name):
        def change(folder, data):
            shutil.rmtree(folder)
            shutil.copytree(records[name], folder)

        return change

    entries = [Cheat(name, set(), change=installed(name)) for name in records]
    found = score_and_judge(entries, next(iter(records.values())), data, root)
    return {name: {item.name: item.verdict for item in checks if item.verdict != "pass"} for name, checks in found.items()}


@pytest.fixture(scope="module")
def parts(request, tmp_path_factory, one_thread):
    return judged(request, tmp_path_factory.mktemp("parts"), list(PARTS))


@pytest.fixture(scope="module")
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_of_the_evaluator_passes(name, parts):
    assert not parts[name]


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [f"model.vocab_size={PIECES}", "track.cap_bytes=16000000"]
    assert_clean(tmp_path, str(ROOT / "configs" / f"{preset}.toml"), small)
