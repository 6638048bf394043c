"""`sem`: Signal-Entropic Model, a language model of complex numbers. Transport encoder, complex state-space layers, norm-keeping propagators
in the middle and at the end, log-linear head. The stream holds D = model_dim complex channels as (B, T, 2 D), real parts first.
"""

from dataclasses import dataclass

from trit.layers.complex_ssm import ComplexSsmConfig, check_complex_ssm, complex_ssm_layer, complex_ssm_specs, complex_ssm_tables
from trit.layers.engram import engram_layer, engram_specs
from trit.layers.linear import project
from trit.layers.pairs import doubled, halves, pair_norm, pair_norm_spec
from trit.layers.propagator import (
    PropagatorConfig,
    cayley_matrix,
    cayley_turn,
    check_propagator,
    hamiltonian,
    kerr_turn,
    propagator_specs,
    propagator_state,
    solve_counts,
)
from trit.layers.transport import TransportConfig, check_transport, encoded, transport_plan, transport_specs, transport_state
from trit.params import ParamSpec, on_grid, scalar_spec

__all__ = ["ArchConfig", "check_settings", "folded", "forward", "param_specs", "probe", "probed_groups", "readout", "update_state"]


@dataclass(frozen=True)
class ArchConfig(PropagatorConfig, ComplexSsmConfig, TransportConfig):
    """Settings of encoder, layers and propagators."""

    experts = 0  # no annotation: a constant, not a setting


def check_settings(cfg):
    """ValueError where settings cannot be."""
    check_transport(cfg)
    check_complex_ssm(cfg)
    check_propagator(cfg)


def param_specs(cfg):
    """Table of all tensors."""
    width, size = cfg.model.model_dim, cfg.model.vocab_size
    specs = transport_specs(cfg)
    if cfg.engram.engram_buckets:
        specs += engram_specs(cfg)
    for i in range(cfg.model.num_layers):
        specs += complex_ssm_specs(cfg, f"layer{i}", i)
    if cfg.arch.propagators > 1:
        specs += propagator_specs(cfg, "middle", True)
    if cfg.arch.propagators > 0:
        specs += propagator_specs(cfg, "last", cfg.arch.last_cayley)
    head = ParamSpec("head", (size, 2 * width), "normal", 0.3 * width**-0.5, "embed", rotate=cfg.quant.rotate_embedding)
    head = on_grid(head, cfg.quant.embed_bits, cfg.quant.embed_group_size or 2 * width, cfg.quant.int_clip)
    return specs + [pair_norm_spec(cfg, "final_norm", width), head, scalar_spec(cfg, "vocab_bias", (size,), 0.0)]


def forward(ops, p, cfg, tokens):
    """Token ids (B, T) -> (stream (B, T, 2 D), no auxiliary losses). The stream at t depends on tokens up to t only."""
    x, tables = encoded(ops, p, cfg, tokens), complex_ssm_tables(ops, cfg, tokens)
    for i in range(cfg.model.num_layers):
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            real, imaginary = halves(x)
            x = ops.concat([real + engram_layer(ops, p, cfg, real, tokens), imaginary], -1)
        added = complex_ssm_layer(ops, p, cfg, f"layer{i}", x, tables, i)
        if cfg.train.drop_path and "keep" in p:
            added = p["keep"][i] * added
        x = x + added
        if cfg.arch.propagators > 1 and i == (cfg.model.num_layers - 1) // 2:
            x = cayley_turn(ops, p, cfg, "middle", kerr_turn(ops, p, cfg, "middle", x))
    if cfg.arch.propagators > 0:
        x = kerr_turn(ops, p, cfg, "last", x)
        if cfg.arch.last_cayley:
            x = cayley_turn(ops, p, cfg, "last", x)
    return x, {}


def update_state(ops, p, cfg):
    """What a training step shall find in its `p` beside weights, {name: array}: from the weights as the forward sees them and from what
    the step before was given. Evaluation has none of it and finds the same from the weights alone."""
    found = {}
    if cfg.arch.encoder == "transport":
        dual, epsilon = transport_state(ops, p, cfg)
        found = {"encoder.dual": dual, "encoder.epsilon": epsilon}
    if cfg.arch.cayley_solver == "cg":
        found |= propagator_state(ops, p, cfg)
    return found


