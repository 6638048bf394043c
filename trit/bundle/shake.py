"""Keep what the entry can reach: functions, classes, constants and imports.

In: a flat program. Out: the names of the kept symbols and the import statements they need.
"""

import ast

from trit.bundle.emit import strip_symbol
from trit.bundle.fold import Folding
from trit.bundle.modules import BUILTINS
from trit.bundle.names import global_loads


def reachable(flat):
    """Names of the symbols that the entry needs, in file order, each folded and stripped. Raises the DialectError of one that folding
    broke, or that reads a name nothing defines."""
    folding = Folding(flat, strip_symbol)
    kept = set(folding.settle(lambda: closure(flat, folding)))
    kept = [name for name in flat.symbols if name in kept]
    check(flat, folding, kept)
    return kept


def closure(flat, folding):
    """Names of the symbols that the entry reaches, folding each on the way."""
    kept, waiting = set(), [flat.entry]
    while waiting:
        name = waiting.pop()
        if name not in kept and name in flat.symbols:
            kept.add(name)
            folding.fold(name)
            waiting += folding.loads[name]
    return list(kept)


def check(flat, folding, kept):
    """Raise the DialectError of a kept symbol that folding broke, or that reads a name nothing defines."""
    bound = {bound for bound, _ in flat.imports}
    for name in kept:
        if name in folding.problems:
            raise folding.problems[name]
        symbol = flat.symbols[name]
        for load in sorted(folding.loads[name]):
            if load in flat.missing:
                raise flat.missing[load]
            if load not in flat.symbols and load not in bound and load not in BUILTINS and load != "__name__":
                raise symbol.module.error(symbol.node, f"`{load}` in `{name}` is defined nowhere in the counted file")


def needed_imports(flat, kept):
    """Import statements whose name is used by a kept symbol."""
    used = global_loads([flat.symbols[name].node for name in kept])
    return [node for (bound, _), node in flat.imports.items() if bound in used]


def join(imports, statements):
    """Merge imports: one `import` line and one line for each `from` module, then the statements and the call of the entry."""
    plain, groups = [], {}
    for node in imports:
        if isinstance(node, ast.Import):
            plain += node.names
        else:
            groups.setdefault(node.module, []).extend(node.names)

    def ordered(aliases):
        return sorted(aliases, key=lambda alias: (alias.name, alias.asname or ""))

    body = [ast.Import(ordered(plain))] if plain else []
    body += [ast.ImportFrom(module, ordered(groups[module]), 0) for module in sorted(groups)]
    return ast.Module(body=body + statements, type_ignores=[])
