"""What training minimises, written once for both backends: the weights as the forward sees them, and the loss of a micro-batch."""

from trit.compress.quantize import fake_quantize
from trit.train.chance import noisy_quantize
from trit.train.rate import kept_share


def seen_weights(ops, cfg, specs, p, rounded):
    """Parameters as the forward sees them, in compute_dtype: stored values where `rounded`, else as they are.

    Made once for an optimiser step, however many micro-batches it has: rounding passes gradients straight through, so the gradient
    of these is the gradient of `p`. Beside parameters `p` may hold "noise": the key and strength of a training step's (trit/train/chance.py).
    """
    if cfg.quant.noise and "noise" in p:
        q = noisy_quantize(ops, cfg, specs, p, *p["noise"])
    else:
        q = fake_quantize(ops, cfg, specs, p, {}) if rounded else dict(p)
    if cfg.train.compute_dtype != "float32":
        q = {name: ops.cast(weight, cfg.train.compute_dtype) for name, weight in q.items()}
    return q


def summed_loss(ops, arch, cfg, q, stream, targets):
    """Sum over positions of the cross-entropy, in nats, of a stream (B, T, C)."""
    return ops.sum(ops.cross_entropy(arch.readout(ops, q, cfg, stream), targets))


def training_loss(ops, arch, cfg, q, tokens, targets):
    """(objective, cross-entropy), scalars in nats a token, of seen weights `q` on int arrays (B, T). Beside weights `q` may hold what
    holds for this step alone, as the forward knows it ("shallow": recurrent layers are visited once; "keep": what the updates of blocks are
    multiplied with; "idle": the engram's tables get no gradient), and what an architecture's `in_training` adds. With train.carry it holds under "carry" what the windows before left
    (trit/layers/scan.py), and what these leave is returned third, without gradient.

    The objective adds the architecture's auxiliary losses. With train.loss_chunk_tokens no more logits than that exist at once, neither
    here nor in the backward pass, which computes them again. With train.fp8 the stream is computed with products in 8-bit floats, but
    not read out.
    """
    if hasattr(arch, "in_training"):
        q = arch.in_training(ops, cfg, q)
    if cfg.train.carry:
        carried = list(q["carry"])
        q = {**q, "carry": carried}
    stream, auxiliary = arch.forward(ops, {**q, "fp8": True} if cfg.train.fp8 else q, cfg, tokens)
    count = tokens.shape[0] * tokens.shape[1]
    if cfg.train.loss_chunk_tokens:
        stream, targets = ops.reshape(stream, (1, count, -1)), ops.reshape(targets, (1, count))
        total = 0.0
        for low in range(0, count, cfg.train.loss_chunk_tokens):
            places = slice(low, low + cfg.train.loss_chunk_tokens)
            part = ops.recomputed(
                lambda q, stream, targets: summed_loss(ops, arch, cfg, q, stream, targets), q, stream[:, places], targets[:, places]
            )
            total = total + part
    else:
        total = summed_loss(ops, arch, cfg, q, stream, targets)
    loss = total / count
    if cfg.train.carry:
        return loss + sum(auxiliary.values()), loss, [ops.stop_gradient(x) for x in carried]
    return loss + sum(auxiliary.values()), loss


def rate_price(ops, cfg, specs, p):
    """What quant.rate_penalty adds to the objective of a step: the price of codes that are not zero."""
    return cfg.quant.rate_penalty * kept_share(ops, cfg, specs, p)