def readout(ops, p, cfg, x):
    """Any positions of the stream (B, T, 2 D) -> logits (B, T, V) float32: linear in the real and imaginary parts, then the bias."""
    return ops.cast(project(ops, p, cfg, "head", pair_norm(ops, p, "final_norm", x)), "float32") + p["vocab_bias"]


def folded(ops, p, cfg):
    """Weights of the same model without the Cayley step behind the last layer (arch.last_cayley=false): the final norm does not see it, for
    it keeps the norm, and gains and head take it in. For weights in full precision, before rounding begins: it mixes a head's columns."""
    width, turn = cfg.model.model_dim, cayley_matrix(ops, hamiltonian(ops, p, cfg, "last"), cfg.arch.cayley_step)
    gains = doubled(ops, p["final_norm"])
    kept = {name: x for name, x in p.items() if name not in ("last.edges", "last.scales")}
    return kept | {"head": (p["head"] * gains) @ turn, "final_norm": ops.zeros((width,), gains) + 1.0}


def probed_groups(cfg):
    """{group: names of its tensors}: those whose gradients a run reports, the propagators' and the rates at which states decay and turn."""
    found = {"rates": [f"layer{i}.{part}" for i in range(cfg.model.num_layers) for part in ("decay", "frequency")]}
    places = (["middle"] if cfg.arch.propagators > 1 else []) + (["last"] if cfg.arch.propagators > 0 else [])
    if places:
        found["propagators"] = [spec.name for spec in param_specs(cfg) if spec.name.split(".")[0] in places]
    return found


def probe(ops, p, cfg, tokens):
    """What a run reports of weights, and of the state of the step before where `p` has it, on tokens (B, T), {name: number}: how far a row's
    energy moves at a propagator, at most and as a share of it; iterations of conjugate gradients that its columns need there on average, as
    the next step solves and without the step before; how far the plan's columns are from equal masses in sum; codes that a row uses."""
    p, found = {**p, **update_state(ops, p, cfg)}, {}
    if cfg.arch.encoder == "transport":
        rows = ops.exp(transport_plan(ops, p, cfg))
        found["plan_columns"] = float(ops.sum(ops.abs(ops.mean(rows, 0) - 1.0 / cfg.arch.codes)))
        found["plan_support"] = float(ops.mean(ops.exp(-ops.sum(rows * ops.log(rows + 1e-30), -1))))
    x, tables = encoded(ops, p, cfg, tokens), complex_ssm_tables(ops, cfg, tokens)
    for i in range(cfg.model.num_layers):
        if cfg.engram.engram_buckets and i == cfg.engram.engram_layer:
            real, imaginary = halves(x)
            x = ops.concat([real + engram_layer(ops, p, cfg, real, tokens), imaginary], -1)
        x = x + complex_ssm_layer(ops, p, cfg, f"layer{i}", x, tables, i)
        for name, here in (("middle", (cfg.model.num_layers - 1) // 2), ("last", cfg.model.num_layers - 1)):
            if i != here or cfg.arch.propagators < (2 if name == "middle" else 1):
                continue
            before, x = x, kerr_turn(ops, p, cfg, name, x)
            if name == "middle" or cfg.arch.last_cayley:
                if cfg.arch.cayley_solver == "cg":
                    for form, known in (("warm", p), ("cold", {key: value for key, value in p.items() if key != name + ".factor"})):
                        found[f"iterations_{name}_{form}"] = float(ops.mean(solve_counts(ops, known, cfg, name, x)))
                x = cayley_turn(ops, p, cfg, name, x)
            one, two = (ops.sum(ops.cast(part, "float32") ** 2, -1) for part in (before, x))
            found[f"energy_{name}"] = float(ops.max(ops.abs(two / one - 1.0)))
    return found
