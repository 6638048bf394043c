"""Error messages as numbers: the counted file says `ValueError: 17`, and a table at the end of the readable form says what 17 means.

In: the tree of a flat program. Out: the same tree with messages replaced in place, and the table. The same exception of the same type is
raised at the same point; only its text differs, and a program whose handlers could look at that text keeps all of it.
Replaced are messages that only read: f-strings and strings whose parts are names, attributes, elements and calls known to be quiet.
"""

import ast

from trit.bundle.modules import BUILTINS
from trit.bundle.names import analyse, identifiers, walk

PLAIN_ERRORS = (
    "ArithmeticError", "AssertionError", "EOFError", "FileNotFoundError", "FloatingPointError", "IndexError", "KeyError", "LookupError",
    "MemoryError", "NotImplementedError", "OSError", "OverflowError", "RuntimeError", "TypeError", "ValueError", "ZeroDivisionError",
)  # fmt: skip
QUIET_FUNCTIONS = ("len", "int", "float", "str", "repr", "bytes", "list", "tuple", "sorted", "map", "min", "max", "sum", "abs", "type")
QUIET_METHODS = ("join", "hex", "min", "max", "sum", "strip", "split", "splitlines", "flatnonzero", "dtype", "isfinite", "tolist")
INSPECTORS = ("exc_info", "format_exc", "print_exc", "excepthook", "exception", "__exit__", "__cause__", "__context__", "__traceback__")
QUIET_NODES = (
    ast.Constant, ast.JoinedStr, ast.FormattedValue, ast.Name, ast.Attribute, ast.Subscript, ast.Slice, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.IfExp, ast.Tuple, ast.List, ast.Starred, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
    ast.GeneratorExp, ast.ListComp, ast.comprehension,
)  # fmt: skip


def number_messages(tree):
    """[(number, function, kind, message)] of the messages that were replaced by their numbers, in place. Empty where a handler may look."""
    if identifiers(tree) & set(INSPECTORS) or any(map(looks_at_error, nodes := walk(tree))):
        return []
    names, top = analyse(tree), {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    rebound = {node.id for node in names.homes if isinstance(node.ctx, ast.Store)}
    kinds = {name for name in PLAIN_ERRORS if name in BUILTINS and name not in rebound | top.keys()}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and is_plain_error(node, kinds):
            kinds.add(node.name)
    methods = {part.name for node in nodes if isinstance(node, ast.ClassDef) for part in node.body if hasattr(part, "name")}

    def is_quiet(node):
        """True for a node of an expression that reads and computes, and can do nothing else short of failing."""
        if not isinstance(node, ast.Call):
            return isinstance(node, QUIET_NODES)
        if isinstance(node.func, ast.Attribute):
            return node.func.attr in QUIET_METHODS and node.func.attr not in methods and not node.keywords
        known = names.is_global(node.func) and node.func.id in QUIET_FUNCTIONS and node.func.id not in rebound | top.keys()
        return known and not node.keywords

    ensurers = {name: kind for name, node in top.items() if name not in rebound and (kind := ensured_kind(node, kinds, names))}
    table = []
    for function in tree.body:
        for node in walk(function):
            if isinstance(node, ast.Raise):
                call, kind, place = node.exc, getattr(getattr(node.exc, "func", None), "id", None), 0
                found = isinstance(call, ast.Call) and kind in kinds
            else:
                call, kind, place = node, ensurers.get(getattr(getattr(node, "func", None), "id", None)), 1
                found = isinstance(node, ast.Call) and kind
            if not found or not names.is_global(call.func) or call.keywords or len(call.args) != place + 1:
                continue
            if is_text(call.args[place]) and all(map(is_quiet, ast.walk(call.args[place]))):
                table.append((len(table) + 1, getattr(function, "name", ""), kind, ast.unparse(call.args[place])))
                call.args[place] = ast.copy_location(ast.Constant(len(table)), call.args[place])
    return table


def looks_at_error(node):
    """True for a handler that does more with its exception than put it into the message of another, or print it."""
    if not isinstance(node, ast.ExceptHandler) or not node.name:
        return False
    shown = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call):
            shown.update(part for argument in inner.exc.args for part in ast.walk(argument))
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "print":
            shown.update(ast.walk(inner))
    return any(isinstance(inner, ast.Name) and inner.id == node.name and inner not in shown for inner in ast.walk(node))


def is_plain_error(node, kinds):
    """True for `class Name(KnownError)` that adds nothing."""
    bases = [getattr(base, "id", None) for base in node.bases]
    return bases and set(bases) <= kinds and not node.keywords and all(isinstance(part, ast.Pass) for part in node.body)


def ensured_kind(node, kinds, names):
    """The error of a function that is just `if not holds: raise Error(message)` over its two parameters, else None."""
    if not isinstance(node, ast.FunctionDef) or node.decorator_list or len(node.body) != 1 or not isinstance(node.body[0], ast.If):
        return None
    parameters, test = [argument.arg for argument in node.args.args], node.body[0]
    simple = len(parameters) == 2 and ast.unparse(node.args) == ", ".join(parameters)
    raised = test.body[0].exc if len(test.body) == 1 and isinstance(test.body[0], ast.Raise) and not test.orelse else None
    if not simple or not isinstance(raised, ast.Call) or not names.is_global(raised.func) or test.body[0].cause:
        return None
    wanted = f"not {parameters[0]}", f"{raised.func.id}({parameters[1]})"
    return raised.func.id if raised.func.id in kinds and (ast.unparse(test.test), ast.unparse(raised)) == wanted else None


def is_text(node):
    """True for a string or an f-string."""
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, str)


def table_text(table):
    """The table as comment lines for the end of the readable form."""
    lines = [f"# {number:3} {kind} in {function}: {message}\n" for number, function, kind, message in table]
    return "\n\n# The counted file's errors carry these numbers in place of their texts.\n" + "".join(lines) if lines else ""
