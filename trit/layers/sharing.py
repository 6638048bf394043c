"""Blocks of weights that several layers share, as a table and as the forward sees them; and what such a matrix's inputs are on average.

A layer keeps its own branch scales, residual mix and skip; everything inside its mixer and its MLP belongs to the shared block.
"""

PER_LAYER = ("mix", "mlp_scale", "skip", "attn_scale", "koopman_scale", "skc_scale")


def block_map(cfg, letters):
    """[number of the shared block of each layer] for the mixers' letters of all layers. Each letter has as many blocks; its layers take
    them in turn."""
    kinds = sorted(set(letters), key=letters.index)
    each, found = cfg.arch.shared_blocks // len(kinds), []
    for i, letter in enumerate(letters):
        found.append(kinds.index(letter) * each + letters[:i].count(letter) % each)
    return found


def shared_specs(cfg, letters, specs):
    """The table of a model whose layers share blocks, from that of one whose layers do not: names "block<layer>.<part>" become
    "shared<block>.<part>", each once, but for the parts that every layer keeps."""
    names = {}
    for i, block in enumerate(block_map(cfg, letters)):
        prefix = f"block{i}."
        inner = [spec.name for spec in specs if spec.name.startswith(prefix) and spec.name[len(prefix) :] not in PER_LAYER]
        names |= {name: f"shared{block}." + name[len(prefix) :] for name in inner}
    renamed = {}
    for spec in specs:
        name = names.get(spec.name, spec.name)
        renamed.setdefault(name, spec._replace(name=name))
    return list(renamed.values())


def unshared(p, cfg, letters):
    """`p` in which every layer finds the weights of its shared block under its own name as well."""
    found = dict(p)
    for i, block in enumerate(block_map(cfg, letters)):
        prefix = f"shared{block}."
        found |= {f"block{i}." + name[len(prefix) :]: x for name, x in p.items() if name.startswith(prefix)}
    return found


class Tally:
    """What stands for the dict under "taps" where a matrix is used several times: {name: mean over its uses}, kept in the dict `means`
    under the names that `homes(name)` gives."""

    def __init__(self, means, homes):
        self.means, self.homes, self.counts = means, homes, {}

    def __setitem__(self, name, moment):
        name = self.homes(name)
        self.counts[name] = count = self.counts.get(name, 0) + 1
        mean = self.means.get(name, moment)
        self.means[name] = mean + (moment - mean) / count


def tallied(p, cfg, letters):
    """`p` whose "taps" take the mean over all uses of a matrix, recurrent visits and layers that share a block."""
    homes = {}
    if cfg.arch.shared_blocks:
        homes = {f"block{i}": f"shared{block}" for i, block in enumerate(block_map(cfg, letters))}

    def home(name):
        layer, dot, part = name.partition(".")
        return homes.get(layer, layer) + dot + part

    return {**p, "taps": Tally(p["taps"], home)}
