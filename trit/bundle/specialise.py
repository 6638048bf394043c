"""Specialise and flatten: one list of top-level statements in which `cfg`, `ops`, `arch` and `library` no longer occur.

In: a linted `Program` and the configuration object. Out: `Flat`, statements in module order, not yet folded or shaken.
`cfg.a.b` becomes its literal, `ops.f` the name `ops_f`, `arch.f` the name `arch_f`, `library.f` the name `f`; parameters and arguments of these names go away.
"""

import ast
import math
from dataclasses import dataclass, field, is_dataclass

from trit.bundle.modules import BUILTINS, RESERVED, Module, defined, reserved_positions
from trit.bundle.names import identifiers, import_binding

PREFIX = {"ops": "ops_", "arch": "arch_"}


@dataclass
class Symbol:
    """One top-level definition of the flat file, under its final name, with where it came from."""

    name: str
    node: ast.stmt
    module: Module
    original: str

    @property
    def label(self):
        return f"{self.module.name}:{self.original}"


@dataclass
class Flat:
    """The flat program. `missing` maps stand-in names of absent settings and model functions to the error to raise if one survives."""

    imports: dict
    symbols: dict
    entry: str
    missing: dict = field(default_factory=dict)


def literal(value):
    """The expression of a plain value, or None where it has no exact literal."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, bytes)):
        return ast.Constant(value)
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            return None
        negative = value < 0 or isinstance(value, float) and math.copysign(1.0, value) < 0
        return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if negative else ast.Constant(value)
    if isinstance(value, tuple):
        parts = [literal(part) for part in value]
        return None if None in parts else ast.Tuple(parts, ast.Load())
    return None


def setting_literal(value):
    """Like `literal`, for settings: also infinity, which is what 1e999 reads as. Subclasses (numpy scalars, enums) are refused."""
    if isinstance(value, float) and math.isinf(value) and type(value) is float:
        return ast.Constant(math.inf) if value > 0 else ast.UnaryOp(ast.USub(), ast.Constant(math.inf))
    plain = type(value) in (int, float, bool, str, bytes, tuple, type(None))
    if plain and isinstance(value, tuple):
        parts = [setting_literal(part) for part in value]
        return None if None in parts else ast.Tuple(parts, ast.Load())
    return literal(value) if plain else None


def flatten(program, config):
    """Specialise every module and join them; the program's trees are used up. Raises DialectError where a setting is no literal."""
    taken = set(BUILTINS) | set(RESERVED)
    for module in program.modules.values():
        taken |= identifiers(module.tree)
    finals = final_names(program, taken)
    flat = Flat({}, {}, finals[program.entry]["main"])
    functions = [node for module in program.modules.values() for node in module.symbols.values() if isinstance(node, ast.FunctionDef)]
    positions = {node: reserved_positions(node) for node in functions}
    for module in program.modules.values():
        known = dict(finals[module.name])
        for local, (source, symbol) in module.imports.items():
            known[local] = finals[source][symbol]
        worker = _Specialise(program, module, config, known, finals, positions, flat.missing, taken)
        for statement in module.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                add_imports(flat, module, statement)
            elif not isinstance(statement, ast.Expr):
                (original,) = defined(statement)
                final = known[original]
                flat.symbols[final] = Symbol(final, worker.top_level(statement), module, original)
    return flat


def final_names(program, taken):
    """{module: {top-level name: name in the flat file}}: prefixed for ops and model, and where a name hides a builtin."""
    finals = {}
    for module in program.modules.values():
        names = finals[module.name] = {}
        for symbol in module.symbols:
            if module.role in PREFIX:
                final = PREFIX[module.role] + symbol
            elif symbol in BUILTINS:
                final = f"{module.name.rpartition('.')[2]}_{symbol}"
            else:
                names[symbol] = symbol
                continue
            while final in taken:
                final += "_"
            taken.add(final)
            names[symbol] = final
    if "main" not in finals[program.entry]:
        raise program.modules[program.entry].error(None, "the entry has no `def main(cfg, ops, arch, library)`")
    return finals


def add_imports(flat, module, statement):
    """Enter each alias of an external import under (bound name, text), so that repeats merge."""
    for alias in statement.names:
        if isinstance(statement, ast.ImportFrom):
            single = ast.ImportFrom(statement.module, [alias], 0)
        else:
            single = ast.Import([alias])
        bound = import_binding(alias, isinstance(statement, ast.ImportFrom))
        if bound in module.imports:
            continue
        flat.imports.setdefault((bound, ast.unparse(single)), single)


