"""Which scope every name in a syntax tree belongs to.

In: a parsed module. Out: a `Names` record that says for each `ast.Name` node whether it is a local (and of which scope) or a global.
Annotations of functions and of local variables are not looked at: they never reach a counted file.
"""

import ast
from dataclasses import dataclass, field

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(eq=False)
class Scope:
    """A namespace: its kind, the node that opens it, the scope around it, and the names it binds."""

    kind: str
    node: ast.AST
    parent: "Scope | None"
    bound: set = field(default_factory=set)
    otherwise_bound: set = field(default_factory=set)
    global_names: set = field(default_factory=set)
    nonlocal_names: set = field(default_factory=set)

    def bind(self, *names):
        """Enter names bound by anything but a `Name` node: parameters, definitions, imports, handlers, patterns."""
        self.bound.update(names)
        self.otherwise_bound.update(names)

    def home(self, name):
        """The scope that owns `name` seen from here; None when it is a global or a builtin."""
        scope = self
        while scope.kind != "module":
            if scope is self or scope.kind != "class":
                if name in scope.global_names:
                    return None
                if name in scope.bound and name not in scope.nonlocal_names:
                    return scope
            scope = scope.parent
        return None


@dataclass
class Names:
    """Result of `analyse`: homes of `Name` nodes in lexical order, and every scope."""

    homes: dict
    scopes: list

    def is_global(self, node):
        return isinstance(node, ast.Name) and node in self.homes and self.homes[node] is None


def analyse(tree):
    """Resolve every name of a module (or of a list of statements wrapped in one)."""
    builder = _Builder(tree)
    builder.visit_all(tree.body)
    return Names({node: scope.home(node.id) for node, scope in builder.uses}, builder.scopes)


def arguments(node):
    """All `ast.arg` nodes of a function or lambda."""
    found = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return found + [extra for extra in (node.args.vararg, node.args.kwarg) if extra]


def import_binding(alias, is_from):
    """The name that one alias of an import statement binds."""
    return alias.asname or (alias.name if is_from else alias.name.partition(".")[0])


def global_loads(statements):
    """Names that a list of top-level statements takes from the global namespace, with those named by `global`."""
    names = analyse(ast.Module(body=list(statements), type_ignores=[]))
    found = {node.id for node, home in names.homes.items() if home is None and isinstance(node.ctx, ast.Load)}
    for scope in names.scopes:
        found |= scope.global_names
    return found


def identifiers(tree):
    """Every identifier that occurs anywhere in a tree, whatever its role."""
    found = set()
    for node in ast.walk(tree):
        for _, value in ast.iter_fields(node):
            if isinstance(value, str) and not isinstance(node, ast.Constant):
                found.add(value)
            elif isinstance(value, list):
                found.update(item for item in value if isinstance(item, str))
    return found


class _Builder(ast.NodeVisitor):
    """Walks in lexical order, values before targets, and notes (name node, scope) pairs."""

    def __init__(self, tree):
        self.scope = Scope("module", tree, None)
        self.scopes = [self.scope]
        self.uses = []

    def visit_all(self, nodes):
        for node in nodes:
            if node is not None:
                self.visit(node)

    def inside(self, kind, node, nodes, bound=()):
        """Visit `nodes` in a new scope."""
        outer, self.scope = self.scope, Scope(kind, node, self.scope)
        self.scope.bind(*bound)
        self.scopes.append(self.scope)
        self.visit_all(nodes)
        self.scope = outer

    def visit_Name(self, node):
        self.uses.append((node, self.scope))
        if not isinstance(node.ctx, ast.Load):
            self.scope.bound.add(node.id)

    def visit_FunctionDef(self, node):
        self.visit_all(node.decorator_list + node.args.defaults + node.args.kw_defaults)
        self.scope.bind(node.name)
        self.inside("function", node, node.body, (arg.arg for arg in arguments(node)))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node):
        self.visit_all(node.args.defaults + node.args.kw_defaults)
        self.inside("function", node, [node.body], (arg.arg for arg in arguments(node)))

    def visit_ClassDef(self, node):
        self.visit_all(node.decorator_list + node.bases + node.keywords)
        self.scope.bind(node.name)
        self.inside("class", node, node.body)

    def visit_comprehension_expression(self, node):
        self.visit(node.generators[0].iter)
        parts = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        inner = []
        for number, generator in enumerate(node.generators):
            inner += ([generator.iter] if number else []) + [generator.target] + generator.ifs
        self.inside("comprehension", node, inner + parts)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_comprehension_expression

    def visit_NamedExpr(self, node):
        self.visit(node.value)
        target = self.scope
        while target.kind == "comprehension":
            target = target.parent
        target.bound.add(node.target.id)
        self.uses.append((node.target, target))

    def visit_Assign(self, node):
        self.visit(node.value)
        self.visit_all(node.targets)

    def visit_AugAssign(self, node):
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node):
        if self.scope.kind == "class":
            self.visit(node.annotation)
        self.visit_all([node.value, node.target])

    def visit_For(self, node):
        self.visit(node.iter)
        self.visit(node.target)
        self.visit_all(node.body + node.orelse)

    visit_AsyncFor = visit_For

    def visit_Import(self, node):
        for alias in node.names:
            self.scope.bind(import_binding(alias, isinstance(node, ast.ImportFrom)))

    visit_ImportFrom = visit_Import

    def visit_ExceptHandler(self, node):
        self.visit_all([node.type])
        if node.name:
            self.scope.bind(node.name)
        self.visit_all(node.body)

    def visit_Global(self, node):
        self.scope.global_names.update(node.names)

    def visit_Nonlocal(self, node):
        self.scope.nonlocal_names.update(node.names)
        for name in node.names:
            self.scope.bind(name)

    def visit_MatchAs(self, node):
        if getattr(node, "name", None):
            self.scope.bind(node.name)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node):
        if node.rest:
            self.scope.bind(node.rest)
        self.generic_visit(node)
