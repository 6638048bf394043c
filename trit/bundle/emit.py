"""Source text of a flat program: docstrings and annotations stripped, then shortened with python-minifier.

In: the module tree of a build. Out: readable text, and the shortened text of the same program.
"""

import ast

import python_minifier

from trit.bundle.modules import BUILTINS
from trit.bundle.names import analyse, arguments, walk

KEPT_ANNOTATIONS = ("ClassVar", "InitVar", "KW_ONLY", "constexpr")
BLOCKS = ("body", "orelse", "finalbody")


def strip_symbol(symbol):
    """Remove docstrings, other bare constants, and annotations of a symbol, so that annotations neither count as uses nor reach the file;
    fields of data classes keep the shortest annotation that works. True where the symbol is, or holds, a class."""
    found = []
    (symbol.node,) = stripped([symbol.node], False, found)
    return bool(found)


def stripped(statements, in_class, classes):
    """The statements of a block without what need not be shipped; classes among them are added to `classes`."""
    kept = []
    for node in statements:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.AnnAssign) and not in_class:
            if node.value:
                kept.append(ast.copy_location(ast.Assign([node.target], node.value), node))
            continue
        inside = in_class
        if isinstance(node, ast.AnnAssign) and not any(word in ast.unparse(node.annotation) for word in KEPT_ANNOTATIONS):
            node.annotation = ast.copy_location(ast.Name("int", ast.Load()), node)
        elif isinstance(node, ast.FunctionDef):
            inside = False
            if not any(ast.unparse(decorator).startswith("triton.") for decorator in node.decorator_list):
                node.returns = None
                for argument in arguments(node):
                    argument.annotation = None
        elif isinstance(node, ast.ClassDef):
            inside = bool(node.bases or node.decorator_list)
            classes.append(node)
        for part in (node, *getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            for name in BLOCKS:
                if getattr(part, name, None):
                    setattr(part, name, stripped(getattr(part, name), inside, classes))
            if getattr(part, "body", None) == []:
                part.body = [ast.Pass()]
        kept.append(node)
    return kept


def readable(tree, entry):
    """The text of a build as a person reads it, with the call of the entry at the end."""
    blocks, previous = [], None
    for node in tree.body:
        wide = isinstance(node, (ast.FunctionDef, ast.ClassDef)) or isinstance(previous, (ast.FunctionDef, ast.ClassDef))
        blocks.append(("\n\n" if wide and previous is not None else "") + ast.unparse(node))
        previous = node
    return "\n".join(blocks) + f'\n\n\nif __name__ == "__main__":\n    {entry}()\n'


def minified(tree):
    """The shortened text of a program; its tree is used up.

    Literals that repeat stay where they are and builtins keep their names: giving them names of one letter shortens the text, and lengthens
    what is left after packing, by 0.5 to 1.5 % in every preset (`python -m benchmarks.counted_files --forms`).
    """
    return ascii_form(shorten(shorten_parameters(tree), preserved=sorted(BUILTINS)))


def ascii_form(text):
    """The same program without other than ASCII characters, which mixing codes in seven bits; as it is where they stand in f-strings."""
    if text.isascii():
        return text
    plain = "".join(character if character.isascii() else f"\\U{ord(character):08x}" for character in text).replace("\\U0000", "\\u")
    try:
        old, new, lines = ast.parse(text).body, ast.parse(plain).body, text.split("\n")
    except (SyntaxError, ValueError):
        return text
    # The rest of the file is the same text, and so the same program.
    other = [index for index, node in enumerate(old) if not "".join(lines[node.lineno - 1 : node.end_lineno]).isascii()]
    joined = [part for index in other for node in walk(old[index]) if isinstance(node, ast.JoinedStr) for part in walk(node)]
    if any(isinstance(part, ast.Constant) and isinstance(part.value, str) and not part.value.isascii() for part in joined):
        return text
    return plain if len(old) == len(new) and all(ast.dump(old[index]) == ast.dump(new[index]) for index in other) else text


def shorten(source, hoist=False, preserved=()):
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
        preserve_globals=list(preserved),
    )


def shorten_parameters(tree):
    """The text of a program in which parameters that no call passes by keyword are positional-only, so that the minifier renames them (it
    removes the mark again). The tree is changed.

    Of a function that is only called by name, its own calls decide; of any other, all keywords in the file, and `**` calls bar it.
    """
    nodes = walk(tree)
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    words = {keyword.arg for call in calls for keyword in call.keywords}
    if "kwargs" in words:  # a library may spread such a dictionary over a function of ours
        words |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    methods = {child for node in nodes if isinstance(node, ast.ClassDef) for child in node.body}
    known = called_by_name(tree, calls)
    for node in nodes:
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
    return ast.unparse(tree)


def called_by_name(tree, calls):
    """{top-level function: its calls} for functions that are only ever called by name and without `**`; `calls` are all of the tree."""
    names = analyse(tree)
    loads, found = {}, {}
    for node in names.homes:
        if isinstance(node.ctx, ast.Load) and names.is_global(node):
            loads[node.id] = loads.get(node.id, 0) + 1
    for node in calls:
        if names.is_global(node.func) and all(keyword.arg for keyword in node.keywords):
            found.setdefault(node.func.id, []).append(node)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {node: found.get(node.name, []) for node in functions if loads.get(node.name, 0) == len(found.get(node.name, []))}
