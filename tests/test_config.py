"""Configuration: messages for what is wrong, the order of the layers, the round trip, and a reader for every field."""

import dataclasses
import re
from pathlib import Path

import pytest

from trit.config import SECTIONS, RunArgs
from trit.config_load import describe, environment_name, from_dict, known_fields, load, to_dict
from trit.models import arch_names, load_arch

ROOT = Path(__file__).resolve().parent.parent


def test_layers_override_each_other_and_remember_where_values_came_from(tmp_path):
    preset = tmp_path / "p.toml"
    preset.write_text("[model]\nnum_layers = 6\nmodel_dim = 64\nnum_heads = 2\n")
    config, run, origins = load(preset, {"MODEL_DIM": "96", "NUM_HEADS": "3", "SEED": "7"}, ["num_heads=6", "num_kv_heads=3"])
    assert (config.model.num_layers, config.model.model_dim, config.model.num_heads, run.seed) == (6, 96, 6, 7)
    found = [origins[f"model.{name}"] for name in ("num_layers", "model_dim", "num_heads", "mlp_mult")]
    assert found == ["preset", "environment", "override", "default"]
    assert "model_dim=96 (environment)" in describe(config, run, origins)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["model.num_layer=3"], "did you mean 'model.num_layers'"),
        (["nonsense"], "not of the form key=value"),
        (["model.num_layers=three"], "not of type int"),
        (["model.value_residual=maybe"], "not of type bool"),
        (["model.name=transformer"], "unknown architecture 'transformer'"),
        (["train.train_batch_tokens=4000"], "train.train_batch_tokens=4000 is not a multiple of .* nearest 3840 or 4096"),
        (["model.num_heads=5"], "model.num_heads=5 does not divide model.model_dim=128; possible: 1 or 2 or 4"),
        (["model.partial_rope_dims=33"], "must be even"),
        (["model.yarn_max_len=128", "eval.eval_seq_len=128", "eval.eval_stride=64"], "below the longest window 256"),
        (["model.yarn_max_len=256", "eval.eval_seq_len=512"], "below the longest window 512"),
        (["quant.matrix_scheme=binary"], "quant.matrix_scheme=binary is unknown"),
        (["quant.embed_bits=9"], "must be 1 to 8, or 16"),
        (["quant.scale_steps=300"], "must be 0 .16-bit floats. to 256"),
        (["quant.rotate_matrices=true", "quant.bitnet_group_size=48"], "does not divide the rows of .* .64., which a rotation needs"),
        (["train.max_wallclock_seconds=900"], "exceeds what the track leaves"),
        (["engram.engram_buckets=64", "engram.engram_layer=9"], "outside the encoder"),
        (["eval.eval_stride=0"], "eval.eval_stride=0 must be 1 to"),
        (["eval.eval_segment_tokens=256"], "eval_segment_tokens=256 must be 0 .overlapping windows. or more than eval.eval_seq_len=256"),
        (["eval.eval_segment_tokens=512", "eval.eval_seq_len=128"], "limit attention in training too; at least 256"),
        (["track.track=10min"], "unknown track '10min'"),
        (["model.vocab_size=70000"], "16-bit ids"),
    ],
)
def test_bad_settings_are_refused_with_the_mend(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(None, {}, overrides)


def test_environment_names_one_slip_away_are_refused():
    with pytest.raises(ValueError, match="did you mean NUM_LAYERS"):
        load(None, {"NUM_LAYER": "3"}, [])
    load(None, {"PATH": "/bin", "LC_ALL": "C", "HOME": "/"}, [])


def test_presets_are_valid_and_tracks_fill_their_limits():
    for preset in sorted((ROOT / "configs").glob("*.toml")):
        if preset.name != "tracks.toml":
            load(preset, {}, [])
    config, _, origins = load(None, {}, ["track.track=10min_16mb"])
    assert config.track.cap_bytes == 16_000_000 and origins["track.cap_bytes"] == "track"


def test_missing_and_broken_presets_name_the_file(tmp_path):
    with pytest.raises(ValueError, match="no preset file"):
        load(tmp_path / "none.toml", {}, [])
    (tmp_path / "bad.toml").write_text("[model\n")
    with pytest.raises(ValueError, match="bad.toml: not valid TOML"):
        load(tmp_path / "bad.toml", {}, [])


def test_round_trip_through_plain_values():
    config, _, _ = load(None, {}, ["model.num_layers=5", "train.matrix_lr=0.03"])
    assert from_dict(to_dict(config)) == config
    values = to_dict(config)
    values["model"]["num_layer"] = values["model"].pop("num_layers")
    with pytest.raises(ValueError, match="num_layer"):
        from_dict(values)


def test_environment_names_are_unique():
    for name in arch_names():
        names = [environment_name(field) for field in known_fields(load_arch(name).ArchConfig).values()]
        assert len(names) == len(set(names))


def test_every_field_has_help_and_a_reader():
    """A setting nobody reads is a lie: each must be read as cfg.<section>.<field>, config.<section>.<field> or run.<field>."""
    source = "\n".join(
        path.read_text() for path in [*ROOT.glob("trit/**/*.py"), *ROOT.glob("*.py")] if path.name not in ("config.py", "config_check.py")
    )
    sections = {**SECTIONS, "run": RunArgs}
    for section, cls in sections.items():
        for field in dataclasses.fields(cls):
            assert field.metadata["help"]
            wanted = rf"\brun\.{field.name}\b" if section == "run" else rf"\b(cfg|config)\.{section}\.{field.name}\b"
            judged = section == "track" and re.search(
                rf'limits(\(.*\))?\["{field.name}"\]', source
            )  # the certificate reads a record's limits by name
            assert judged or re.search(wanted, source), f"{section}.{field.name} has no reader"
    layers = "\n".join(path.read_text() for path in ROOT.glob("trit/layers/*.py"))
    for name in arch_names():
        text = Path(load_arch(name).__file__).read_text() + layers
        for field in dataclasses.fields(load_arch(name).ArchConfig):
            assert re.search(rf"\bcfg\.arch\.{field.name}\b", text), f"{name}: arch.{field.name} has no reader"
