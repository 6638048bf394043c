"""No false alarm: honest records of every preset, and of every part of the evaluator alone and together, pass every check."""

import shutil
from pathlib import Path

import pytest
from cheat_fixtures import PIECES, SETTINGS, Cheat, make_data, make_record, score_and_judge, write_text
from model_fixtures import TINY_CAPSULES

from trit.config_load import load
from trit.eval.ttt import TTT_SCOPES
from trit.proof.claims import RECORD_TRACKS

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


# One preset of 65 million weights shows that size raises no alarm; the others of its size are judged at a sixth of their width.
WHOLE, WIDE = "engram_lite", 256
NARROW = ["model.model_dim=128", "model.embed_dim=64"]


def recipe(name):
    """(preset, settings) of the record of a part or of a preset."""
    if name in PARTS:
        return None, [*SETTINGS, *PARTS[name]]
    preset, settings = str(ROOT / "configs" / f"{name}.toml"), [f"model.vocab_size={PIECES}", "track.cap_bytes=16000000"]
    wide = load(preset, {})[0].model.model_dim > WIDE
    return preset, settings + NARROW * (wide and name != WHOLE)


def judged(request, root, names):
    """{name: {check that does not pass: its verdict}} of honest records of random weights, of those `names` that this session tests. All are
    scored by one isolated process and judged by another: loading PyTorch takes longer than scoring a tiny text."""
    chosen = [item.callspec.params.get("name") for item in request.session.items if item.module is request.module]
    data, names = make_data(root, write_text(root)), [name for name in names if name in chosen]
    records = {name: make_record(root / f"made_{number}", data, *recipe(name)) for number, name in enumerate(names)}
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
def presets(request, tmp_path_factory, one_thread):
    rest = judged(request, tmp_path_factory.mktemp("presets"), [name for name in PRESETS if name != WHOLE])
    return rest | judged(request, tmp_path_factory.mktemp("whole"), [WHOLE])


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
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes(name, presets):
    """One seed proves nothing on a track of records, and there alone its certificate says so."""
    single = load(recipe(name)[0], {})[0].track.track in RECORD_TRACKS
    assert presets[name] == ({"seeds and statistics": "unknown"} if single else {})
