"""One folding round over one top-level definition: expressions, look-ups, branches, unused locals.

In: the definition's names, the top-level constants and tables. Out: the tree, changed in place. `fold.fold_symbol` repeats it to the end.
"""

import ast
import functools
import re

from trit.bundle.evaluate import UNKNOWN, Evaluator, assigned_name, effect_free, safe_test
from trit.bundle.modules import BUILTINS
from trit.bundle.names import FUNCTIONS, arguments, child_fields, walk
from trit.bundle.specialise import literal

SHORT = 3
FORMAT = re.compile(r"^[<>^]?0?\d{0,2}(\.\d{1,2})?[dsfxe]?$")
ENDINGS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
BLOCKS = (ast.stmt, ast.ExceptHandler, ast.match_case)
SETTLED = (ast.Constant, ast.Name, ast.JoinedStr)


def same(one, other):
    """True for two literals that read alike: constants of one type and value, their negatives, tuples of such."""
    if one.__class__ is not other.__class__:
        return False
    if isinstance(one, ast.Constant):
        return one.value.__class__ is other.value.__class__ and repr(one.value) == repr(other.value)
    if isinstance(one, ast.UnaryOp):
        return one.op.__class__ is other.op.__class__ and same(one.operand, other.operand)
    return isinstance(one, ast.Tuple) and len(one.elts) == len(other.elts) and all(map(same, one.elts, other.elts))


