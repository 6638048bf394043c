"""Capsule bank between encoder and decoder: N states that the blocks of a text leave, advanced by a Koopman operator, and that the tokens
of later blocks read (KoopCaps; skc.md C2).

Each token shares itself out over the capsules, by a softmax over capsules and never over time. A capsule is the running mean of what it
was given, forgotten at a learned rate a block. A token in block k reads what the operator foretells from blocks before k, shared out as
its own contribution is. Shapes: B batch, T time, K blocks, F places in a block, N capsules, C channels of a capsule, D model width.
"""

from dataclasses import dataclass

from trit.layers.document import document_blocks
from trit.layers.functions import hyperbolic_tangent
from trit.layers.hadamard import hadamard_matrix
from trit.layers.linear import normed_project, normed_projection_specs, project
from trit.layers.operator import OperatorConfig, advanced
from trit.layers.scan import block_horizon_logits, decay_scan, entering, leave, state_share
from trit.params import matrix_spec, scalar_spec, table_spec
from trit.setting import check_values, setting


@dataclass(frozen=True)
class CapsuleConfig(OperatorConfig):
    """What one can set of the bank."""

    capsules: int = setting(0, "capsules of the bank between encoder and decoder; 0 is off", env="CAPSULE_NUM")
    capsule_dim: int = setting(64, "channels of a capsule, a power of two")
    capsule_block: int = setting(16, "tokens in a block: each reads what the blocks before its own left")
    capsule_memory: float = setting(32.0, "blocks that the slowest capsule remembers at the start; the fastest remembers 1")
    capsule_predict_weight: float = setting(0.005, "weight of the loss of capsules predicted one block ahead; 0 is off")
    capsule_rollout: int = setting(3, "blocks ahead that the speculator predicts, from 2")
    capsule_rollout_weight: float = setting(0.01, "weight of the speculator's loss, 2 to capsule_rollout blocks ahead; 0 is off")


def check_capsules(cfg):
    """ValueError where the bank's settings cannot be."""
    size, block, length = cfg.arch.capsule_dim, cfg.arch.capsule_block, cfg.train.train_seq_len
    check_values(
        ("capsules", cfg.arch.capsules, cfg.arch.capsules > 0, "must be 0 (off) or more"),
        ("capsule_dim", size, size > 0 and not size & (size - 1), "must be a power of two"),
        (
            "capsule_block",
            block,
            0 < block < length,
            f"must be positive and below train.train_seq_len={length}: tokens read earlier blocks",
        ),
        ("capsule_memory", cfg.arch.capsule_memory, cfg.arch.capsule_memory > 1, "must be more than 1 block"),
        ("capsule_predict_weight", cfg.arch.capsule_predict_weight, cfg.arch.capsule_predict_weight >= 0, "must be 0 (off) or more"),
        ("capsule_rollout", cfg.arch.capsule_rollout, cfg.arch.capsule_rollout > 1, "must be 2 blocks or more"),
        ("capsule_rollout_weight", cfg.arch.capsule_rollout_weight, cfg.arch.capsule_rollout_weight >= 0, "must be 0 (off) or more"),
    )


def capsule_specs(cfg):
    """Parameters of the bank. The gate alone starts at 0: the bank adds nothing, and the gate's gradient is the rest's worth."""
    capsules, channels, width = cfg.arch.capsules, cfg.arch.capsule_dim, cfg.model.model_dim
    specs = [
        # Contributions of about 1 and prototypes of about 1 make logits of about 1: smaller ones would start all capsules as one mean.
        matrix_spec(cfg, "capsules.read", channels, width, width**-0.5),
        *normed_projection_specs(cfg, "capsules.write", width, channels, 0.02),
        scalar_spec(cfg, "capsules.memory", (capsules,), 0.0),
        scalar_spec(cfg, "capsules.diagonal", (capsules, channels), 1.0),
        scalar_spec(cfg, "capsules.gate", (1,), 0.0),
    ]
    tables = [("capsules.prototype", (capsules, channels), 1.0)]
    if cfg.arch.capsule_rank:
        tables.append(("capsules.couple_in", (cfg.arch.capsule_rank, channels), 0.02))
        tables.append(("capsules.couple_out", (channels, cfg.arch.capsule_rank), 0.02))
    specs += [table_spec(cfg, *table) for table in tables]
    return [spec._replace(adapt="capsule_bank") for spec in specs]


