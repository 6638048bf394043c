"""The objective of training, written once for both backends."""

from trit.compress.quantize import fake_quantize
from trit.train.rate import kept_share


def training_loss(ops, arch, cfg, specs, p, tokens, targets, rounded):
    """(objective, cross-entropy), scalars in nats a token, of parameters `p` on int arrays (B, T).

    The objective adds the architecture's auxiliary losses and, where quant.rate_penalty asks for it, the price of codes that are not zero. `rounded`: the forward sees stored values, gradients pass straight through.
    """
    q = fake_quantize(ops, cfg, specs, p, {}) if rounded else dict(p)
    if cfg.train.compute_dtype != "float32":
        q = {name: ops.cast(weight, cfg.train.compute_dtype) for name, weight in q.items()}
    logits, auxiliary = arch.forward(ops, q, cfg, tokens)
    loss = ops.mean(ops.cross_entropy(logits, targets))
    objective = loss + sum(auxiliary.values())
    if cfg.quant.rate_penalty:
        objective = objective + cfg.quant.rate_penalty * kept_share(ops, cfg, specs, p)
    return objective, loss
