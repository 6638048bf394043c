"""The dialect of shippable modules: the rules that make specialising and shaking exact, each with its error.

In: a `Program` of loaded modules. Out: nothing, or a `DialectError` with `file:line: what is wrong, what would be right`.
"""

import ast
from pathlib import Path

from trit.bundle.modules import BUILTINS, RESERVED, DialectError, load, reserved_positions
from trit.bundle.names import arguments, children, import_binding

BANNED_NAMES = ("__file__", "globals", "locals", "vars", "eval", "exec", "__import__", "__builtins__", "__spec__", "__doc__")
PURE_BUILTINS = ("frozenset", "set", "dict", "tuple", "list", "float", "int", "bytes", "range", "len", "ord", "slice", "min", "max", "sum")
PURE_CALLS = ("namedtuple", "collections.namedtuple", "struct.Struct", "re.compile", "math.log", "math.log2", "math.sqrt", "math.exp")
DECORATORS = (
    "dataclass", "dataclasses.dataclass", "staticmethod", "classmethod", "property", "contextmanager", "contextlib.contextmanager",
    "functools.lru_cache", "functools.cache", "lru_cache", "functools.wraps",
    "torch.no_grad", "torch.inference_mode", "torch.compile", "mx.compile",
)  # fmt: skip
OPS_DECORATORS = ("triton.", "tl.", "torch.", "mx.", "functools.")


def lint(program):
    """Check every module of a program, then what only the modules together can break."""
    for module in program.modules.values():
        for statement in module.tree.body:
            check_top_level(program, module, statement)
        check_names(program, module)
        parents = {child: node for node in module.nodes for child in children(node)}
        for node in module.nodes:
            check_node(program, module, node, parents)
    check_together(program)
    return program


def lint_package(root, entry="trit.submission", libraries=("torch",), models=None):
    """Lint the build of every model (all files of the models folder unless named) with every array library."""
    root_package = Path(root) / entry.partition(".")[0]
    models = models or sorted(path.stem for path in (root_package / "models").glob("*.py") if path.stem != "__init__")
    for library in libraries:
        for model in models:
            lint(load(entry, library, f"{root_package.name}.models.{model}", root))
    return models


