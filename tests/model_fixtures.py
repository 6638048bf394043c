"""What the model and training tests share: tiny configurations of every architecture, weights that are nowhere constant, both backends."""

import json
from types import SimpleNamespace

import numpy as np
import torch
from covering import covering
from torch._dynamo.utils import counters

from trit.config_load import load
from trit.eval.temperature import model_logits
from trit.layers.backbone import BackboneConfig
from trit.models import arch_names, load_arch
from trit.ops import mlx_ops, torch_ops
from trit.params import init_params
from trit.train import mlx_backend, torch_backend
from trit.train.log import Log
from trit.train.run import run_training

TINY = {
    "vocab_size": 64,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_mult": 2,
    "embed_dim": 16,
    "partial_rope_dims": 4,
    "yarn_max_len": 256,
    "bitnet_group_size": 16,
    "embed_group_size": 16,
    "engram_row_dim": 8,
    "engram_group_size": 64,
    "train_seq_len": 32,
    "train_batch_tokens": 128,
    "iterations": 60,
    "max_wallclock_seconds": 0,
    "track": "non_record_16mb",
    "warmup_steps": 1,
    "warmup_fraction": 0.05,
    "log_every": 10,
    "calibration_tokens": 128,
    "eval_seq_len": 32,
    "eval_stride": 16,
    "eval_batch_seqs": 4,
}

# What an architecture has beyond those settings.
TINY_KOOPMAN = {"koopman_state_dim": 32, "koopman_horizon": 64.0}
TINY_SKC = {"skc_state_dim": 32, "skc_block": 8, "skc_capsules": 4, "skc_memory": 8.0}
TINY_SEM = {"codes": 32, "code_support": 4, "cost_dim": 16, "state_groups": 2, "state_modes": 16, "spinor_block": 4}
TINY_SEM |= {"graph_scales": 2, "graph_degree": 3}
TINY_ARCH = {"koopman_ssm": TINY_KOOPMAN, "hybrid": TINY_KOOPMAN, "skc": TINY_SKC, "sem": TINY_SEM, "spectral_lm": {"fir_taps": 16}}
TINY_ARCH["equilibrium"] = {"relax_steps": 5, "free_budget": 20, "free_tolerance": 0.005, "residual_gate": 0.1, "adjoint_tolerance": 0.05}

# Parts that any architecture may have, small.
TINY_CAPSULES = {"capsules": 4, "capsule_dim": 16, "capsule_block": 8, "capsule_memory": 8.0}
TINY_FEEDBACK = {"feedback_passes": 1, "feedback_dim": 16, "feedback_block": 8, "feedback_memory": 8.0}
TINY_EXPERTS = {"experts": 3, "expert_layer_fraction": 0.5}

FLAG_SETS = {
    "plain": {},
    "engram": {"engram_buckets": 64},
    "engram_deep": {"engram_buckets": 64, "engram_layer": 1, "engram_orders": 3, "engram_heads": 1},
    "engram_start": {"engram_buckets": 64, "engram_bits": 2},
    "xsa_last": {"xsa_layers": 1},
    "no_value_residual": {"value_residual": "false"},
    "full_embedding": {"embed_dim": 32},
    "isolated": {"isolate_documents": "true", "engram_buckets": 64, "engram_orders": 3},
    "one_layer": {"num_layers": 1, "num_kv_heads": 4},
    "recurrent": {"recurrent_layers": "0"},
    "recurrent_deep": {
        "num_layers": 3,
        "recurrent_layers": "0,1",
        "recurrence": 3,
        "engram_buckets": 64,
        "engram_layer": 1,
        "xsa_layers": 3,
        "isolate_documents": "true",
    },
    "shared": {"num_layers": 4, "shared_blocks": 2, "recurrent_layers": "2", "engram_buckets": 64},
    "odd_all": {"num_layers": 3, "xsa_layers": 3, "engram_buckets": 64, "engram_layer": 1, "num_kv_heads": 1, "partial_rope_dims": 8},
    "modal": {"filter": "modal"},
    "modal_isolated": {"filter": "modal", "isolate_documents": "true", "num_layers": 3, "scalar_bits": 6, "scale_steps": 8},
    "capsules": TINY_CAPSULES,
    "capsules_isolated": TINY_CAPSULES | {"isolate_documents": "true", "num_layers": 3, "capsule_block": 4, "capsule_rank": 0},
    "feedback": TINY_FEEDBACK,
    "experts": TINY_EXPERTS,
    "experts_all": TINY_EXPERTS
    | TINY_FEEDBACK
    | {"experts": 4, "expert_top_k": 2, "expert_layer_fraction": 1.0, "isolate_documents": "true", "scale_steps": 8, "scalar_bits": 6},
    "feedback_twice": TINY_FEEDBACK
    | TINY_CAPSULES
    | {"feedback_passes": 2, "feedback_block": 4, "num_layers": 4, "engram_buckets": 64, "engram_layer": 2, "isolate_documents": "true"},
}

# Architectures on the shared skeleton, which alone have its parts.
BACKBONE = [name for name in arch_names() if issubclass(load_arch(name).ArchConfig, BackboneConfig)]


def tiny_config(arch="unet", **overrides):
    """A small `Config` of the architecture `arch`; overrides are setting names and values."""
    values = TINY | TINY_ARCH.get(arch, {}) | overrides
    return load(None, {}, [f"model.name={arch}"] + [f"{key}={value}" for key, value in values.items()])[0]


