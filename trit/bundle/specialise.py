"""Specialise and flatten: one list of top-level statements in which `cfg`, `ops`, `arch` and `library` no longer occur.

In: a linted `Program` and the configuration object. Out: `Flat`, statements in module order, not yet folded or shaken.
`cfg.a.b` becomes its literal, `ops.f` the name `ops_f`, `arch.f` the name `arch_f`, `library.f` the name `f`; parameters and arguments of these names go away.
"""

import ast
import functools
import math
from dataclasses import dataclass, field, is_dataclass

from trit.bundle.modules import BUILTINS, RESERVED, Module, defined, reserved_positions
from trit.bundle.names import child_fields, import_binding

PREFIX = {"ops": "ops_", "arch": "arch_"}


@dataclass
class Symbol:
    """One top-level definition of the flat file, under its final name, with where it came from. `node` is the definition with the reserved
    names taken out, made when it is first asked for from the module's own `statement`, which stays as it is."""

    name: str
    statement: ast.stmt
    module: Module
    original: str
    worker: object = None

    @functools.cached_property
    def node(self):
        return self.worker.top_level(self.statement) if self.worker else self.statement

    @property
    def label(self):
        return f"{self.module.name}:{self.original}"


@dataclass
class Flat:
    """The flat program. `missing` maps stand-in names of absent settings and model functions to the error to raise if one survives;
    `rebound` are the symbols that a function binds anew, `misused` those that are used as a value and not only looked up."""

    imports: dict
    symbols: dict
    entry: str
    missing: dict = field(default_factory=dict)
    rebound: set = field(default_factory=set)
    misused: set = field(default_factory=set)


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
    """Join the modules into one list of symbols, each specialised when it is first looked at; the program stays as it is. Raises
    DialectError where a setting is no literal."""
    taken = set(BUILTINS) | set(RESERVED)
    taken.update(*(module.identifiers for module in program.modules.values()))
    finals = final_names(program, taken)
    flat = Flat({}, {}, finals[program.entry]["main"])
    for module in program.modules.values():
        known = dict(finals[module.name])
        for local, (source, symbol) in module.imports.items():
            known[local] = finals[source][symbol]
        worker = _Specialise(program, module, config, known, finals, flat.missing, taken)
        flat.rebound |= {known.get(name, name) for name in module.rebound}
        flat.misused |= set(map(worker.final_name, module.values))
        for statement in module.tree.body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                add_imports(flat, module, statement)
            elif not isinstance(statement, ast.Expr):
                (original,) = defined(statement)
                final = known[original]
                flat.symbols[final] = Symbol(final, statement, module, original, worker)
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


class _Specialise:
    """Writes specialised copies of the definitions of one module."""

    def __init__(self, program, module, config, known, finals, missing, taken):
        self.program, self.module, self.config = program, module, config
        self.known, self.finals, self.missing, self.taken = known, finals, missing, taken
        self.homes = module.names.homes

    def top_level(self, statement):
        """A copy of a top-level definition without reserved names, under its final name."""
        new = self.visit(statement)
        if isinstance(new, (ast.FunctionDef, ast.ClassDef)):
            new.name = self.known[new.name]
            if isinstance(new, ast.FunctionDef):
                for group in ("posonlyargs", "args"):
                    setattr(new.args, group, [argument for argument in getattr(new.args, group) if argument.arg not in RESERVED])
        return new

    def final_name(self, node):
        """The flat name behind a global name, or behind an attribute of a reserved one; None where it has none."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        found = self.program.attribute(node) if node.value.id in self.program.chosen else None
        return self.symbol_name(node, found) if found else None

    def visit(self, node):
        method = METHODS.get(node.__class__)
        return method(self, node) if method else self.copied(node)

    def copied(self, node, **replaced):
        """A copy of a node, with copies of its children; `replaced` fields are taken instead of its own. Operators are shared."""
        new = node.__class__()
        values = vars(new)
        values.update(vars(node), **replaced)
        for name in child_fields(node.__class__):
            value = values.get(name)
            if isinstance(value, list):
                values[name] = [self.visit(item) if isinstance(item, ast.AST) else item for item in value]
            elif isinstance(value, ast.AST):
                values[name] = self.visit(value)
        return new

    def visit_Name(self, node):
        known = node.id in self.known and self.homes.get(node, node) is None
        return self.copied(node, id=self.known[node.id]) if known else self.copied(node)

    def visit_Global(self, node):
        return self.copied(node, names=[self.known.get(name, name) for name in node.names])

    def visit_Call(self, node):
        owner = node.args[0] if node.args else None
        if isinstance(node.func, ast.Name) and node.func.id == "hasattr" and isinstance(owner, ast.Name) and owner.id in RESERVED:
            found = self.program.attribute(ast.Attribute(owner, node.args[1].value, ast.Load()))
            return ast.copy_location(ast.Constant(found is not None), node)
        found, arguments = self.program.callee(self.module, node), node.args
        if found:
            dropped = reserved_positions(found[1])
            arguments = [argument for index, argument in enumerate(arguments) if index not in dropped]
        else:
            # The lint lets a reserved name through only for a model function that this model lacks: a dead branch, or an error after shaking.
            arguments = [argument for argument in arguments if not (isinstance(argument, ast.Name) and argument.id in RESERVED)]
        return self.copied(node, args=arguments)

    def visit_Attribute(self, node):
        path, base = [], node
        while isinstance(base, ast.Attribute):
            path.insert(0, base)
            base = base.value
        if not (isinstance(base, ast.Name) and base.id in RESERVED):
            return self.copied(node)
        result, used = self.leaf(path) if base.id == "cfg" else (self.symbol(path[0]), 1)
        ast.copy_location(result, node)
        for outer in path[used:]:
            result = ast.copy_location(ast.Attribute(result, outer.attr, outer.ctx), outer)
        return result

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
        return ast.Name(self.symbol_name(node, found), ast.Load())

    def symbol_name(self, node, found):
        """The flat name of an attribute whose definition was found in a module."""
        owner, original = found[0], node.attr
        if original not in self.program.modules[owner].symbols:
            holder = self.program.modules[self.program.chosen[node.value.id]]
            original = holder.imports[original][1]
        return self.finals[owner][original]

    def stand_in(self, node, shown, message):
        """A name that nothing defines. It is an error only if folding leaves it in the file."""
        name = shown.replace(".", "_") + "_missing"
        while name in self.taken:
            name += "_"
        self.missing[name] = self.module.error(node, message)
        return ast.Name(name, ast.Load())


METHODS = {getattr(ast, name[6:]): method for name, method in vars(_Specialise).items() if name.startswith("visit_")}