def check_top_level(program, module, statement):
    """Top level: imports, literal constants, functions, classes."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return
    if isinstance(statement, ast.FunctionDef):
        for default in statement.args.defaults + [d for d in statement.args.kw_defaults if d]:
            if not constant(program, module, default):
                raise module.error(default, f"default value of `{statement.name}` is computed at import; use None or a literal")
        if module.name == program.entry and statement.name == "main" and [a.arg for a in arguments(statement)] != list(RESERVED):
            raise module.error(statement, "the entry is `def main(cfg, ops, arch, library)`")
        return
    if isinstance(statement, ast.ClassDef):
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in RESERVED:
                raise module.error(node, f"class `{statement.name}` touches `{node.id}`; move that code to a function")
        return
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 or isinstance(statement, ast.AnnAssign) and statement.value:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        if not isinstance(target, ast.Name):
            raise module.error(statement, "top-level assignment to something else than one name; write one constant a line")
        if not constant(program, module, statement.value):
            raise module.error(
                statement, f"`{target.id}` is computed at import; the top level holds literal constants, move the work into a function"
            )
        return
    raise module.error(
        statement, f"{type(statement).__name__} at the top level; only imports, literal constants, functions and classes may stand here"
    )


def constant(program, module, node):
    """True for literals, names of other constants and of external modules, and simple expressions of them."""

    def sub(*nodes):
        return all(part is not None and constant(program, module, part) for part in nodes)

    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return sub(*node.elts)
    if isinstance(node, ast.Dict):
        return sub(*node.keys, *node.values)
    if isinstance(node, ast.UnaryOp):
        return sub(node.operand)
    if isinstance(node, ast.BinOp):
        return sub(node.left, node.right)
    if isinstance(node, ast.BoolOp):
        return sub(*node.values)
    if isinstance(node, ast.Compare):
        return sub(node.left, *node.comparators)
    if isinstance(node, ast.IfExp):
        return sub(node.test, node.body, node.orelse)
    if isinstance(node, ast.Subscript):
        return sub(node.value, node.slice)
    if isinstance(node, ast.Attribute):
        return sub(node.value)
    if isinstance(node, ast.Name):
        found = program.resolve(module, node.id)
        return isinstance(found[1], (ast.Assign, ast.AnnAssign)) if found else node.id in module.externals or node.id in BUILTINS
    if isinstance(node, ast.Call):
        pure = ast.unparse(node.func) in PURE_BUILTINS + PURE_CALLS
        return pure and sub(*node.args, *(keyword.value for keyword in node.keywords))
    return False


def check_names(program, module):
    """Reserved names are bound only as parameters of top-level functions; every free name resolves; no introspection."""
    allowed = {}
    for function in module.tree.body:
        if isinstance(function, ast.FunctionDef):
            positions = reserved_positions(function)
            if positions and module.role == "ops":
                raise module.error(function, f"`{function.name}` of an ops module takes a reserved name; pass plain values to it")
            first_default = len(function.args.posonlyargs + function.args.args) - len(function.args.defaults)
            if positions and max(positions) >= first_default:
                raise module.error(
                    function, f"`{function.name}` gives a reserved name a default; pass it by position, before parameters with defaults"
                )
            allowed[function] = {arg for arg in function.args.posonlyargs + function.args.args if arg.arg in RESERVED}
    for node in module.nodes:
        if isinstance(node, ast.arg) and node.arg in RESERVED and not any(node in args for args in allowed.values()):
            raise module.error(
                node,
                f"`{node.arg}` is a parameter here; only top-level functions take it, by position, and inner functions read the outer one",
            )
    for node, home in module.names.homes.items():
        if node.id in RESERVED:
            if not isinstance(node.ctx, ast.Load):
                raise module.error(node, f"`{node.id}` is assigned; a reserved name is only ever a parameter")
            if home is None:
                raise module.error(node, f"`{node.id}` is read but is not a parameter; add it to the signature of the top-level function")
            continue
        if home is None and node.id in BANNED_NAMES:
            raise module.error(node, f"`{node.id}` cannot work in a counted file; pass what is needed as a parameter")
        known = node.id in module.symbols or node.id in module.imports or node.id in module.externals or node.id in BUILTINS
        if home is None and not known and node.id != "__name__":
            raise module.error(node, f"`{node.id}` is not defined or imported in this file; import it here")
    for scope in module.names.scopes:
        if scope.global_names and module.role != "ops":
            raise module.error(scope.node, "`global` keeps state in a module; pass the state as a value (only ops modules may)")
        if scope.kind == "class" and (clash := sorted(scope.bound & (module.symbols.keys() | module.imports.keys()))):
            raise module.error(scope.node, f"class attribute `{clash[0]}` has the name of a top-level symbol; rename one")


def check_node(program, module, node, parents):
    """Uses of reserved names, calls of shipped functions, decorators, forms that cannot be shipped."""
    if bound := sorted(other_bindings(node) & set(RESERVED)):
        raise module.error(node, f"`{bound[0]}` is bound here; a reserved name is only ever a parameter of a top-level function")
    if isinstance(node, ast.Name) and node.id in RESERVED:
        check_reserved_use(program, module, node, parents)
    elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
        base = node
        while isinstance(base, ast.Attribute):
            base = base.value
        if isinstance(base, ast.Name) and base.id in RESERVED:
            raise module.error(node, f"`{ast.unparse(node)}` is assigned; settings, ops and models are read-only")
    elif isinstance(node, ast.Call) and (found := program.callee(module, node)):
        check_call(module, node, found[1])
    elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        for decorator in node.decorator_list:
            text = ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)
            if text not in DECORATORS and not (module.role == "ops" and text.startswith(OPS_DECORATORS)):
                raise module.error(decorator, f"decorator `{text}`; allowed are {', '.join(DECORATORS)}")
    elif isinstance(node, (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)):
        raise module.error(node, "asynchronous code; write it without async")
    target = node
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("arch", "library"):
        target = None
        found = program.attribute(node)
        check_value(module, node, found and found[1], parents)
    elif module.names.is_global(target) and (found := program.resolve(module, target.id)):
        check_value(module, node, found[1], parents)


def other_bindings(node):
    """Names that a node binds in another way than by a `Name` or an argument."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {import_binding(alias, isinstance(node, ast.ImportFrom)) for alias in node.names}
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return set(node.names)
    names = ("name", "rest") if not isinstance(node, ast.alias) else ()
    return {getattr(node, name) for name in names if isinstance(getattr(node, name, None), str)}


