"""No dead end: every setting changes what a run trains, stores, scores or logs, in a configuration where its help says that it should;
and every tensor of every preset gets a gradient within three steps."""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np
import pytest
from model_fixtures import TINY_CAPSULES, TINY_EXPERTS, TINY_FEEDBACK, random_tokens, start, tiny_config

from trit.bundle.bundle import shaken_text
from trit.config import SECTIONS
from trit.config_load import ROOT, known_fields, load
from trit.data.shards import write_shard
from trit.data.token_ids import BOS_ID
from trit.models import arch_names, load_arch
from trit.ops import torch_ops
from trit.submission import compressed, find_calibration, load_artifact, score_arrays, train_weights
from trit.train import torch_backend
from trit.train.log import Log

# Short runs whose results are compared: `base` is every context's start.
BASE = {"vocab_size": 260, "iterations": 4, "train_batch_tokens": 128, "calibration_tokens": 300, "calibration_evals": 0, "warmup_steps": 0}
ENGRAM = {"engram_buckets": 64}
MEMORIES = {"ngram_order": 3, "ngram_nodes": 1040, "eval_engram_buckets": 64, "eval_engram_entropy": 0.5, "memory_chunk_tokens": 8}
LEARNING = {"ttt_scope": "lora", "eval_chunk_tokens": 64}
MANY = {"num_layers": 4, "train_batch_tokens": 128}
CHUNK = {"chunk": 8, "embed_dim": 32}
PRESSED = {"jacobian_bound": 0.0}  # a cell at its start stays within the default bound
NUDGED = {"gradient": "asym_ep", "nudge_steps": 20}
LADDER = {"ladder": "0.5,1", "ladder_window": 4, "ladder_gain": 0.9, "iterations": 16, "ladder_end": 0.9, "log_every": 1}
GRIDS = {"scalar_bits": 6, "scale_steps": 8, "embed_bits": 4, "engram_bits": 2, "engram_buckets": 64}

