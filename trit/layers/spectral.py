"""Block-lagged spectral path: complete blocks of a signal are taken to the Walsh domain, gathered into capsules by frequency band, and a
Koopman operator predicts the capsules of the next block, which are all that its tokens read (skc.md C1).

A token in block k sees blocks before k alone, so nothing of its own block or later can reach it. Documents stay apart where they are
isolated: a block that holds two counts for neither. Shapes: B batch, T time, K blocks, F places in a block, N capsules, C channels.
"""

import math
from dataclasses import dataclass

from trit.data.token_ids import BOS_ID
from trit.layers.document import document_blocks
from trit.layers.hadamard import hadamard_matrix
from trit.layers.operator import advanced
from trit.layers.scan import block_horizon_logits, decay_scan, entering, leave, state_share
from trit.params import scalar_spec, table_spec
from trit.setting import check_values, setting


@dataclass(frozen=True)
class SpectralConfig:
    """What one can set of the spectral path."""

    skc_block: int = setting(16, "tokens in a block of the spectral path, a power of two", env="SKC_BLOCK_SIZE")
    skc_capsules: int = setting(8, "capsules that share out the frequencies of a block", env="SKC_NUM_CAPSULES")
    skc_memory: float = setting(32.0, "blocks that the slowest capsule channel remembers at the start; the fastest remembers 1")
    skc_predict_weight: float = setting(0.01, "weight of the loss of predicted capsules; 0 is off")
    skc_rollout: int = setting(1, "blocks ahead that capsules are predicted in that loss")
    skc_entropy_weight: float = setting(0.0, "weight of the loss where few channels hold the energy; 0 is off")
    skc_entropy_fraction: float = setting(0.8, "share of the largest entropy below which it is one", env="SKC_AUX_ENTROPY_FRACTION")


def check_spectral(cfg):
    """ValueError where the path's settings cannot be."""
    block = cfg.arch.skc_block
    check_values(
        ("skc_block", block, block > 1 and not block & (block - 1), "must be a power of two from 2 on"),
        ("skc_capsules", cfg.arch.skc_capsules, cfg.arch.skc_capsules > 0, "must be positive"),
        ("skc_memory", cfg.arch.skc_memory, cfg.arch.skc_memory > 1, "must be more than 1 block"),
        ("skc_predict_weight", cfg.arch.skc_predict_weight, cfg.arch.skc_predict_weight >= 0, "must be 0 (off) or more"),
        ("skc_rollout", cfg.arch.skc_rollout, cfg.arch.skc_rollout > 0, "must be 1 block or more"),
        ("skc_entropy_weight", cfg.arch.skc_entropy_weight, cfg.arch.skc_entropy_weight >= 0, "must be 0 (off) or more"),
        ("skc_entropy_fraction", cfg.arch.skc_entropy_fraction, 0 < cfg.arch.skc_entropy_fraction <= 1, "must lie above 0 and up to 1"),
    )


def spectral_specs(cfg, name, channels):
    """Parameters of one spectral path over C channels. Every table starts at a constant: what is not, is computed."""
    capsules = cfg.arch.skc_capsules
    specs = [
        scalar_spec(cfg, name + ".centre", (capsules,), 0.0),
        scalar_spec(cfg, name + ".width", (capsules,), 0.0),
        scalar_spec(cfg, name + ".memory", (capsules, channels), 0.0, "decay"),
        scalar_spec(cfg, name + ".diagonal", (capsules, channels), 1.0, "decay"),
    ]
    shapes = {".first": (capsules, channels), ".content": (capsules, channels)}
    if cfg.arch.capsule_rank:
        shapes |= {".couple_in": (cfg.arch.capsule_rank, channels), ".couple_out": (channels, cfg.arch.capsule_rank)}
    return specs + [table_spec(cfg, name + part, shape, 0.02) for part, shape in shapes.items()]


