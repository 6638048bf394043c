"""Which scope every name in a syntax tree belongs to, and walks of a tree that are quicker than those of `ast`.

In: a parsed module. Out: a `Names` record that says for each `ast.Name` node whether it is a local (and of which scope) or a global.
Annotations of functions and of local variables are not looked at: they never reach a counted file.
"""

import ast
import functools
from dataclasses import dataclass, field

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
PLAIN_FIELDS = frozenset(
    ("ctx", "op", "ops", "id", "attr", "arg", "kind", "lineno", "type_comment", "simple", "conversion", "level", "is_async")
)


@functools.cache
def child_fields(kind):
    """Names of the fields of a node class that can hold nodes with children of their own: no operators, contexts and plain values."""
    fields = () if kind is ast.Constant else kind._fields
    return tuple(name for name in fields if name not in PLAIN_FIELDS)


def children(node):
    """List of the child nodes of a node, but for operators and contexts, in the order of the fields."""
    found = []
    for name in child_fields(node.__class__):
        value = getattr(node, name, None)
        if isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            found.append(value)
    return found


def walk(node):
    """List of all nodes below and including `node`, but for operators and contexts, breadth first as `ast.walk`."""
    found = [node]
    for parent in found:  # the list grows meanwhile
        found += children(parent)
    return found


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
    """Result of `analyse`: homes of `Name` nodes in lexical order, every scope, what binds in another way than by its value alone:
    names that `+=` changes, and (scope, node) of each `for` and of each handler with a name."""

    homes: dict
    scopes: list
    augmented: set
    loops: list
    handlers: list

    def is_global(self, node):
        return isinstance(node, ast.Name) and node in self.homes and self.homes[node] is None

    def global_loads(self):
        """Names that are read from the global namespace, with those named by `global`."""
        found = {node.id for node, home in self.homes.items() if home is None and isinstance(node.ctx, ast.Load)}
        return found.union(*(scope.global_names for scope in self.scopes))


def analyse(tree):
    """Resolve every name of a module (or of a list of statements wrapped in one)."""
    builder = _Builder(tree)
    builder.visit_all(tree.body)
    homes = {node: scope.home(node.id) for node, scope in builder.uses}
    return Names(homes, builder.scopes, builder.augmented, builder.loops, builder.handlers)


def arguments(node):
    """All `ast.arg` nodes of a function or lambda."""
    found = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return found + [extra for extra in (node.args.vararg, node.args.kwarg) if extra]


def import_binding(alias, is_from):
    """The name that one alias of an import statement binds."""
    return alias.asname or (alias.name if is_from else alias.name.partition(".")[0])


def global_loads(statements):
    """Names that a list of top-level statements takes from the global namespace, with those named by `global`."""
    return analyse(ast.Module(body=list(statements), type_ignores=[])).global_loads()


def identifiers(tree):
    """Every identifier that occurs anywhere in a tree, whatever its role."""
    found = set()
    for node in walk(tree):
        if not isinstance(node, ast.Constant):
            for value in vars(node).values():
                if isinstance(value, str):
                    found.add(value)
                elif isinstance(value, list):
                    found.update(item for item in value if isinstance(item, str))
    return found


class _Builder:
    """Walks in lexical order, values before targets, and notes (name node, scope) pairs."""

    def __init__(self, tree):
        self.scope = Scope("module", tree, None)
        self.scopes = [self.scope]
        self.uses, self.augmented, self.loops, self.handlers = [], set(), [], []

    def visit(self, node):
        kind = node.__class__
        if kind is not ast.Constant:
            method = METHODS.get(kind)
            if method is None:
                self.visit_all(children(node))
            else:
                method(self, node)

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
        if isinstance(node.target, ast.Name):
            self.augmented.add(node.target.id)
        self.visit(node.value)
        self.visit(node.target)

    def visit_AnnAssign(self, node):
        if self.scope.kind == "class":
            self.visit(node.annotation)
        self.visit_all([node.value, node.target])

    def visit_For(self, node):
        self.loops.append((self.scope, node))
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
            self.handlers.append((self.scope, node))
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
        self.visit_all(children(node))

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node):
        if node.rest:
            self.scope.bind(node.rest)
        self.visit_all(children(node))


METHODS = {
    getattr(ast, name[6:]): method for name, method in vars(_Builder).items() if name.startswith("visit_") and hasattr(ast, name[6:])
}