# Settings that need another context than BASE, or another value than the first that is valid.
CONTEXTS = {
    "model.name": ("hybrid", {}),
    "model.logit_softcap": (3.0, {}),
    "model.yarn_max_len": (512, {}),
    "model.isolate_documents": ("true", {"ngram_order": 0}),
    "engram.engram_heads": (1, ENGRAM),
    "engram.engram_orders": (1, ENGRAM),
    "engram.engram_row_dim": (16, ENGRAM),
    "engram.engram_layer": (1, ENGRAM),
    "engram.gate_bias_init": (1.5, ENGRAM),
    "engram.write_every": (2, ENGRAM),
    "compress.engram_keep": ("0.3", {"engram_buckets": 512}),
    "compress.engram_keep_norm_weight": (0.1, {"engram_buckets": 512, "engram_keep": "0.3"}),
    "quant.matrix_bits": (3, {"matrix_scheme": "int"}),
    "quant.ternary_scale": ("least_squares", {}),
    "quant.int_clip": (1.5, {"matrix_scheme": "int"}),
    "quant.engram_bits": (2, ENGRAM),
    "quant.engram_clip": (1.0, ENGRAM),
    "quant.engram_group_size": (32, ENGRAM),
    "quant.scalar_bits": (5, {}),
    "quant.scalar_clip": (2.0, GRIDS),
    "quant.scale_steps": (4, {}),
    "quant.rotate_embedding": ("true", {}),
    "quant.full_precision_fraction": (0.6, {}),
    "train.iterations": (3, {}),
    "train.max_wallclock_seconds": (1e-9, {"iterations": 4}),
    "train.seq_schedule": ("8:0.5", {}),
    "train.batch_schedule": ("64:0.5", {}),
    "train.recurrence_start": (0.6, {"recurrent_layers": "0"}),
    "train.ladder": ("0.5,1", {}),
    "train.ladder_window": (12, LADDER),
    "train.ladder_gain": (1e-6, LADDER),
    "train.ladder_end": (0.3, LADDER | {"ladder_window": 100}),
    "train.carry": ("true", TINY_CAPSULES),
    "train.carry_reset": (0.9, TINY_CAPSULES | {"carry": "true"}),
    "train.carry_windows": (2, TINY_CAPSULES | {"carry": "true"}),
    "train.engram_lr": (0.1, ENGRAM),
    "train.adam_eps": (1e-2, {}),
    "train.grad_clip_norm": (0.01, {}),
    "train.warmup_fraction": (0.5, {}),
    "train.warmdown_fraction": (0.9, {}),
    "train.min_lr": (0.5, {}),
    "train.ema_decay": (0.5, {}),
    "train.ema_start_fraction": (0.9, {"ema_decay": 0.5}),
    "train.grad_accum_steps": (2, {}),
    "train.log_every": (2, {}),
    "train.fp8": ("true", {"bitnet_group_size": 64, "num_heads": 2, "partial_rope_dims": 4}),
    "compress.calibration_tokens": (600, {"fit_temperature": "true"}),
    "compress.calibration_evals": (6, {}),
    "compress.calibration_seconds": (1e-9, {"calibration_evals": 6}),
    "compress.allocate": ("true", {}),
    "compress.model_bytes_cap": (6_000, {"allocate": "true"}),
    "eval.freeze_check_strict": ("false", LEARNING),
    "eval.eval_seq_len": (16, {"train_seq_len": 16, "eval_stride": 16}),
    "eval.eval_segment_tokens": (96, {}),
    "eval.eval_chunk_tokens": (128, LEARNING),
    "eval.ngram_order": (3, {}),
    "eval.ngram_nodes": (2080, MEMORIES | {"ngram_order": 5}),
    "eval.memory_chunk_tokens": (16, MEMORIES),
    "eval.memory_lr": (0.1, MEMORIES),
    "eval.eval_engram_buckets": (32, MEMORIES),
    "eval.eval_engram_orders": (2, MEMORIES),
    "eval.eval_engram_slots": (1, MEMORIES),
    "eval.eval_engram_entropy": (9.0, MEMORIES),
    "eval.ttt_scope": ("scales", {"eval_chunk_tokens": 64}),
    "eval.ttt_lr": (0.5, LEARNING),
    "eval.ttt_momentum": (0.1, LEARNING),
    "eval.ttt_clip": (0.01, LEARNING),
    "eval.ttt_epochs": (2, LEARNING),
    "eval.ttt_lora_rank": (2, LEARNING),
    "arch.recurrent_layers": ("1", {}),
    "arch.recurrence": (3, {"recurrent_layers": "1"}),
    "arch.shared_blocks": (2, MANY),
    "arch.capsules": (4, TINY_CAPSULES | {"capsules": 0, "capsule_dim": 64, "capsule_block": 16, "capsule_memory": 32.0}),
    "arch.experts": (2, {"expert_layer_fraction": 0.33, "num_layers": 4}),
    "arch.layer_map": ("s", {}),
    "arch.feedback_passes": (1, {}),
    "arch.capsule_rank": (2, TINY_CAPSULES),
    "arch.expert_layer_fraction": (1.0, TINY_EXPERTS),
    "arch.skc_entropy_weight": (1.0, {"skc_entropy_fraction": 0.999}),
    "arch.skc_entropy_fraction": (0.99, {"skc_entropy_weight": 1.0}),
    "arch.koopman_hadamard": ("false", {}),
    "arch.encoder": ("embedding", {"embed_dim": 32}),
    "arch.sinkhorn_rounds": (2, {}),
    "arch.propagators": (1, {}),
    "arch.cg_tolerance": ("schedule", {"cayley_solver": "cg"}),
    "arch.fir_channels": (16, {}),
    "arch.chunk": (4, CHUNK | {"chunk": 0}),
    "arch.chunk_rank": (16, CHUNK),
    "arch.chunk_weight": (0.1, CHUNK),
    "arch.norm_cap": (0.5, {}),
    "arch.free_budget": (5, {}),
    "arch.residual_gate": (1e-6, {}),
    "arch.adjoint_budget": (2, {}),
    "arch.nudge": (2.0, NUDGED),
    "arch.nudge_steps": (2, NUDGED),
    "arch.fresh_nudge": ("true", NUDGED),
    "arch.directions": (2, {"gradient": "eligibility", "directions": 1}),
    "arch.free_tolerance": (0.05, {}),
    "arch.jacobian_penalty": (3.0, PRESSED),
    "arch.jacobian_scope": ("text", PRESSED),
    "arch.jacobian_turns": (0, PRESSED),
    "arch.jacobian_share": (1.0, PRESSED),
    "arch.residual_target": (1e-6, PRESSED | {"iterations": 12}),
}
# Settings beside arch.* that only some architectures heed.
HEEDED_BY = dict.fromkeys(("ladder", "ladder_window", "ladder_gain", "ladder_end"), "spectral_lm")
# By the first word of an arch setting's name.
FAMILIES = {"capsule": TINY_CAPSULES, "feedback": TINY_FEEDBACK, "expert": TINY_EXPERTS}