def check_value(module, node, definition, parents):
    """A function with reserved parameters can be called, but not passed around: its signature changes in the counted file."""
    called = isinstance(parents[node], ast.Call) and parents[node].func is node
    if isinstance(definition, ast.FunctionDef) and reserved_positions(definition) and not called:
        raise module.error(
            node, f"`{ast.unparse(node)}` takes reserved names and is used as a value; wrap the call in a lambda or inner function"
        )


def check_call(module, call, function):
    """Reserved parameters of a shipped function get exactly the same reserved name, by position."""
    for index, name in reserved_positions(function).items():
        shown = call.args[: index + 1]
        right = len(shown) == index + 1 and isinstance(shown[-1], ast.Name) and shown[-1].id == name
        if not right or any(isinstance(argument, ast.Starred) for argument in shown):
            raise module.error(call, f"call of `{function.name}` must pass `{name}` as positional argument {index + 1}")


def is_presence_test(module, call):
    """True for `hasattr(name, "literal")` with the builtin."""
    name, texts = call.func, call.args[1:]
    return module.names.is_global(name) and name.id == "hasattr" and len(texts) == 1 and isinstance(texts[0], ast.Constant)


def check_reserved_use(program, module, node, parents):
    """A reserved name is read as a dotted leaf or handed on by position, and nothing else."""
    parent = parents[node]
    if isinstance(parent, ast.Attribute):
        if node.id in ("ops", "library") and not program.attribute(parent):
            raise module.error(node, f"`{node.id}.{parent.attr}` is not defined in {program.chosen[node.id]}; every array library needs it")
        return
    if isinstance(parent, ast.Call) and node in parent.args:
        if is_presence_test(module, parent) and node.id != "cfg":
            return
        if isinstance(parent.func, ast.Attribute) and ast.unparse(parent.func.value) == "arch" and not program.attribute(parent.func):
            return  # a function that this model lacks: specialising reports it if the call survives
        found = program.callee(module, parent)
        index = parent.args.index(node)
        if found and reserved_positions(found[1]).get(index) == node.id:
            return
        callee = ast.unparse(parent.func)
        if found:
            raise module.error(
                node,
                f"`{node.id}` is argument {index + 1} of `{callee}`, whose parameter there has another name; give it the name `{node.id}`",
            )
        raise module.error(
            node, f"`{node.id}` is passed to `{callee}`, which is not a top-level function of the package; pass the values it needs"
        )
    what = {ast.Starred: "splatted", ast.Return: "returned", ast.keyword: "passed by keyword"}.get(
        type(parent), "stored or used as a value"
    )
    raise module.error(node, f"`{node.id}` is {what}; read a dotted leaf such as `{node.id}.name`, or pass it by position")


def check_together(program):
    """Names that collide once all modules share one namespace."""
    owners, meanings = {}, {}
    for module in program.modules.values():
        for bound, meaning in module.externals.items():
            other = meanings.setdefault(bound, (meaning, module))
            if other[0] != meaning:
                raise module.error(
                    module.tree,
                    f"imports {meaning} as `{bound}`, but {other[1].path} imports {other[0]} by that name; use one name for one thing",
                )
        if module.role == "ops":
            continue
        for symbol, node in module.symbols.items():
            if symbol in owners:
                raise module.error(
                    node, f"`{symbol}` is also defined in {owners[symbol].path}; top-level names are unique across shipped modules"
                )
            owners[symbol] = module
    for bound, (_, module) in meanings.items():
        if bound in owners:
            node = owners[bound].symbols[bound]
            raise owners[bound].error(node, f"`{bound}` is also the name of an import in {module.path}; rename it")


__all__ = ["DialectError", "lint", "lint_package", "load"]
