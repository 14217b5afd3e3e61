"""Wrong programs that look right: a function with one small change (mutation testing's operators, DeMillo et al. 1978).

`mutants` gives every change; which of them are wrong only running their tests can tell. All are written by `ast.unparse`,
and so is the program that they are made of (`normal`): layout, comments and quotes tell nothing.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

Change = Callable[[Any], None]
"""Changes a node in place; it is given the node's twin in a copy of the program."""
Operator = Callable[[ast.AST], Iterator[Change]]
"""The changes that can be made at a node."""

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq, ast.LtE, ast.GtE),
    ast.NotEq: (ast.Eq, ast.Lt, ast.Gt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.Pow),
    ast.Pow: (ast.Mult,),
    ast.Div: (ast.FloorDiv, ast.Mult),
    ast.FloorDiv: (ast.Div, ast.Mod),
    ast.Mod: (ast.FloorDiv, ast.Mult),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr,),
}
NAMES = dict(
    pair
    for one, other in (
        ("min", "max"),
        ("any", "all"),
        ("ceil", "floor"),
        ("upper", "lower"),
        ("isupper", "islower"),
        ("startswith", "endswith"),
        ("append", "extend"),
        ("find", "rfind"),
        ("keys", "values"),
        ("lstrip", "rstrip"),
    )
    for pair in ((one, other), (other, one))
)
"""Functions and methods that are taken for one another."""


@dataclass(frozen=True)
class Mutant:
    """A changed program, and the operator that changed it."""

    operator: str
    program: str


def normal(source: str) -> str:
    """A program as `ast.unparse` writes it, without the docstrings of its functions.

    Raises:
        SyntaxError: it is no program.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def mutants(program: str, function: str) -> list[Mutant]:
    """All programs that one change of a function makes, each once, by operator and by place.

    Args:
        program: source, as `normal` gives it.
        function: the name of the function, at the top level, in which the changes are.
    """
    tree = ast.parse(program)
    place = [isinstance(s, ast.FunctionDef) and s.name == function for s in tree.body].index(True)
    nodes = list(_nodes(tree.body[place]))
    found: dict[str, Mutant] = {}
    for name, operator in OPERATORS.items():
        for number, node in enumerate(nodes):
            for change in operator(node):
                twin = copy.deepcopy(tree)
                change(list(_nodes(twin.body[place]))[number])
                text = ast.unparse(ast.fix_missing_locations(twin))
                if not any(map(_nobody_writes, ast.walk(twin))):
                    found.setdefault(text, Mutant(name, text))
    found.pop(program, None)
    return list(found.values())


def _nodes(function: ast.stmt) -> Iterator[ast.AST]:
    """The nodes in a function's body: its signature, which the problem states, stays."""
    assert isinstance(function, ast.FunctionDef)  # noqa: S101 - found as one
    yield function
    for statement in function.body:
        yield from ast.walk(statement)


def _nobody_writes(node: ast.AST) -> bool:
    """Whether something stands there for nothing (``-0``, ``x + 0``, ``x += 0``, ``x ** 1``, ``x // 1``, ``xs[::-2]``).

    Such a change gives itself away.
    """
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand, 0)
    if isinstance(node, ast.Slice):
        return isinstance(node.step, ast.UnaryOp) and _is_number(node.step.operand, 2)
    if not isinstance(node, ast.BinOp | ast.AugAssign):
        return False
    right = node.value if isinstance(node, ast.AugAssign) else node.right
    zero = _is_number(right, 0) or (isinstance(node, ast.BinOp) and _is_number(node.left, 0))
    return zero or (isinstance(node.op, ast.Pow | ast.FloorDiv) and _is_number(right, 1))


def _is_number(node: ast.AST, value: int) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == value


def _set(field: str, value: Any, node: Any) -> None:
    setattr(node, field, value)


def _put(field: str, place: int, value: Any, node: Any) -> None:
    getattr(node, field)[place] = value


# --- operators -------------------------------------------------------------------------------------------------------------


def comparison(node: ast.AST) -> Iterator[Change]:
    """``<`` for ``<=``, ``==`` for ``!=``, ``in`` for ``not in``."""
    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in COMPARISONS.get(type(op), ()):
                yield partial(_put, "ops", place, other())


