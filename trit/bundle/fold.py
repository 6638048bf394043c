"""Fold what is certain and delete what cannot run: constants, branches, look-ups, unused locals.

In: the flat program. Out: the same symbols, folded in place; a symbol that folding would break carries a `problem`, raised if it is kept.
A fold is done only where it cannot change a result: operands that could have an effect or fail stay.
"""

import ast

from trit.bundle.evaluate import UNKNOWN, Evaluator
from trit.bundle.folder import Folder
from trit.bundle.names import analyse

ROUNDS = 30
LOCAL_YIELD = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.GeneratorExp)


def fold(flat):
    """Fold every symbol of a flat program in place; returns {symbol: DialectError} for those that folding would change."""
    constants, tables = top_level_constants(flat)
    problems, answers = {}, {}
    while True:
        for symbol in flat.symbols.values():
            problem = fold_symbol(symbol, set(flat.symbols), constants, tables, answers)
            if problem:
                problems.setdefault(symbol.name, problem)
        found = constant_functions(flat)
        if found == answers:
            return problems
        answers = found


def constant_functions(flat):
    """{name: (number of arguments, node of the constant)} of functions that only return one, such as a question about the settings."""
    rebound = {name for symbol in flat.symbols.values() for scope in analyse(wrap(symbol.node)).scopes for name in scope.global_names}
    found = {}
    for name, symbol in flat.symbols.items():
        node = symbol.node
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or name in rebound:
            continue
        body = [statement for statement in node.body if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))]
        a = node.args
        plain = not (a.vararg or a.kwarg or a.kwonlyargs or a.defaults)
        if plain and len(body) == 1 and isinstance(body[0], ast.Return) and isinstance(body[0].value, ast.Constant):
            found[name] = (len(a.posonlyargs) + len(a.args), body[0].value.value)
    return found


def wrap(node):
    """A module of one definition, which is what names are analysed in."""
    return ast.Module(body=[node], type_ignores=[])


def fold_symbol(symbol, top_names, constants, tables, answers):
    """Fold one definition to a fixed point. Returns a DialectError if a name would change its meaning."""
    node = symbol.node
    before = analyse(wrap(node))
    generators = [f for f in ast.walk(node) if isinstance(f, ast.FunctionDef) and has_yield(f)]
    last = None
    for _ in range(ROUNDS):
        text = ast.dump(node)
        if text == last:
            break
        last = text
        Folder(settled(analyse(wrap(node)), before), top_names, constants, tables, answers).visit(node)
        ast.fix_missing_locations(node)
    alive = set(ast.walk(node))
    for function in generators:
        if function in alive and not has_yield(function):
            lost = ast.If(ast.Constant(False), [ast.Expr(ast.Yield())], [])
            function.body.append(ast.fix_missing_locations(ast.copy_location(lost, function)))
    for name in strayed(analyse(wrap(node)), before):
        if isinstance(name.ctx, ast.Load):
            return symbol.module.error(
                name, f"`{name.id}` is assigned only in a branch that folds away, yet it is read here; assign it before the branch"
            )
    return None


def strayed(names, before):
    """Names that now mean another variable, because the assignment that made them local is gone."""
    return [
        name for name, home in names.homes.items() if (old := before.homes.get(name)) is not None and old.node is not (home and home.node)
    ]


def settled(names, before):
    """The same names with strayed ones at their first home, so that no round folds them by their new meaning."""
    for name in strayed(names, before):
        names.homes[name] = before.homes[name]
    return names


def has_yield(function):
    """True when the function itself, not one inside it, is a generator."""
    stack = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, LOCAL_YIELD):
            stack.extend(ast.iter_child_nodes(node))
    return False


def top_level_constants(flat):
    """Values of top-level constants that nothing rebinds, and the literal dictionaries that are only ever looked up."""
    rebound, misused = set(), set()
    for symbol in flat.symbols.values():
        names = analyse(wrap(symbol.node))
        for scope in names.scopes:
            rebound |= scope.global_names
        lookups = set()
        for node in ast.walk(symbol.node):
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                lookups.add(node.value)
            elif isinstance(node, ast.Compare):
                lookups.update(n for n, op in zip(node.comparators, node.ops, strict=True) if isinstance(op, (ast.In, ast.NotIn)))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                lookups.add(node.func.value)
        misused |= {node.id for node in names.homes if isinstance(node.ctx, ast.Load) and names.is_global(node) and node not in lookups}
    constants, tables = {}, {}
    evaluator = Evaluator(lambda node: constants.get(node.id, UNKNOWN), lambda node: node.id not in flat.symbols)
    for symbol in flat.symbols.values():
        if isinstance(symbol.node, (ast.Assign, ast.AnnAssign)) and symbol.name not in rebound:
            value = evaluator(symbol.node.value)
            if value is not UNKNOWN:
                constants[symbol.name] = value
            elif isinstance(symbol.node.value, ast.Dict) and symbol.name not in misused and None not in symbol.node.value.keys:
                keys, values = evaluator.all(symbol.node.value.keys), evaluator.all(symbol.node.value.values)
                if keys is not UNKNOWN and values is not UNKNOWN:
                    tables[symbol.name] = dict(zip(keys, values, strict=True))
    return constants, tables
