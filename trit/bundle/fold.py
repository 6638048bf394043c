"""Fold what is certain and delete what cannot run: constants, branches, look-ups, unused locals.

In: the flat program. Out: symbols folded in place, each when it is asked for; one that folding would break carries a problem, raised if it
is kept. A fold is done only where it cannot change a result: operands that could have an effect or fail stay.
"""

import ast

from trit.bundle.evaluate import UNKNOWN, Evaluator
from trit.bundle.folder import Folder
from trit.bundle.names import analyse, children, walk

ROUNDS = 30
LOCAL_YIELD = (ast.FunctionDef, ast.Lambda, ast.ClassDef, ast.GeneratorExp)
MAY_VANISH = (ast.Assign, ast.AnnAssign, ast.Assert, ast.FunctionDef, ast.Pass)


def fold(flat):
    """Fold every symbol of a flat program in place; returns {symbol: DialectError} for those that folding would change."""
    folding = Folding(flat)
    folding.settle(lambda: list(flat.symbols))
    return folding.problems


class Folding:
    """Folds the symbols of a flat program, each once, when it is asked for, and again only where a function that it calls turned out to
    return a constant. `answers` is {name: (number of arguments, value)} of such functions, `problems` {symbol: DialectError}, `loads`
    {symbol: names of globals that it reads}. `finish(symbol)` changes a folded symbol further; True where that changes names."""

    def __init__(self, flat, finish=lambda symbol: False):
        self.flat, self.finish, self.problems, self.answers = flat, finish, {}, {}
        self.constants, self.tables = top_level_constants(flat)
        self.loads, self.asked, self.running = {}, {}, set()

    def settle(self, wanted):
        """Fold the symbols that `wanted()` lists until no answer is new to one of them; returns the last list."""
        while True:
            names = wanted()
            for name in names:
                self.fold(name)
            stale = [name for name in names if self.known_calls(name) != self.asked[name]]
            if not stale:
                return names
            for name in stale:
                self.fold_again(name)

    def fold(self, name):
        """Fold a symbol, after the functions it names whose answer it could use."""
        if name not in self.loads and name not in self.running:
            self.running.add(name)
            names = analyse(wrap(self.flat.symbols[name].node))
            for called in names.global_loads():
                if called in self.flat.symbols and could_be_constant(self.flat.symbols[called].statement):
                    self.fold(called)
            self.fold_again(name, names)
            self.running.remove(name)

    def fold_again(self, name, names=None):
        """Fold a symbol with the answers there are."""
        symbol = self.flat.symbols[name]
        problem, names = fold_symbol(symbol, self, names)
        if self.finish(symbol):
            names = analyse(wrap(symbol.node))
        if problem:
            self.problems.setdefault(name, problem)
        if name not in self.flat.rebound and (answer := constant_answer(symbol.node)):
            self.answers[name] = answer
        self.loads[name] = names.global_loads()
        self.asked[name] = self.known_calls(name)

    def known_calls(self, name):
        """Functions with an answer that a symbol reads still: those whose call could not be replaced."""
        return self.loads[name] & self.answers.keys()


def could_be_constant(statement):
    """False for a function that no folding can turn into one that only returns a constant: something that stays comes first."""
    if not isinstance(statement, ast.FunctionDef) or not plain_signature(statement):
        return False
    for part in statement.body:
        if isinstance(part, (ast.If, ast.While, ast.For, ast.Return)):
            return True
        if not isinstance(part, MAY_VANISH) and not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)):
            return False
    return False


def plain_signature(function):
    """True for a function without decorators, defaults and collecting parameters."""
    a = function.args
    return not (function.decorator_list or a.vararg or a.kwarg or a.kwonlyargs or a.defaults)


def constant_answer(node):
    """(number of arguments, value) of a function that only returns a constant, such as a question about the settings; else None."""
    if not isinstance(node, ast.FunctionDef) or not plain_signature(node):
        return None
    body = [statement for statement in node.body if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))]
    if len(body) == 1 and isinstance(body[0], ast.Return) and isinstance(body[0].value, ast.Constant):
        return len(node.args.posonlyargs) + len(node.args.args), body[0].value.value
    return None


def wrap(node):
    """A module of one definition, which is what names are analysed in."""
    return ast.Module(body=[node], type_ignores=[])


def fold_symbol(symbol, folding, names=None):
    """Fold one definition to a fixed point. Returns (DialectError if a name would change its meaning, the names as they are then)."""
    node = symbol.node
    before = names = names or analyse(wrap(node))
    generators = [part for part in walk(node) if isinstance(part, ast.FunctionDef) and has_yield(part)]
    lost = []
    for _ in range(ROUNDS):
        folder = Folder(names, folding)
        folder.visit(node)
        if not folder.changed:
            break
        names = analyse(wrap(node))
        lost = strayed(names, before)
        for name in lost:  # at their first home, so that no round folds them by their new meaning
            names.homes[name] = before.homes[name]
    alive = set(walk(node)) if generators else ()
    for function in generators:
        if function in alive and not has_yield(function):
            kept = ast.If(ast.Constant(False), [ast.Expr(ast.Yield())], [])
            function.body.append(kept)
    for name in lost:
        if isinstance(name.ctx, ast.Load):
            message = f"`{name.id}` is assigned only in a branch that folds away, yet it is read here; assign it before the branch"
            return symbol.module.error(name, message), names
    return None, names


def strayed(names, before):
    """Names that now mean another variable, because the assignment that made them local is gone."""
    return [
        name for name, home in names.homes.items() if (old := before.homes.get(name)) is not None and old.node is not (home and home.node)
    ]


def has_yield(function):
    """True when the function itself, not one inside it, is a generator."""
    stack = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, LOCAL_YIELD):
            stack += children(node)
    return False


def top_level_constants(flat):
    """Values of top-level constants that nothing rebinds, and the literal dictionaries that are only ever looked up."""
    constants, tables = {}, {}
    evaluator = Evaluator(lambda node: constants.get(node.id, UNKNOWN), lambda node: node.id not in flat.symbols)
    for name, symbol in flat.symbols.items():
        if isinstance(symbol.statement, (ast.Assign, ast.AnnAssign)) and name not in flat.rebound:
            found = symbol.node.value
            value = evaluator(found)
            if value is not UNKNOWN:
                constants[name] = value
            elif isinstance(found, ast.Dict) and name not in flat.misused and None not in found.keys:
                keys, values = evaluator.all(found.keys), evaluator.all(found.values)
                if keys is not UNKNOWN and values is not UNKNOWN:
                    tables[name] = dict(zip(keys, values, strict=True))
    return constants, tables