class _Specialise(ast.NodeTransformer):
    """Rewrites one module in place: its tree belongs to this build."""

    def __init__(self, program, module, config, known, finals, positions, missing, taken):
        self.program, self.module, self.config = program, module, config
        self.known, self.finals, self.positions = known, finals, positions
        self.missing, self.taken = missing, taken
        self.homes = module.names.homes

    def top_level(self, statement):
        """Rewrite one top-level definition and give it its final name."""
        statement = self.visit(statement)
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            statement.name = self.known[statement.name]
            if isinstance(statement, ast.FunctionDef):
                for group in ("posonlyargs", "args"):
                    kept = [arg for arg in getattr(statement.args, group) if arg.arg not in RESERVED]
                    setattr(statement.args, group, kept)
        return statement

    def visit_Name(self, node):
        if node.id in self.known and self.homes.get(node, node) is None:
            node.id = self.known[node.id]
        return node

    def visit_Global(self, node):
        node.names = [self.known.get(name, name) for name in node.names]
        return node

    def visit_Call(self, node):
        if (
            isinstance(node.func, ast.Name)
            and node.func.id == "hasattr"
            and node.args
            and isinstance(node.args[0], ast.Name)
            and node.args[0].id in RESERVED
        ):
            owner, attribute = node.args[0], node.args[1].value
            found = self.program.attribute(ast.Attribute(owner, attribute, ast.Load()))
            return ast.copy_location(ast.Constant(found is not None), node)
        found = self.program.callee(self.module, node)
        if found:
            dropped = self.positions[found[1]]
            node.args = [argument for index, argument in enumerate(node.args) if index not in dropped]
        elif any(isinstance(argument, ast.Name) and argument.id in RESERVED for argument in node.args):
            # The lint lets this through only for a model function that this model lacks: a dead branch, or an error after shaking.
            node.args = [argument for argument in node.args if not (isinstance(argument, ast.Name) and argument.id in RESERVED)]
        return self.generic_visit(node)

    def visit_Attribute(self, node):
        path, base = [], node
        while isinstance(base, ast.Attribute):
            path.insert(0, base)
            base = base.value
        if not (isinstance(base, ast.Name) and base.id in RESERVED):
            return self.generic_visit(node)
        result, used = self.leaf(path) if base.id == "cfg" else (self.symbol(path[0]), 1)
        ast.copy_location(result, node)
        for outer in path[used:]:
            result = ast.copy_location(ast.Attribute(result, outer.attr, outer.ctx), outer)
        return ast.fix_missing_locations(result)

    def leaf(self, path):
        """The literal at the end of a dotted setting, and how many of the dots belong to the setting."""
        value, shown = self.config, "cfg"
        for count, node in enumerate(path, 1):
            shown += f".{node.attr}"
            if not hasattr(value, node.attr):
                return self.stand_in(
                    node, shown, f"`{shown}` is not a setting of this configuration; guard it with a condition on `cfg`, or fix the name"
                ), count
            value = getattr(value, node.attr)
            found = setting_literal(value)
            if found is not None:
                return found, count
            if not is_dataclass(value):
                raise self.module.error(
                    node, f"`{shown}` is {value!r}, which has no literal; settings are int, float, str, bool, None or tuples of them"
                )
        raise self.module.error(path[-1], f"`{shown}` is a section, not a setting; read its leaves one by one")

    def symbol(self, node):
        """The flat name of `ops.f`, `arch.f` or `library.f`."""
        found = self.program.attribute(node)
        if found is None:
            shown = f"{node.value.id}.{node.attr}"
            return self.stand_in(
                node,
                shown,
                f"`{shown}` is not defined in {self.program.chosen[node.value.id]}; guard it with `hasattr(arch, ...)` or a condition on `cfg`",
            )
        owner = found[0]
        original = node.attr
        module = self.program.modules[owner]
        if original not in module.symbols:
            holder = self.program.modules[self.program.chosen[node.value.id]]
            original = holder.imports[original][1]
        return ast.Name(self.finals[owner][original], ast.Load())

    def stand_in(self, node, shown, message):
        """A name that nothing defines. It is an error only if folding leaves it in the file."""
        name = shown.replace(".", "_") + "_missing"
        while name in self.taken:
            name += "_"
        self.missing[name] = self.module.error(node, message)
        return ast.Name(name, ast.Load())
