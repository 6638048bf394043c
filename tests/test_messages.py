"""Error messages as numbers: same exception, same place, another text; whatever could tell the difference keeps its messages."""

import ast

import pytest

from trit.bundle.messages import number_messages, table_text

DEFINED = "class Odd(ValueError):\n    pass\ndef ensure(holds, message):\n    if not holds:\n        raise Odd(message)\n"


def numbered(text):
    """(text with numbers, table)."""
    tree = ast.parse(text)
    table = number_messages(tree)
    return ast.unparse(ast.fix_missing_locations(tree)), table


@pytest.mark.parametrize(
    "statement, result",
    [
        ("raise ValueError(f'{a!r} of {len(a)}, {a.shape[0] + 1:>4}')", "raise ValueError(1)"),
        ("raise ValueError('plain') from None", "raise ValueError(1) from None"),
        ("raise Odd(f'{a}')", "raise Odd(1)"),
        ("ensure(a > 1, f'{a} and {max(a)}')", "ensure(a > 1, 1)"),
        ("raise RuntimeError(f\"{', '.join(sorted(a))}\")", "raise RuntimeError(1)"),
    ],
)
def test_messages_become_numbers(statement, result):
    text, table = numbered(f"{DEFINED}def main(a):\n    {statement}\n")
    assert result in text and [row[0] for row in table] == [1] and table[0][1] == "main"
    assert f"  1 {table[0][2]} in main: " in table_text(table)


HOSTILE = {
    "status of the process": "raise SystemExit('text')",
    "value of a generator": "raise StopIteration('text')",
    "several parts": "raise UnicodeDecodeError('utf-8', b'', 0, 1, 'text')",
    "no text": "raise ValueError(a)",
    "computed text": "raise ValueError('a' + a)",
    "keyword": "raise ImportError('text', name='x')",
    "message with an effect": "raise ValueError(f'{a.pop()}')",
    "message that calls": "raise ValueError(f'{main(a)}')",
    "message that assigns": "raise ValueError(f'{(b := a)}')",
    "message that waits": "raise ValueError(f'{(yield a)}')",
    "method of the program": "raise ValueError(f'{a.join(a)}')\nclass C:\n    def join(self, a):\n        a.clear()",
    "function hides a builtin": "raise ValueError(f'{len(a)}')\ndef len(a):\n    a.clear()",
    "local hides a builtin": "len = a.pop\n    raise ValueError(f'{len(a)}')",
    "local hides an error": "ValueError = a\n    raise ValueError('text')",
    "error with a body": "raise Rich('text')\nclass Rich(ValueError):\n    def __init__(self, text):\n        print(text)",
    "error of two bases": "raise Mixed('text')\nclass Other:\n    pass\nclass Mixed(ValueError, Other):\n    pass",
    "other ensurer": "check(a, 'text')\ndef check(holds, message):\n    if not holds:\n        print(message)\n        raise ValueError(message)",
    "turned ensurer": "check(a, 'text')\ndef check(message, holds):\n    if not message:\n        raise ValueError(message)",
    "text is read": "raise ValueError('text')\ndef f():\n    try:\n        main(1)\n    except ValueError as e:\n        return str(e)",
    "text is compared": "raise ValueError('text')\ndef f():\n    try:\n        main(1)\n    except ValueError as e:\n        if e.args == ('text',):\n            raise",
    "text is logged": "raise ValueError('text')\ndef f(log):\n    try:\n        main(1)\n    except ValueError as e:\n        log.line(f'{e}')",
    "looked up elsewhere": "raise ValueError('text')\ndef f():\n    return sys.exc_info()",
    "context manager": "raise ValueError('text')\nclass C:\n    def __exit__(self, kind, value, trace):\n        return 'x' in str(value)",
    "future": "raise ValueError('text')\ndef f(future):\n    return str(future.exception())",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_messages_stay(name):
    text = f"{DEFINED}def main(a):\n    {HOSTILE[name]}\n"
    new, table = numbered(text)
    assert not table and new == ast.unparse(ast.parse(text)) and not table_text(table)


def test_an_error_inside_the_message_of_another_is_no_reader():
    text = "def main(a):\n    try:\n        f(a)\n    except ValueError as e:\n        print(f'{e}')\n        raise KeyError(f'{a}: {e}') from None\n"
    assert "raise KeyError(1) from None" in numbered(text)[0]
