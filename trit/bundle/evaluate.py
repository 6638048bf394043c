"""The value of an expression, where it is certain before the program runs.

In: an expression node and what is known of its names. Out: a plain value, or UNKNOWN. Nothing here guesses: an expression whose
result could depend on the machine (float powers go through libm) or that would raise is UNKNOWN and stays as written.
"""

import ast
import math
import operator

UNKNOWN = object()
SCALARS = (int, float, str, bytes, bool, type(None))
LARGEST_INTEGER = 1 << 64
LONGEST = 4096
BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_, ast.BitOr: operator.or_, ast.BitXor: operator.xor,
}  # fmt: skip
COMPARE = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
UNARY = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert, ast.Not: operator.not_}


class Evaluator:
    """Evaluates expressions. `value_of_name(node)` gives the known value of a name; `is_builtin(node, name)` says that a builtin is meant."""

    def __init__(self, value_of_name=lambda node: UNKNOWN, is_builtin=lambda node: False):
        self.value_of_name, self.is_builtin = value_of_name, is_builtin

    def __call__(self, node):
        method = getattr(self, type(node).__name__, None)
        if method is None:
            return UNKNOWN
        try:
            value = method(node)
        except (ArithmeticError, TypeError, ValueError, LookupError):
            return UNKNOWN
        return value if value is UNKNOWN or plain(value) else UNKNOWN

    def all(self, nodes):
        """Values of several nodes, or UNKNOWN if one of them is."""
        values = tuple(self(node) for node in nodes)
        return UNKNOWN if any(value is UNKNOWN for value in values) else values

    def Constant(self, node):
        return node.value

    def Name(self, node):
        return self.value_of_name(node) if isinstance(node.ctx, ast.Load) else UNKNOWN

    def Tuple(self, node):
        return self.all(node.elts) if isinstance(node.ctx, ast.Load) else UNKNOWN

    def UnaryOp(self, node):
        value = self(node.operand)
        if value is UNKNOWN or isinstance(value, bool) and isinstance(node.op, ast.Invert):
            return UNKNOWN
        return UNARY[type(node.op)](value)

    def BinOp(self, node):
        left, right = self(node.left), self(node.right)
        if left is UNKNOWN or right is UNKNOWN or type(node.op) not in BINARY:
            return UNKNOWN
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if not numbers and not isinstance(node.op, (ast.Add, ast.Mult)):
            return UNKNOWN  # string formatting with %, which may call anything
        if isinstance(node.op, ast.Pow) and not (
            isinstance(left, int) and isinstance(right, int) and 0 <= right <= 64 and abs(left) <= LARGEST_INTEGER
        ):
            return UNKNOWN
        if isinstance(node.op, ast.LShift) and not 0 <= right <= 64:
            return UNKNOWN
        if isinstance(node.op, ast.Mult) and not numbers:
            sequence, count = (right, left) if isinstance(left, int) else (left, right)
            if len(sequence) * count > LONGEST:
                return UNKNOWN
        return BINARY[type(node.op)](left, right)

    def Compare(self, node):
        if len(node.ops) > 1:
            parts = [node.left, *node.comparators]
            pairs = [self(ast.Compare(a, [op], [b])) for a, op, b in zip(parts, node.ops, parts[1:], strict=False)]
            return UNKNOWN if UNKNOWN in pairs else all(pairs)
        operation, right_node = node.ops[0], node.comparators[0]
        left = self(node.left)
        if isinstance(operation, (ast.In, ast.NotIn)) and isinstance(right_node, (ast.List, ast.Set, ast.Dict)):
            elements = right_node.keys if isinstance(right_node, ast.Dict) else right_node.elts
            if isinstance(right_node, ast.Dict) and self.all(right_node.values) is UNKNOWN or None in elements:
                return UNKNOWN
            right = self.all(elements)
            hash(left)
        else:
            right = self(right_node)
        if left is UNKNOWN or right is UNKNOWN:
            return UNKNOWN
        if isinstance(operation, (ast.Is, ast.IsNot)) and not any(value is one for value in (left, right) for one in (None, True, False)):
            return UNKNOWN  # identity of equal numbers and strings is up to the interpreter
        return COMPARE[type(operation)](left, right)

    def BoolOp(self, node):
        deciding = isinstance(node.op, ast.Or)
        value = UNKNOWN
        for part in node.values:
            value = self(part)
            if value is UNKNOWN or bool(value) is deciding:
                return value
        return value

    def IfExp(self, node):
        test = self(node.test)
        return UNKNOWN if test is UNKNOWN else self(node.body if test else node.orelse)

    def Subscript(self, node):
        container = self(node.value)
        if not isinstance(node.ctx, ast.Load) or container is UNKNOWN:
            return UNKNOWN
        if isinstance(node.slice, ast.Slice):
            edges = [None if edge is None else self(edge) for edge in (node.slice.lower, node.slice.upper, node.slice.step)]
            return UNKNOWN if any(edge is UNKNOWN for edge in edges) else container[slice(*edges)]
        index = self(node.slice)
        return UNKNOWN if index is UNKNOWN else container[index]

    def Call(self, node):
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            return UNKNOWN
        values = self.all(node.args)
        if values is UNKNOWN:
            return UNKNOWN
        if isinstance(node.func, ast.Attribute):
            text = self(node.func.value)
            if isinstance(text, str) and node.func.attr in ("startswith", "endswith"):
                return getattr(text, node.func.attr)(*values)
            return UNKNOWN
        if not (isinstance(node.func, ast.Name) and self.is_builtin(node.func)):
            return UNKNOWN
        name = node.func.id
        if name == "len" and len(values) == 1:
            return len(values[0])
        if name in ("min", "max") and values:
            pool = values if len(values) > 1 else values[0]
            if isinstance(pool, tuple) and all(type(value) is type(pool[0]) and type(value) in (int, float) for value in pool):
                return min(pool) if name == "min" else max(pool)
        number = len(values) == 1 and isinstance(values[0], (int, float))
        if name in ("int", "float", "bool", "abs") and (number or name == "bool" and len(values) == 1):
            return {"int": int, "float": float, "bool": bool, "abs": abs}[name](values[0])
        return UNKNOWN