def sequency_order(size):
    """For every number of sign changes 0 .. size - 1, the row of the Hadamard matrix that has so many: bit-reversed Gray code."""
    order = [0]
    while len(order) < size:
        order = [order[k // 2] + len(order) * ((k ^ k // 2) & 1) for k in range(2 * len(order))]
    return order


def spectral_tables(ops, cfg, tokens, channels):
    """What all spectral paths of a forward of tokens (B, T) share: the Walsh matrix (F, F) in order of sequency, the Hadamard matrix (C, C),
    and with isolate_documents two weights (B, K, 1) of every block, of the state before it and of its own capsules, and the mask (B, T, 1)
    of the tokens that see no earlier block, because their document starts in their own. With train.carry all of it for the tokens as
    `spectral_path` reads them then: after a block that stands for all before the window, and with one behind them."""
    size = cfg.arch.skc_block
    if cfg.train.carry:
        tokens = ops.pad(tokens, ((0, 0), (size, 1)))
    like = ops.arange(1, tokens)
    order = ops.cast(ops.constant(sequency_order(size), like), "int32")
    tables = [ops.take(hadamard_matrix(ops, size, like), order), hadamard_matrix(ops, channels, like)]
    if cfg.model.isolate_documents:
        _, counted, fresh = document_blocks(ops, tokens, size)
        whole = counted[:, :, :1]  # its first token is of the document that it ends in: none starts behind that
        going_on = ops.cast(tokens[:, : tokens.shape[1] // size * size : size] != BOS_ID, "float32")[:, : whole.shape[1], None]
        tables += [whole * going_on, whole, fresh]
    return tables


def band_logits(ops, p, cfg, name, like):
    """Logits (F, N) float32 by which places in the Walsh domain belong to capsules: Gaussians around learned centres."""
    capsules, size = cfg.arch.skc_capsules, cfg.arch.skc_block
    centres = ops.arange(capsules, like) * (1.0 / max(capsules - 1, 1)) + ops.cast(p[name + ".centre"], "float32")
    precision = float(capsules) * ops.exp(-ops.cast(p[name + ".width"], "float32"))
    places = ops.reshape(ops.arange(size, like) * (1.0 / max(size - 1, 1)), (-1, 1))
    distance = (places - centres) * precision
    return -0.5 * distance * distance


def block_capsules(ops, p, cfg, name, x, bands, walsh):
    """Complete blocks x (B, K, F, C) -> (capsules (B, K, N, C), spectra (B, K, F, C)); places are shared out by band and content."""
    spectra = ops.swap_last(ops.linear(ops.swap_last(x), walsh))
    routing = ops.softmax(bands + ops.linear(ops.rms_norm(spectra), ops.cast(p[name + ".content"], "float32")))
    gathered = ops.swap_last(routing) @ spectra
    return gathered * ops.rsqrt(ops.sum(ops.swap_last(routing * routing), -1, True) + 1e-6), spectra


def spectral_losses(ops, p, cfg, name, predicted, capsules, spectra, tables):
    """{name: scalar} that training adds: capsules predicted up to skc_rollout blocks ahead against those that came, as a share of their
    mean square, and channels that hold too much of the energy. Targets lie in the future: they are in no logit. `tables` is what
    `spectral_tables` made of the tokens; across documents nothing is foretold."""
    losses = {}
    if cfg.arch.skc_predict_weight:
        came = ops.stop_gradient(capsules)
        scale = 1.0 / (ops.mean(came * came) + 1e-6)
        total, ahead = 0.0, predicted[:, :-1]
        if cfg.model.isolate_documents:
            unbroken = kept = ops.reshape(tables[2], (came.shape[0], -1, 1, 1))
        for step in range(min(cfg.arch.skc_rollout, came.shape[1])):
            apart = ahead - came[:, step:]
            if cfg.model.isolate_documents:
                apart, kept = apart * kept, kept[:, :-1] * unbroken[:, step + 1 :]
            total = total + ops.mean(apart * apart) * scale
            ahead = advanced(ops, p, cfg, name, ahead[:, :-1], tables[1])
        losses["skc_predict"] = total * (cfg.arch.skc_predict_weight / cfg.arch.skc_rollout)
    if cfg.arch.skc_entropy_weight:
        energy = ops.mean(ops.mean(ops.mean(spectra * spectra, 0), 0), 0)
        share = energy / (ops.sum(energy) + 1e-12)
        entropy = -ops.sum(share * ops.log(share + 1e-12))
        missing = ops.maximum(cfg.arch.skc_entropy_fraction * math.log(energy.shape[0]) - entropy, 0.0)
        losses["skc_entropy"] = missing * cfg.arch.skc_entropy_weight
    return losses


def spectral_path(ops, p, cfg, name, x, tables):
    """x (B, T, C) -> (what the blocks before each token's foretell (B, T, C) float32, {name: auxiliary loss}).

    With train.carry a block before the window stands for all of the text that came before: its state is what was carried. One token
    behind the window makes its last block a source too, whose state is what is left.
    """
    if cfg.train.carry:
        carried = entering(ops, p, (x.shape[0], 1, cfg.arch.skc_capsules * x.shape[2]), x)
        x = ops.pad(x, ((0, 0), (cfg.arch.skc_block, 1), (0, 0)))
    batch, length, channels = x.shape
    size, capsules = cfg.arch.skc_block, cfg.arch.skc_capsules
    walsh, hadamard = tables[:2]
    sources = (length - 1) // size  # complete blocks with a block after them
    bands = band_logits(ops, p, cfg, name, walsh)
    first = ops.cast(p[name + ".first"], "float32")
    states = ops.zeros((batch, 1, capsules, channels), walsh) + first
    losses = {}
    if sources:
        blocks = ops.reshape(ops.cast(x[:, : sources * size], "float32"), (batch, sources, size, channels))
        found, spectra = block_capsules(ops, p, cfg, name, blocks, bands, walsh)
        share = state_share(ops, ops.cast(p[name + ".memory"], "float32") + block_horizon_logits(ops, channels, cfg.arch.skc_memory, first))
        # The state less its start: so a document that begins is a state that is forgotten.
        share, flat = ops.reshape(share, (1, 1, -1)), (batch, sources, -1)
        inputs = share * ops.reshape(found - first, flat)
        decays = 1.0 - share + ops.zeros(inputs.shape, inputs)
        if cfg.model.isolate_documents:
            decays, inputs = decays * tables[2], inputs * tables[3]
        if cfg.train.carry:
            moved = decay_scan(ops, decays, ops.concat([carried, inputs[:, 1:]], 1))
            leave(ops, p, moved, None)
            moved = ops.reshape(moved, found.shape)
        else:
            moved = ops.reshape(decay_scan(ops, decays, inputs), found.shape)
        states = ops.concat([states, first + moved], 1)
    predicted = advanced(ops, p, cfg, name, states, hadamard)
    # Back to places: the transform is its own inverse up to the order of its rows.
    places = ops.linear(ops.swap_last(walsh), ops.swap_last(ops.softmax(bands)))
    told = ops.swap_last(ops.linear(ops.swap_last(predicted), places))
    told = ops.reshape(told, (batch, -1, channels))[:, :length]
    if sources:
        if cfg.model.isolate_documents:
            told = ops.where(tables[4], ops.concat([told[:, :size]] * (sources + 1), 1)[:, :length], told)
        if cfg.train.carry:
            predicted, found, spectra = predicted[:, 1:], found[:, 1:], spectra[:, 1:]
            tables = tables[:2] + [each[:, 1:] for each in tables[2:3]]
        losses = spectral_losses(ops, p, cfg, name, predicted, found, spectra, tables)
    if cfg.train.carry:
        told = told[:, size:-1]
    return told, losses