class Folder:
    """One round over one top-level definition; `changed` says whether it found anything to fold."""

    def __init__(self, names, folding):
        self.names, self.top_names = names, folding.flat.symbols
        self.constants, self.tables, self.answers = folding.constants, folding.tables, folding.answers
        self.evaluate = Evaluator(self.value_of_name, self.is_builtin)
        self.known, self.unused, self.single, self.deleted, self.changed = {}, set(), set(), set(), False
        self.scopes = {scope.node: scope for scope in names.scopes}
        self.study_locals()

    def value_of_name(self, node):
        home = self.names.homes.get(node, UNKNOWN)
        if home is UNKNOWN:
            return UNKNOWN
        return self.constants.get(node.id, UNKNOWN) if home is None else self.known.get((home, node.id), UNKNOWN)

    def is_builtin(self, node):
        return self.names.is_global(node) and node.id in BUILTINS and node.id not in self.top_names

    def is_bound(self, node):
        """Globals, and parameters and a loop's own variables that nothing deletes, surely have a value; another local may be read before
        it is assigned."""
        home = self.names.homes.get(node, UNKNOWN)
        if home is None or home is UNKNOWN:
            return home is None
        if isinstance(home.node, FUNCTIONS) and node.id not in self.deleted and node.id in {arg.arg for arg in arguments(home.node)}:
            return True
        return node in self.looped

    def effect_free(self, node):
        return effect_free(node, self.is_bound)

    @functools.cached_property
    def looped(self):
        """Nodes that read a variable inside the loop that sets it, where nothing takes it away again."""
        found, handled = set(), {}
        for scope, handler in self.names.handlers:
            while scope:
                handled.setdefault(scope, set()).add(handler.name)
                scope = scope.parent
        for scope, loop in self.names.loops:
            homes = {node.id: self.names.homes.get(node) for node in walk(loop.target) if isinstance(node, ast.Name)}
            ours = homes.keys() - handled.get(scope, set()) - self.deleted
            found |= {
                node
                for statement in loop.body
                for node in walk(statement)
                if isinstance(node, ast.Name)
                and node.id in ours
                and homes[node.id] is not None
                and self.names.homes.get(node) is homes[node.id]
            }
        return found

    def study_locals(self):
        """Locals that are one literal for their whole life, and locals that nothing reads."""
        order, stores, loads = {}, {}, {}
        for position, (node, home) in enumerate(self.names.homes.items()):
            order[node] = position
            if home is not None:
                group = loads if isinstance(node.ctx, ast.Load) else stores
                group.setdefault((home, node.id), []).append(node)
                if isinstance(node.ctx, ast.Del):
                    self.deleted.add(node.id)
        blocked = self.deleted | self.names.augmented
        for scope in self.names.scopes:
            blocked |= scope.nonlocal_names
        for scope in self.names.scopes:
            if scope.kind != "function":
                continue
            self.unused |= {(scope, name) for name in scope.bound if name not in blocked and (scope, name) not in loads}
            for statement in scope.node.body if isinstance(scope.node, ast.FunctionDef) else ():
                target = assigned_name(statement)
                key = (scope, getattr(target, "id", None))
                if target is None or key[1] in blocked or key[1] in scope.otherwise_bound or stores.get(key) != [target]:
                    continue
                value = self.evaluate(statement.value)
                if value is not UNKNOWN and all(order[node] > order[target] for node in loads.get(key, ())):
                    self.known[key] = value
                    if len(loads.get(key, ())) == 1:
                        self.single.add(key)

    def visit(self, node):
        """The node that takes the place of `node`: itself, another, a list of statements, or None."""
        method = METHODS.get(node.__class__)
        new = method(self, node) if method else self.generic_visit(node)
        if isinstance(new, ast.expr) and new.__class__ not in SETTLED:
            value = self.evaluate(new)
            short = None if value is UNKNOWN else literal(value)
            if (
                short
                and not same(short, new)
                and (value is None or isinstance(value, bool) or len(ast.unparse(short)) <= len(ast.unparse(new)))
            ):
                new = ast.copy_location(short, new)
        if new is not node:
            self.changed = True
        return new

    def visit_children(self, node, skipped=None):
        """Visit the children of a node but those of one field, in place."""
        for name in child_fields(node.__class__):
            value = getattr(node, name, None)
            if name == skipped or value is None:
                continue
            if isinstance(value, list):
                setattr(node, name, self.visit_list(value))
            elif isinstance(value, ast.AST) and (new := self.visit(value)) is not value:
                setattr(node, name, new)

    def visit_list(self, items):
        """The list that takes the place of a list of nodes, None and plain values."""
        found = []
        for item in items:
            new = self.visit(item) if isinstance(item, ast.AST) else item
            if isinstance(new, list):
                found += new
            elif new is not None or item is None:
                found.append(new)
        return found

    def put(self, node, field, value):
        """Set a field of a node, noting whether that changes it."""
        old = getattr(node, field)
        if old != value if isinstance(value, list) else old is not value:
            setattr(node, field, value)
            self.changed = True

    # Expressions

    def visit_Name(self, node):
        home = self.names.homes.get(node)
        value = self.known.get((home, node.id), UNKNOWN)
        if home is None or value is UNKNOWN or not isinstance(node.ctx, ast.Load):
            return node
        new = literal(value)
        short = new and (value is None or isinstance(value, bool) or len(ast.unparse(new)) <= SHORT)
        return ast.copy_location(new, node) if new and (short or (home, node.id) in self.single) else node

    def children_but(self, node, field):
        """Visit all children but a name in `field`, where a literal would be odd (`3(x)`, `3[0]`, `3.real`)."""
        if isinstance(getattr(node, field), ast.Name):
            self.visit_children(node, field)
        else:
            self.visit_children(node)
        return node

    def visit_Attribute(self, node):
        return self.children_but(node, "value")

    def visit_Call(self, node):
        node = self.children_but(node, "func")
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and 1 <= len(node.args) <= 2 and not node.keywords:
            return self.look_up(node, node.func.value, node.args[0], node.args[1] if len(node.args) > 1 else ast.Constant(None))
        called = node.func.id if isinstance(node.func, ast.Name) and self.names.is_global(node.func) else None
        if called in self.answers and not node.keywords:
            count, value = self.answers[called]
            if len(node.args) == count and all(map(self.effect_free, node.args)):
                return ast.copy_location(ast.Constant(value), node)
        return node

    def visit_Subscript(self, node):
        node = self.children_but(node, "value")
        return self.look_up(node, node.value, node.slice, None) if isinstance(node.ctx, ast.Load) else node

    def look_up(self, node, container, key, default):
        """The element that a literal dictionary, tuple or list gives for a known key, if the others have no effect."""
        value = self.evaluate(key)
        if value is UNKNOWN or default is not None and not self.effect_free(default):
            return node
        if isinstance(container, ast.Name) and self.names.is_global(container) and container.id in self.tables:
            table = self.tables[container.id]
            if value in table:
                return literal(table[value]) or node
            return node if default is None else default
        if isinstance(container, ast.Dict):
            keys = UNKNOWN if None in container.keys else self.evaluate.all(container.keys)
            if keys is UNKNOWN or not all(map(self.effect_free, container.values)):
                return node
            found = [element for one, element in zip(keys, container.values, strict=True) if one == value]
            return found[-1] if found else node if default is None else default
        if (
            isinstance(container, (ast.Tuple, ast.List))
            and default is None
            and type(value) is int
            and all(map(self.effect_free, container.elts))
        ):
            return container.elts[value] if -len(container.elts) <= value < len(container.elts) else node
        return node

    def visit_BoolOp(self, node):
        """Drop operands that cannot be the result and cannot stop the evaluation; cut after one that always stops it."""
        self.visit_children(node)
        deciding, values = isinstance(node.op, ast.Or), []
        for part in node.values:
            value = self.evaluate(part)
            if value is not UNKNOWN and bool(value) is deciding:
                values.append(part)
                break
            if value is UNKNOWN or part is node.values[-1]:
                values.append(part)
        self.put(node, "values", values)
        return node if len(values) > 1 else values[0]

    def visit_IfExp(self, node):
        test, known = self.condition(node.test)
        self.put(node, "test", test)
        if known is not UNKNOWN:
            return self.visit(node.body if known else node.orelse)
        return self.generic_visit(node, "test")

    def visit_JoinedStr(self, node):
        node = self.join(node)
        return ast.copy_location(node.values[0], node) if len(node.values) == 1 and isinstance(node.values[0], ast.Constant) else node

    def join(self, node):
        """Fold the known parts of an f-string into its text."""
        parts = []
        for part in node.values:
            text = part.value if isinstance(part, ast.Constant) else self.formatted(part)
            if text is None:
                parts.append(part)
            elif parts and isinstance(parts[-1], ast.Constant):
                parts[-1] = ast.Constant(parts[-1].value + text)
            elif text:
                parts.append(ast.Constant(text))
        parts = parts or [ast.Constant("")]
        if len(parts) != len(node.values) or not all(old is new or same(old, new) for old, new in zip(node.values, parts, strict=True)):
            self.put(node, "values", parts)
        return node

    def formatted(self, part):
        """The text of one known `{value}`; None leaves it."""
        self.put(part, "value", self.visit(part.value))
        spec = self.join(part.format_spec) if part.format_spec else None
        value = self.evaluate(part.value)
        if value is UNKNOWN or type(value) is tuple or part.conversion not in (-1, 114, 115):
            return None
        if spec and not (len(spec.values) == 1 and isinstance(spec.values[0], ast.Constant) and FORMAT.match(spec.values[0].value)):
            return None
        value = {114: repr, 115: str}.get(part.conversion, lambda same: same)(value)
        try:
            return format(value, spec.values[0].value if spec else "")
        except (ValueError, TypeError):
            return None

    def visit_comprehension(self, node):
        self.visit_children(node)
        tests = [self.condition(test) for test in node.ifs]
        self.put(node, "ifs", [test for test, known in tests if known is UNKNOWN or not known])
        return node

    # Statements

    def condition(self, test):
        """A test folded for its truth alone, and that truth where it is known."""
        test = self.truth(self.visit(test))
        value = self.evaluate(test)
        return test, value if value is UNKNOWN else bool(value)

    def truth(self, node):
        """Simplify an expression of which only the truth matters."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self.put(node, "operand", self.truth(node.operand))
        elif isinstance(node, ast.BoolOp):
            deciding, values = isinstance(node.op, ast.Or), []
            for part in map(self.truth, node.values):
                value = self.evaluate(part)
                if value is not UNKNOWN and bool(value) is deciding:
                    if all(safe_test(value, self.is_bound) for value in values):
                        return ast.copy_location(ast.Constant(deciding), node)
                    values.append(part)
                    break
                if value is UNKNOWN:
                    values.append(part)
            if len(values) < 2:
                return values[0] if values else ast.copy_location(ast.Constant(not deciding), node)
            self.put(node, "values", values)
        return node

    def generic_visit(self, node, skipped=None):
        """Visit the children but those of one field; cut a block after what ends it, and fill an empty one."""
        self.visit_children(node, skipped)
        for name in ("body", "orelse", "finalbody") if isinstance(node, BLOCKS) else ():
            block = getattr(node, name, ())
            ends = [index for index, statement in enumerate(block) if isinstance(statement, ENDINGS)]
            if ends and ends[0] + 1 < len(block):
                self.put(node, name, block[: ends[0] + 1])
        if getattr(node, "body", None) == []:
            node.body = [ast.copy_location(ast.Pass(), node)]
        return node

    def visit_If(self, node):
        test, known = self.condition(node.test)
        self.put(node, "test", test)
        if known is not UNKNOWN:
            return self.visit_list(node.body if known else node.orelse)
        self.generic_visit(node, "test")
        if all(isinstance(statement, ast.Pass) for statement in node.body):
            if node.orelse:
                node.test, node.body, node.orelse = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test), node.orelse, []
                self.changed = True
            elif safe_test(node.test, self.is_bound):
                return None
        return node

    def visit_While(self, node):
        test, known = self.condition(node.test)
        self.put(node, "test", test)
        return self.visit_list(node.orelse) if known is False else self.generic_visit(node, "test")

    def visit_For(self, node):
        self.put(node, "iter", self.visit(node.iter))
        source, empty = node.iter, self.evaluate(node.iter) == ()
        if (
            isinstance(source, ast.Call)
            and isinstance(source.func, ast.Name)
            and source.func.id == "range"
            and self.is_builtin(source.func)
        ):
            edges = UNKNOWN if source.keywords or len(source.args) > 2 else self.evaluate.all(source.args)
            empty = edges is not UNKNOWN and all(type(edge) is int for edge in edges) and not range(*edges) and len(edges) > 0
        return self.visit_list(node.orelse) if empty else self.generic_visit(node, "iter")

    def visit_Assert(self, node):
        test, known = self.condition(node.test)
        self.put(node, "test", test)
        return None if known is True else self.generic_visit(node, "test")

    def visit_Assign(self, node):
        target = assigned_name(node)
        self.visit_children(node)
        return None if target and self.drop(target, target.id) and self.effect_free(node.value) else node

    def visit_AnnAssign(self, node):
        target = assigned_name(node)
        if node.value:
            self.put(node, "value", self.visit(node.value))
        return None if target and self.drop(target, target.id) and self.effect_free(node.value) else node

    def visit_FunctionDef(self, node):
        defaults = [default for default in node.args.defaults + node.args.kw_defaults if default]
        if (self.scopes[node].parent, node.name) in self.unused and not node.decorator_list and all(map(self.effect_free, defaults)):
            return None
        return self.generic_visit(node)

    def drop(self, target, name):
        return (self.names.homes.get(target), name) in self.unused


METHODS = {getattr(ast, name[6:]): method for name, method in vars(Folder).items() if name.startswith("visit_") and hasattr(ast, name[6:])}
