"""Load the shippable modules of a build: the entry, the chosen array library's and model's modules, and all they import from the package.

In: names of the entry and the chosen modules, and the folder that holds the package. Out: `Program`, modules with dependencies first.
Import statements are checked here, because following them needs the checks; every other rule of the dialect is in dialect.py.
"""

import ast
import builtins
import functools
from dataclasses import dataclass
from pathlib import Path

from trit.bundle.names import Names, analyse, identifiers, import_binding, walk

RESERVED = ("cfg", "ops", "arch", "library")
BUILTINS = frozenset(dir(builtins))
BANNED_MODULES = ("inspect", "importlib", "__future__", "linecache", "runpy")


class DialectError(ValueError):
    """A shippable module breaks a rule; the message is `file:line: what is wrong, what would be right`."""


@dataclass
class Module:
    """One source file. `imports` maps a local name to (module, symbol) of the package, `externals` to what the import means."""

    name: str
    role: str
    path: str
    tree: ast.Module
    names: Names
    imports: dict
    externals: dict
    symbols: dict

    @functools.cached_property
    def nodes(self):
        """Every node of the file."""
        return walk(self.tree)

    @functools.cached_property
    def identifiers(self):
        """Every identifier that occurs in the file."""
        return identifiers(self.tree)

    @functools.cached_property
    def rebound(self):
        """Names that a `global` statement lets a function bind."""
        return set().union(*(scope.global_names for scope in self.names.scopes))

    @functools.cached_property
    def values(self):
        """Names and attributes (the nodes) that are used as a value: read, and not only looked up or searched."""
        lookups = set()
        for node in self.nodes:
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
                lookups.add(node.value)
            elif isinstance(node, ast.Compare):
                lookups.update(n for n, op in zip(node.comparators, node.ops, strict=True) if isinstance(op, (ast.In, ast.NotIn)))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
                lookups.add(node.func.value)
        names = [node for node in self.names.homes if isinstance(node.ctx, ast.Load) and self.names.is_global(node)]
        attributes = [node for node in self.nodes if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in RESERVED]
        return [node for node in names + attributes if node not in lookups]

    def error(self, node, message):
        """A DialectError that points at `node`."""
        return DialectError(f"{self.path}:{getattr(node, 'lineno', 1)}: {message}")


@dataclass
class Program:
    """All modules of a build by name, dependencies first, the entry's name, and `chosen`: the module that a reserved name stands for
    ("ops", "arch" and "library", but not "cfg")."""

    modules: dict
    entry: str
    chosen: dict

    def resolve(self, module, name):
        """(module name, node) of the top-level symbol that a global `name` means in `module`; None for externals and builtins."""
        if name in module.symbols:
            return module.name, module.symbols[name]
        if name in module.imports:
            source, symbol = module.imports[name]
            return source, self.modules[source].symbols[symbol]
        return None

    def attribute(self, node):
        """(module name, node) of the symbol behind `ops.name` and the like; None where that module has no such symbol."""
        return self.resolve(self.modules[self.chosen[node.value.id]], node.attr)

    def callee(self, module, call):
        """(module name, function node) of the shipped function that a call names directly; None for every other call."""
        target, found = call.func, None
        if module.names.is_global(target):
            found = self.resolve(module, target.id)
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in self.chosen:
            found = self.attribute(target)
        return found if found and isinstance(found[1], ast.FunctionDef) else None


def reserved_positions(function):
    """Positions of the reserved names in a function's signature: {index: name}."""
    names = [arg.arg for arg in function.args.posonlyargs + function.args.args]
    return {index: name for index, name in enumerate(names) if name in RESERVED}


def load(entry, library, arch_module, root):
    """Read and connect the modules of a build for the array library named `library`. Raises DialectError on import rules."""
    root = Path(root)
    loaded, active = {}, []
    package = entry.partition(".")[0]
    chosen = {"ops": f"{package}.ops.{library}_ops", "library": f"{package}.train.{library}_backend", "arch": arch_module}
    roles = {name: role for role, name in chosen.items()}

    def visit(name, importer, node):
        if name in active:
            raise importer.error(
                node, f"imports in a circle: {' -> '.join(active[active.index(name) :] + [name])}; move the shared part out"
            )
        if name in loaded:
            return
        role = roles.get(name) or ("ops" if name.startswith(f"{package}.ops.") else "shared")
        module = read(name, role, root, importer, node, package)
        active.append(name)
        for local, (source, symbol) in module.imports.items():
            line = next(n for n in module.tree.body if isinstance(n, ast.ImportFrom) and n.module == source)
            check_layer(module, line, source, package, roles)
            visit(source, module, line)
            if symbol not in loaded[source].symbols:
                hint = "; import it from the module that defines it" if symbol in loaded[source].imports else ""
                raise module.error(line, f"`{symbol}` is not defined at the top level of {source}{hint}")
            if local in module.symbols or local in module.externals:
                raise module.error(line, f"`{local}` is bound twice at the top level; rename one")
        active.pop()
        loaded[name] = module

    for name in (chosen["ops"], arch_module, entry, chosen["library"]):
        visit(name, None, None)
    return Program(loaded, entry, chosen)