def capsule_losses(ops, p, cfg, predicted, came, hadamard, unbroken):
    """{name: scalar} that training adds: capsules foretold 1 block ahead, and 2 to capsule_rollout blocks by the operator alone, against
    what the later blocks themselves held, as a share of its mean square. `predicted` and `came` are (B, K, N, C), of the same blocks.
    Targets lie in the future: they pass no gradient on and are in no logit. The first block is foretold from nothing, so it is no target.
    `unbroken` (B, K, 1, 1) is 1 for blocks in which no document starts, None where documents are not isolated."""
    blocks, losses = came.shape[1], {}
    came, ahead = ops.stop_gradient(came), predicted[:, 1:]
    scale = 1.0 / (ops.mean(came * came) + 1e-6)
    kept = None if unbroken is None else unbroken[:, 1:]
    for step in range(min(cfg.arch.capsule_rollout if cfg.arch.capsule_rollout_weight else 1, blocks - 1)):
        apart = ahead - came[:, step + 1 :]
        if cfg.model.isolate_documents:
            apart, kept = apart * kept, kept[:, :-1] * unbroken[:, step + 2 :]
        loss = ops.mean(apart * apart) * scale
        if step:
            weight = cfg.arch.capsule_rollout_weight / (cfg.arch.capsule_rollout - 1)
            losses["capsule_rollout"] = losses.get("capsule_rollout", 0.0) + weight * loss
        elif cfg.arch.capsule_predict_weight:
            losses["capsule_predict"] = cfg.arch.capsule_predict_weight * loss
        ahead = advanced(ops, p, cfg, "capsules", ahead[:, :-1], hadamard)
    return losses


def capsule_layer(ops, p, cfg, x, tokens):
    """Normalised stream x (B, T, D) of tokens (B, T) -> (what the bank adds to the stream (B, T, D), {name: auxiliary loss}). With
    train.carry a block before the window stands for all of the text that came before, and one token behind it makes its last block a
    source."""
    if cfg.train.carry:
        carried = entering(ops, p, (x.shape[0], 1, cfg.arch.capsules * (cfg.arch.capsule_dim + 1)), x)
        tokens = ops.pad(tokens, ((0, 0), (cfg.arch.capsule_block, 1)))
    batch, length = tokens.shape
    size, capsules, channels = cfg.arch.capsule_block, cfg.arch.capsules, cfg.arch.capsule_dim
    sources = (length - 1) // size  # complete blocks with a block after them
    values = ops.cast(project(ops, p, cfg, "capsules.read", x), "float32")
    if cfg.train.carry:
        values = ops.pad(values, ((0, 0), (size, 1), (0, 0)))
    values = ops.pad(values, ((0, 0), (0, (sources + 1) * size - length), (0, 0)))  # filled places are read, by no one, and never a source
    values = ops.reshape(values, (batch, sources + 1, size, channels))
    routing = ops.softmax(ops.linear(values, ops.cast(p["capsules.prototype"], "float32")) * channels**-0.5)
    states, losses, unbroken = ops.zeros((batch, 1, capsules, channels), values), {}, None
    hadamard = hadamard_matrix(ops, channels, values)
    if cfg.model.isolate_documents:
        unbroken, counted, fresh = document_blocks(ops, tokens, size)
        unbroken = ops.reshape(unbroken, (batch, sources, 1, 1))
    if sources:
        shares = ops.swap_last(routing[:, :sources])
        if cfg.model.isolate_documents:
            shares = shares * counted[:, :, None]
        masses = ops.sum(shares, -1, True)
        sums = shares @ values[:, :sources]
        horizons = block_horizon_logits(ops, capsules, cfg.arch.capsule_memory, values)
        share = state_share(ops, ops.cast(p["capsules.memory"], "float32") + horizons)
        totals = ops.concat([sums, masses], -1)
        decays = ops.reshape(1.0 - share, (-1, 1)) + ops.zeros(totals.shape, totals)
        if cfg.model.isolate_documents:
            decays = decays * unbroken
        flat = (batch, sources, capsules * (channels + 1))
        if cfg.train.carry:
            moved = decay_scan(ops, ops.reshape(decays, flat), ops.concat([carried, ops.reshape(totals, flat)[:, 1:]], 1))
            leave(ops, p, moved, None)
            totals = ops.reshape(moved, totals.shape)
        else:
            totals = ops.reshape(decay_scan(ops, ops.reshape(decays, flat), ops.reshape(totals, flat)), totals.shape)
        states = ops.concat([states, totals[..., :channels] / (totals[..., channels:] + 1e-6)], 1)
    predicted = advanced(ops, p, cfg, "capsules", states, hadamard)
    if cfg.train.carry and (cfg.arch.capsule_predict_weight or cfg.arch.capsule_rollout_weight) and sources > 2:
        kept = unbroken[:, 1:] if cfg.model.isolate_documents else None
        losses = capsule_losses(ops, p, cfg, predicted[:, 1:-1], (sums / (masses + 1e-6))[:, 1:], hadamard, kept)
    elif not cfg.train.carry and (cfg.arch.capsule_predict_weight or cfg.arch.capsule_rollout_weight) and sources > 1:
        losses = capsule_losses(ops, p, cfg, predicted[:, :-1], sums / (masses + 1e-6), hadamard, unbroken)
    told = ops.reshape(routing @ predicted, (batch, -1, channels))[:, :length]
    if cfg.model.isolate_documents:
        told = ops.where(fresh, ops.zeros((), told), told)
    if cfg.train.carry:
        told = told[:, size:-1]
    return hyperbolic_tangent(ops, p["capsules.gate"]) * normed_project(
        ops, p, cfg, "capsules.write", ops.cast(told, cfg.train.compute_dtype)
    ), losses