# By contract these change no number; the counted program must change instead.
COUNTED_ONLY = {"train.loss_chunk_tokens", "eval.eval_batch_seqs", "train.warmup_steps", "eval.evaluation_only", "eval.eval_compile"}
COUNTED_ONLY |= {"arch.fir_training", "train.compile", "train.attention_kernel", "eval.freeze_check_strict", "compress.coders"}
# What a run, a build or a certificate reads beside the program, each held by the test named here.
ELSEWHERE = {
    "train.checkpoint_every": "test_resume.py",
    "compress.predict_every": "test_fit.py",
    "compress.code_bytes_reserve": "record_fixtures.py",
    "track.track": "test_certify.py",
    "track.cap_bytes": "test_submission.py",
    "track.train_seconds": "test_cheats.py",
    "track.eval_seconds": "test_cheats.py",
}


BEFORE = {}  # stages of configurations that several settings are compared with: the data of every test are the same


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A data folder of byte260: documents of a few repeated words each, 6,000 training and 700 validation tokens with ids below 64."""
    generator, folder = np.random.default_rng(0), tmp_path_factory.mktemp("documents")
    words = [generator.integers(4, 64, 5) for _ in range(12)]
    for split, count in (("train", 1200), ("val", 140)):
        text = np.concatenate([words[i] for i in generator.integers(0, 12, count)])
        text[::25] = BOS_ID
        write_shard(folder / f"tiny_{split}_000000.bin", text)
    return str(folder)


class Lines(Log):
    """Keeps what is logged, less what the clock makes of it."""

    def __init__(self):
        super().__init__(rank=0)
        self.found = []

    def line(self, text):
        self.found.append(text.split(" train_time")[0] if text.startswith("step:") else "")


def stages(config, folder):
    """Yield digests of all that a run of `config` gives, as it comes: log and weights, calibration, artifact, losses of the validation text."""
    arch, process, log = load_arch(config.model.name), torch_backend.start_process(), Lines()
    arrays, result = train_weights(torch_ops, torch_backend, arch, config, process, folder, 1, log)
    yield digest(log.found, result.steps, result.skipped, sorted(arrays), *arrays.values())
    calibration = find_calibration(torch_ops, torch_backend, arch, config, process, arrays, folder, log)
    yield digest(log.found, sorted(arrays), *arrays.values(), sorted(calibration.items()))
    _, artifact = compressed(torch_ops, torch_backend, arch, config, process, arrays, calibration, folder, log)
    yield digest(log.found, artifact)
    loaded = load_artifact(torch_ops, arch, config, artifact)
    yield digest(log.found, score_arrays(torch_ops, torch_backend, arch, config, process, loaded, folder, "byte260", log)[1])


def digest(*found):
    """A digest of arrays, bit for bit, and of what else has a `repr`."""
    made = hashlib.sha256()
    for value in found:
        made.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return made.hexdigest()


class Stages:
    """The stages of one run, each run when it is asked for and kept."""

    def __init__(self, config, folder):
        self.coming, self.found = stages(config, folder), []

    def __iter__(self):
        for place in itertools.count():
            if place == len(self.found):
                if (stage := next(self.coming, None)) is None:
                    return
                self.found.append(stage)
            yield self.found[place]


counted_text = functools.cache(shaken_text)


def arch_of(name):
    """An architecture whose settings hold arch.`name`, the plainest first."""
    return next(
        arch for arch in ("unet", "koopman_ssm", "skc", *arch_names()) if f"arch.{name}" in known_fields(load_arch(arch).ArchConfig)
    )


def other_value(field, held):
    """A value near the one held, of the same kind."""
    if isinstance(held, bool):
        return str(not held).lower()
    if field.metadata["choices"]:
        return next(choice for choice in field.metadata["choices"] if choice != held)
    return held * 2 or 1 if isinstance(held, int) else held / 2 or 0.1


def two_configs(section, field):
    """(Config without, Config with another value of a setting) in a context where it matters."""
    key = f"{section}.{field.name}"
    arch = arch_of(field.name) if section == "arch" else HEEDED_BY.get(field.name, "unet")
    value, context = CONTEXTS.get(key, (None, FAMILIES.get(field.name.split("_")[0], {}) if section == "arch" else {}))
    before = tiny_config(arch, **BASE | context)
    if value is None:
        value = other_value(field, getattr(getattr(before, section), field.name))
    if key == "model.name":
        return before, tiny_config(value, **BASE)
    return before, tiny_config(arch, **BASE | context | {field.name: value})


def all_settings():
    """[(section, field)] of every setting of every architecture, once."""
    found = {f"{section}.{field.name}": (section, field) for section, cls in SECTIONS.items() for field in dataclasses.fields(cls)}
    for name in arch_names():
        found |= {f"arch.{field.name}": ("arch", field) for field in dataclasses.fields(load_arch(name).ArchConfig)}
    return found


@pytest.mark.parametrize("key", [key for key in all_settings() if key not in COUNTED_ONLY and key not in ELSEWHERE])
def test_every_setting_changes_what_a_run_gives(key, documents):
    before, after = two_configs(*all_settings()[key])
    assert before != after
    if before not in BEFORE:
        BEFORE[before] = Stages(before, documents)
    assert any(left != right for left, right in zip(BEFORE[before], stages(after, documents), strict=True))


def test_a_run_alone_decides_its_stages(documents):
    """Also where another run goes on in between."""
    config, other = tiny_config("unet", **BASE), tiny_config("unet", **BASE | {"iterations": 3})
    found = [stage for stage, _ in zip(stages(config, documents), stages(other, documents), strict=True)]
    assert len(set(found)) == 4 and found == list(stages(config, documents))


@pytest.mark.parametrize("key", sorted(COUNTED_ONLY))
def test_settings_without_a_number_change_the_counted_program(key):
    before, after = two_configs(*all_settings()[key])
    assert counted_text(before) != counted_text(after)


@pytest.mark.parametrize("key", sorted(ELSEWHERE))
def test_the_rest_is_tested_where_it_says(key):
    assert key in all_settings() and key.split(".")[1] in (ROOT / "tests" / ELSEWHERE[key]).read_text()


PRESETS = sorted(path.stem for path in (ROOT / "configs").glob("*.toml") if path.stem != "tracks")


SMALL = ("demo", "hybrid", "koopman_ssm", "skc")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SMALL else pytest.mark.slow) for name in PRESETS])
def test_every_tensor_of_a_preset_learns_by_the_third_step(name):
    """The first moment of every tensor is non-zero; a window of at most 128 tokens stands for the preset's own."""
    path = ROOT / "configs" / f"{name}.toml"
    length = min(load(path, {})[0].train.train_seq_len, 128)
    small = [f"train.train_batch_tokens={2 * length}", f"train.train_seq_len={length}", "train.grad_accum_steps=1", "train.compile=false"]
    config, _, _ = load(path, {}, small)
    trained = start(config)
    for seed in range(3):
        rows = random_tokens(config, 2, length + 1, seed)
        trained.step(rows[:, :-1], rows[:, 1:], 1.0, True, False)
    state = trained.state()
    idle = [spec.name for spec in load_arch(config.model.name).param_specs(config) if not np.abs(state[f"optimizer/{spec.name}/0"]).any()]
    assert not idle