def plain(value):
    """True for values that have an exact literal of sensible length."""
    if isinstance(value, tuple):
        return len(value) <= LONGEST and all(plain(part) for part in value)
    if type(value) is float:
        return not math.isnan(value)
    if type(value) is int:
        return abs(value) <= LARGEST_INTEGER
    return type(value) in SCALARS and (not isinstance(value, (str, bytes)) or len(value) <= LONGEST)


def assigned_name(statement):
    """The target of an assignment to one plain name, else None."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        return statement.targets[0] if isinstance(statement.targets[0], ast.Name) else None
    return statement.target if isinstance(statement, ast.AnnAssign) and statement.value and isinstance(statement.target, ast.Name) else None


def effect_free(node, is_bound):
    """True for expressions whose evaluation does nothing and cannot fail; `is_bound(name)` says that a name surely has a value."""
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(effect_free(part, is_bound) for part in node.elts)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, (int, float))
    if isinstance(node, ast.Lambda):
        return all(effect_free(default, is_bound) for default in node.args.defaults + node.args.kw_defaults if default)
    return isinstance(node, ast.Constant) or isinstance(node, ast.Name) and is_bound(node)


def safe_test(node, is_bound):
    """True when asking for the truth of an expression does nothing and cannot fail; a bare name could be a tensor."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return safe_test(node.operand, is_bound)
    if isinstance(node, ast.BoolOp):
        return all(safe_test(part, is_bound) for part in node.values)
    if isinstance(node, ast.Compare):
        identity = all(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops)
        return identity and all(effect_free(part, is_bound) for part in [node.left, *node.comparators])
    return isinstance(node, ast.Constant)