def refusal(name, settings):
    """The line with which a configuration of the architecture `name` and a row of settings is refused; empty where it is possible."""
    try:
        tiny_config(name, **settings)
    except ValueError as fault:
        return str(fault)
    return ""


def takes(name, settings):
    """Whether the architecture `name` can have a row of settings: trit/config_check.py says so, and no test knows better."""
    return not refusal(name, settings)


# Every row on the plainest architecture, those that combine several on all: `make test-all` runs the rest.
COMBINED = ("odd_all", "isolated", "recurrent_deep", "shared", "experts_all", "feedback_twice", "modal_isolated")


def models_with(*axes):
    """pytest parameters (architecture, row of FLAG_SETS, one value of each of `axes`); the fast suite has a covering set of them."""
    return covering(
        [arch_names(), list(FLAG_SETS), *axes],
        lambda name, flags, *_: takes(name, FLAG_SETS[flags]),
        lambda name, flags, *_: name == "unet" or flags in COMBINED,
    )


MODELS = models_with()

# Parts of the evaluator; `evaluating` gives a configuration in which each of them does something on a text of some hundred tokens.
EVAL_SETS = {
    "plain": {},
    "chunks": {"eval_stride": 32},
    "ngram": {"ngram_order": 4},
    "ngram_full": {"ngram_order": 4, "ngram_nodes": 300},
    "eval_engram": {"eval_engram_buckets": 64},
    "memories": {"ngram_order": 3, "eval_engram_buckets": 64, "isolate_documents": "true"},
    "temperature": {"fit_temperature": "true"},
    "feedback": {"ttt_scope": "feedback"},
    "skc_safe": {"ttt_scope": "skc_safe", "ttt_epochs": 2},
    "scales": {"ttt_scope": "scales"},
    "lora": {"ttt_scope": "lora"},
    "all": {"ttt_scope": "lora", "ngram_order": 4, "eval_engram_buckets": 64, "fit_temperature": "true"},
    "one_pass": {"eval_segment_tokens": 96, "eval_chunk_tokens": 130},
    "one_pass_all": {
        "eval_segment_tokens": 80,
        "ttt_scope": "lora",
        "ngram_order": 4,
        "eval_engram_buckets": 64,
        "isolate_documents": "true",
    },
}


class Records(Log):
    """Keeps lines, and records as they would be written."""

    def __init__(self, rank=1):
        super().__init__(rank)
        self.found, self.lines = [], []

    def line(self, text):
        self.lines.append(text)

    def metrics(self, **record):
        self.found.append(json.loads(json.dumps(record, allow_nan=False)))

    def events(self, name):
        """Records of one kind."""
        return [record for record in self.found if record["event"] == name]


def evaluating(arch, part, **overrides):
    """A tiny configuration with the evaluator part EVAL_SETS[part], eager enough to show in the numbers."""
    chunks = {"engram_buckets": 64, "eval_chunk_tokens": 64, "memory_chunk_tokens": 8, "eval_engram_entropy": 0.5, "ngram_nodes": 20000}
    return tiny_config(arch, **chunks | {"ttt_lr": 0.5} | EVAL_SETS[part] | overrides)


BACKENDS = {
    "torch": SimpleNamespace(ops=torch_ops, module=torch_backend),
    "mlx": SimpleNamespace(ops=mlx_ops, module=mlx_backend),
}


def random_arrays(specs, seed=0):
    """Initial weights plus noise, so that no gain is one and no bias zero."""
    generator = np.random.default_rng(seed)
    return {name: array + generator.normal(0, 0.05, array.shape).astype(np.float32) for name, array in init_params(specs, seed).items()}


def random_tokens(cfg, rows, length, seed=0):
    """int32 (rows, length) token ids."""
    return np.random.default_rng(seed).integers(0, cfg.model.vocab_size, (rows, length)).astype(np.int32)


def start(cfg, backend="torch", arrays=None, arch=None, device="cpu"):
    """`Backend` of a fresh tiny model on one process. MLX takes the name of another device than the CPU for how it works there."""
    side = BACKENDS[backend]
    arch = arch or load_arch(cfg.model.name)
    specs = arch.param_specs(cfg)
    process = side.module.Process(0, 1, device)
    return side.module.make_backend(side.ops, arch, cfg, specs, init_params(specs, 1) if arrays is None else arrays, process)


def graphs_of_run(cfg, folder):
    """Graphs that exist after each step of a whole run on the shards in `folder`, warm-up first."""
    torch._dynamo.reset()
    trained, graphs = start(cfg), []

    def step(*arguments):
        wait = trained.step(*arguments)
        graphs.append(counters["stats"]["unique_graphs"])
        return wait

    specs = load_arch(cfg.model.name).param_specs(cfg)
    run_training(cfg, specs, trained._replace(step=step), folder, 1, Log(1), None, lambda *state: None)
    return graphs


def logits_of(cfg, arrays, tokens, backend="torch", arch=None):
    """float32 logits (B, T, V) of weights as they are."""
    ops = BACKENDS[backend].ops
    p = {name: ops.from_numpy(array) for name, array in arrays.items()}
    return ops.to_numpy(model_logits(ops, arch or load_arch(cfg.model.name), cfg, p, ops.from_numpy(tokens)))


def largest_difference(left, right):
    """Largest absolute difference over two dicts of arrays with the same keys."""
    assert left.keys() == right.keys()
    return max(float(np.abs(np.asarray(left[name], np.float64) - np.asarray(right[name], np.float64)).max()) for name in left)
