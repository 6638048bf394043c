"""Keep what the entry can reach: functions, classes, constants and imports.

In: a flat program. Out: the names of the kept symbols and the import statements they need.
"""

import ast

from trit.bundle.modules import BUILTINS
from trit.bundle.names import global_loads


def reachable(flat):
    """Names of the symbols that the entry needs, in file order."""
    kept, waiting = set(), [flat.entry]
    while waiting:
        name = waiting.pop()
        if name in kept or name not in flat.symbols:
            continue
        kept.add(name)
        waiting.extend(global_loads([flat.symbols[name].node]))
    return [name for name in flat.symbols if name in kept]


def check(flat, kept, problems):
    """Raise the DialectError of a kept symbol that folding broke, or that reads a name nothing defines."""
    bound = {bound for bound, _ in flat.imports}
    for name in kept:
        if name in problems:
            raise problems[name]
        for load in sorted(global_loads([flat.symbols[name].node])):
            if load in flat.missing:
                raise flat.missing[load]
            if load not in flat.symbols and load not in bound and load not in BUILTINS and load != "__name__":
                raise flat.symbols[name].module.error(
                    flat.symbols[name].node, f"`{load}` in `{name}` is defined nowhere in the counted file"
                )


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