def arithmetic(node: ast.AST) -> Iterator[Change]:
    """``+`` for ``-``, ``/`` for ``//``, also in assignments."""
    if isinstance(node, ast.BinOp | ast.AugAssign):
        for other in ARITHMETIC.get(type(node.op), ()):
            yield partial(_set, "op", other())


def boolean(node: ast.AST) -> Iterator[Change]:
    """``and`` for ``or``; a condition for its negation."""
    if isinstance(node, ast.BoolOp):
        yield partial(_set, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare):
        yield partial(_set, "test", _negated(node.test))


def _negated(test: ast.expr) -> ast.expr:
    inner = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return test.operand if inner else ast.UnaryOp(ast.Not(), test)  # type: ignore[attr-defined]


def constant(node: ast.AST) -> Iterator[Change]:
    """A whole number one more or less; True for False."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield partial(_set, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        for other in (node.value + 1, node.value - 1):
            yield partial(_set, "value", other)


def bound(node: ast.AST) -> Iterator[Change]:
    """The end of a range, or of a slice, or an index, off by one."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        for place, argument in enumerate(node.args[:2]):
            for other in _shifted(argument):
                yield partial(_put, "args", place, other)
    elif isinstance(node, ast.Slice):
        for field in ("lower", "upper"):
            for other in _shifted(getattr(node, field)):
                yield partial(_set, field, other)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name | ast.BinOp):
        for other in _shifted(node.slice):
            yield partial(_set, "slice", other)


def _shifted(value: ast.expr | None) -> Iterator[ast.expr]:
    """A bound one more and one less; what ``x + 1`` and ``x - 1`` are made of loses its one."""
    if value is None or isinstance(value, ast.Constant | ast.UnaryOp):  # `constant` changes those
        return
    if not isinstance(value, ast.BinOp) or not isinstance(value.right, ast.Constant):
        yield from (ast.BinOp(value, op, ast.Constant(1)) for op in (ast.Add(), ast.Sub()))
    elif isinstance(value.op, ast.Add | ast.Sub) and _is_number(value.right, 1):
        yield value.left


def removal(node: ast.AST) -> Iterator[Change]:
    """A statement of a line, or an ``if`` around one, left out; an else-branch left out. No function loses its return."""
    for field in ("body", "orelse"):
        body: Any = getattr(node, field, None)
        for place, statement in enumerate(body if isinstance(body, list) and len(body) > 1 else ()):
            lines = ast.unparse(statement).count("\n") + 1 - isinstance(statement, ast.If)
            if lines == 1 and not isinstance(statement, ast.Import | ast.ImportFrom | ast.Return):
                yield partial(_set, field, body[:place] + body[place + 1 :])
    if isinstance(node, ast.If) and node.orelse:
        yield partial(_set, "orelse", [])


def order(node: ast.AST) -> Iterator[Change]:
    """Two arguments, two branches, or the operands of a difference or quotient swapped."""
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        for place in range(len(node.args) - 1):
            left, right = node.args[place : place + 2]
            yield partial(_set, "args", [*node.args[:place], right, left, *node.args[place + 2 :]])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow):
        yield partial(_swap, "left", "right")
    if isinstance(node, ast.IfExp) or (isinstance(node, ast.If) and node.orelse):
        yield partial(_swap, "body", "orelse")


def _swap(one: str, other: str, node: Any) -> None:
    first, second = getattr(node, one), getattr(node, other)
    setattr(node, one, second)
    setattr(node, other, first)


def name(node: ast.AST) -> Iterator[Change]:
    """``min`` for ``max``, ``append`` for ``extend``."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield partial(_set, "id", NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield partial(_set, "attr", NAMES[node.attr])


def jump(node: ast.AST) -> Iterator[Change]:
    """``break`` for ``continue``."""
    for field in ("body", "orelse"):
        body: Any = getattr(node, field, None)
        for place, statement in enumerate(body if isinstance(body, list) else ()):
            if isinstance(statement, ast.Break | ast.Continue):
                yield partial(_put, field, place, ast.Continue() if isinstance(statement, ast.Break) else ast.Break())


OPERATORS: dict[str, Operator] = {
    f.__name__: f for f in (comparison, arithmetic, boolean, constant, bound, removal, order, name, jump)
}
