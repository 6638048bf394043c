"""No false alarm: honest records of every preset, and of every part of the evaluator alone and together, pass every check."""

from pathlib import Path

import pytest
from cheat_fixtures import PIECES, SETTINGS, Cheat, make_data, make_record, score_and_judge, write_text

from trit.config_load import load
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
PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem != "tracks")


def assert_clean(tmp_path, preset, settings):
    """Every check passes for a record of random weights made with `preset` and `settings`."""
    data = make_data(tmp_path, write_text(tmp_path))
    record = make_record(tmp_path / "record", data, preset, settings)
    (found,) = score_and_judge([Cheat("clean", set(), edits=())], record, data, tmp_path).values()
    assert not [item for item in found if item.verdict != "pass"]


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_evaluator_passes(part, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = [*SETTINGS, *PARTS[part]]
    try:
        load(None, {}, settings)
    except ValueError as fault:
        if "adapts no tensor of this architecture" not in str(fault):
            raise
        pytest.skip(str(fault))
    assert_clean(tmp_path, None, settings)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_passes(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [f"model.vocab_size={PIECES}", "track.cap_bytes=16000000"]
    assert_clean(tmp_path, str(ROOT / "configs" / f"{preset}.toml"), small)
