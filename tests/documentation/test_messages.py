"""Messages of errors and warnings are short."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import invtorch

LIMIT = 160  # characters, values left out
# functions that build a message, or raise one that they are given
BUILDERS = {"_not_an_input", "_not_finite", "_message", "_not_repeatable"}
RAISERS = {"_assert", "warn", "add_note"}
# what may be longer, with the reason
LONGER = {
    "assert_rebuilt": "a report of the guard: error, tolerance and three remedies",
}


def static(node: ast.AST) -> str:
    """Return the text of a message without its values."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(static, node.values))
    if isinstance(node, ast.BinOp):
        return static(node.left) + static(node.right)
    return ""


def raised(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what a statement or a call raises, warns or asserts, if it does."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        yield from node.exc.args[:1]
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in RAISERS:
            yield from node.args[:2]


def messages() -> Iterator[tuple[str, str, str]]:
    """Yield file, function and static text of every message of the library."""
    root = Path(invtorch.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            found = [m for node in ast.walk(function) for m in raised(node)]
            if function.name in BUILDERS:
                returned = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
                found += [part for node in returned for part in ast.walk(node)]
            for text in filter(None, map(static, found)):
                yield path.name, function.name, text


def test_messages_are_short() -> None:
    found = list(messages())
    longer = {(path, name) for path, name, text in found if len(text) > LIMIT}
    assert len(found) > 60
    assert {name for _, name in longer} == set(LONGER), longer


def test_troubleshooting_quotes_messages() -> None:
    root = Path(invtorch.__file__).parent
    text = " ".join(
        static(node)
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.JoinedStr | ast.Constant)
    )
    page = (root.parent / "docs/troubleshooting.md").read_text()
    tables = page.split("## It works, but")[0]
    rows = re.findall(r"^\| ([^|]+) \|", tables, re.MULTILINE)
    quoted = [
        row for row in rows if not row.startswith(("the message contains", "---"))
    ]
    assert len(quoted) > 20
    assert not [row for row in quoted if row.lower() not in text.lower()]