def check_layer(module, line, source, package, roles):
    """Refuse imports that would bring a second model or backend into the file."""
    if source.startswith(f"{package}.models."):
        raise module.error(line, f"imports the model {source}; read it through the parameter `arch`, or move the shared part to a layer")
    if source.startswith(f"{package}.train.") and source.endswith("_backend"):
        raise module.error(line, f"imports the backend {source}; read it through the parameter `library`")
    if source.startswith(f"{package}.ops.") and roles.get(source) != "ops" and module.role != "ops":
        raise module.error(line, f"imports {source}, which is not the chosen ops module; read it through the parameter `ops`")


def read(name, role, root, importer, node, package):
    """Parse one module and sort its top level into imports and symbols."""
    base = root.joinpath(*name.split("."))
    path = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
    if path is None:
        message = f"there is no module {name} under {root}"
        raise importer.error(node, message) if importer else DialectError(message)
    return parsed(name, role, path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"), package)


@functools.lru_cache(512)
def parsed(name, role, shown, text, package):
    """The module of a file's text. Nothing changes a module, so builds share it."""
    try:
        tree = ast.parse(text, shown)
    except SyntaxError as error:
        raise DialectError(f"{shown}:{error.lineno}: is not valid Python: {error.msg}") from None
    module = Module(name, role, shown, tree, analyse(tree), {}, {}, {})
    for statement in module.nodes:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            read_import(module, statement, statement in tree.body, package)
    for statement in tree.body:
        for symbol in defined(statement):
            if symbol in module.symbols or symbol in module.externals:
                raise module.error(statement, f"`{symbol}` is bound twice at the top level; keep one")
            module.symbols[symbol] = statement
    return module


def defined(statement):
    """Names that one top-level statement defines, imports aside."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def read_import(module, statement, at_top, package):
    """Check one import statement and enter what it binds."""
    is_from = isinstance(statement, ast.ImportFrom)
    origins = [statement.module or ""] if is_from else [alias.name for alias in statement.names]
    if is_from and statement.level:
        raise module.error(statement, f"relative import; write `from {package}.folder.module import name`")
    for origin in origins:
        if origin.partition(".")[0] in BANNED_MODULES:
            raise module.error(statement, f"import of `{origin}`; a counted file cannot use it")
    if any(alias.name == "*" for alias in statement.names):
        raise module.error(statement, "star import; name what is used")
    inside_package = any(origin.partition(".")[0] == package for origin in origins)
    if inside_package and not at_top:
        raise module.error(statement, "import of the package inside a function or block; move it to the top of the file")
    if not at_top and module.role != "ops":
        raise module.error(
            statement, "import inside a function or block; move it to the top of the file (only ops modules may import late)"
        )
    if inside_package and (not is_from or any(alias.asname for alias in statement.names)):
        raise module.error(statement, f"import of the package by name or alias; write `from {origins[0]} import name`")
    if not at_top:
        return
    for alias in statement.names:
        bound = import_binding(alias, is_from)
        if bound in RESERVED or bound in BUILTINS and not inside_package:
            raise module.error(statement, f"import binds `{bound}`, a reserved name or a builtin; import the module and use a dotted name")
        if inside_package:
            entered = (statement.module, alias.name)
            if module.imports.get(bound, entered) != entered:
                raise module.error(statement, f"`{bound}` is imported from two modules; keep one")
            module.imports[bound] = entered
            continue
        if is_from:
            meaning = f"{statement.module}:{alias.name}"
        else:
            meaning = alias.name if alias.asname else bound
        if module.externals.get(bound, meaning) != meaning:
            raise module.error(statement, f"`{bound}` is imported with two meanings; keep one")
        module.externals[bound] = meaning
