"""Source text of a flat program: docstrings and annotations stripped, then shortened with python-minifier.

In: the module tree of a build. Out: readable text, and candidates of shortened text from which the caller takes the best compressed.
"""

import ast

import python_minifier

from trit.bundle.modules import BUILTINS
from trit.bundle.names import analyse, arguments

KEPT_ANNOTATIONS = ("ClassVar", "InitVar", "KW_ONLY", "constexpr")


def strip(tree):
    """Remove docstrings, other bare constants, and annotations; fields of data classes keep the shortest annotation that works."""
    return ast.fix_missing_locations(_Strip().visit(tree))


class _Strip(ast.NodeTransformer):
    def __init__(self):
        self.in_class = False

    def generic_visit(self, node):
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]
        return node

    def visit_Expr(self, node):
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_FunctionDef(self, node):
        outer, self.in_class = self.in_class, False
        if not any(ast.unparse(decorator).startswith("triton.") for decorator in node.decorator_list):
            node.returns = None
            for argument in arguments(node):
                argument.annotation = None
        self.generic_visit(node)
        self.in_class = outer
        return node

    def visit_ClassDef(self, node):
        outer, self.in_class = self.in_class, bool(node.bases or node.decorator_list)
        self.generic_visit(node)
        self.in_class = outer
        return node

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if not self.in_class:
            return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value else None
        if not any(word in ast.unparse(node.annotation) for word in KEPT_ANNOTATIONS):
            node.annotation = ast.copy_location(ast.Name("int", ast.Load()), node)
        return node


def readable(tree, entry):
    """The text of a build as a person reads it, with the call of the entry at the end."""
    blocks, previous = [], None
    for node in tree.body:
        wide = isinstance(node, (ast.FunctionDef, ast.ClassDef)) or isinstance(previous, (ast.FunctionDef, ast.ClassDef))
        blocks.append(("\n\n" if wide and previous is not None else "") + ast.unparse(node))
        previous = node
    return "\n".join(blocks) + f'\n\n\nif __name__ == "__main__":\n    {entry}()\n'


def minified(text):
    """Shortened texts from several settings, without repeats. All run the same program."""
    found, source = {}, shorten_parameters(text)
    for hoist in (False, True):
        for preserved in ([], sorted(BUILTINS)):
            found.setdefault(ascii_form(shorten(source, hoist, preserved)))
    return list(found)


def ascii_form(text):
    """The same program without other than ASCII characters, which mixing codes in seven bits; as it is where they stand in f-strings."""
    tree = ast.parse(text)
    joined = [part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)]
    if any(isinstance(part, ast.Constant) and isinstance(part.value, str) and not part.value.isascii() for part in joined):
        return text
    plain = "".join(character if character.isascii() else f"\\U{ord(character):08x}" for character in text).replace("\\U0000", "\\u")
    try:
        return plain if ast.dump(ast.parse(plain)) == ast.dump(tree) else text
    except (SyntaxError, ValueError):
        return text


def minify_once(text):
    """The setting that is best for most programs, for a quick estimate."""
    return shorten(shorten_parameters(text), False, [])


def shorten(source, hoist, preserved):
    """python-minifier's text of a source: `hoist` gives repeated literals names, `preserved` names are not given new ones."""
    return python_minifier.minify(
        source,
        remove_annotations=False,
        remove_literal_statements=False,
        remove_dead_branches=False,
        remove_asserts=False,
        remove_debug=False,
        constant_folding=False,
        hoist_literals=hoist,
        rename_locals=True,
        rename_globals=True,
        preserve_globals=preserved,
    )


def shorten_parameters(text):
    """Mark parameters that no call passes by keyword as positional-only, so that the minifier renames them (it removes the mark again).

    Of a function that is only called by name, its own calls decide; of any other, all keywords in the file, and `**` calls bar it.
    """
    tree = ast.parse(text)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    words = {keyword.arg for call in calls for keyword in call.keywords}
    if "kwargs" in words:  # a library may spread such a dictionary over a function of ours
        words |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    methods = {child for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
    known = called_by_name(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node in methods or node.decorator_list or node.args.posonlyargs:
            continue
        if node in known:
            used = {keyword.arg for call in known[node] for keyword in call.keywords}
        elif None in words:
            continue
        else:
            used = words
        count = 0
        while count < len(node.args.args) and node.args.args[count].arg not in used:
            count += 1
        node.args.posonlyargs, node.args.args = node.args.args[:count], node.args.args[count:]
    return ast.unparse(ast.fix_missing_locations(tree))


def called_by_name(tree):
    """{top-level function: its calls} for functions that are only ever called by name and without `**`."""
    names = analyse(tree)
    loads, calls = {}, {}
    for node in names.homes:
        if isinstance(node.ctx, ast.Load) and names.is_global(node):
            loads[node.id] = loads.get(node.id, 0) + 1
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and names.is_global(node.func) and all(keyword.arg for keyword in node.keywords):
            calls.setdefault(node.func.id, []).append(node)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node: calls.get(node.name, []) for node in functions if loads.get(node.name, 0) == len(calls.get(node.name, []))}
