"""The mutants of a module: cosmic-ray's operators, where a change can change a number."""

from __future__ import annotations

import ast
import difflib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.plugins import get_operator

Position = tuple[int, int]  # line from 1, column from 0: parso's, and ast's in a line of ASCII

OPERATORS = (
    "NumberReplacer",
    "AddNot",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ZeroIterationForLoop",
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("Invert", "Not", "USub")),
    *(
        f"ReplaceComparisonOperator_{pair}"
        for pair in (
            *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
            *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
        )
    ),
    *(
        f"ReplaceBinaryOperator_{pair}"
        for pair in (
            *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Mul", "Mod_FloorDiv"),
            *("BitAnd_BitOr", "BitOr_BitAnd", "BitXor_BitAnd", "LShift_RShift", "RShift_LShift"),
        )
    ),
)
"""One or two replacements an operator. cosmic-ray has all pairs; a test that tells + from - tells it from << as well."""

AUGMENTED = {"+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=", "&=": "|="}
"""Replacements of our own: cosmic-ray leaves augmented assignments alone."""

ARITHMETIC = ("arith_expr", "term", "power", "factor", "expr", "and_expr", "xor_expr", "shift_expr")
"""parso's names of the expressions that have a binary operator."""

LOGGERS = ("log", "logger", "logging", "warnings")


@dataclass(frozen=True)
class Mutant:
    """One changed module: where, from what to what, and the whole changed source."""

    module: str
    line: int
    name: str
    """`function: line -> changed line`, white space folded: the same wherever the function moves to."""
    source: str
    function: str
    """The outermost function that holds the change, `Class.method` in a class; empty where none does."""


def _span(node: ast.AST) -> tuple[Position, Position]:
    at: Any = node
    return (at.lineno, at.col_offset), (at.end_lineno, at.end_col_offset)


def _says_only(node: ast.AST) -> bool:
    """Raised errors, logging and f-strings: what is told, not what is computed."""
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return True
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in LOGGERS


def left_out(tree: ast.Module) -> list[tuple[Position, Position]]:
    """The parts of a module in which a change changes no number: types, decorators and what is only told."""
    spans = []
    for node in ast.walk(tree):
        if _says_only(node):
            spans.append(_span(node))
        for field in ("annotation", "returns"):
            if isinstance(getattr(node, field, None), ast.AST):
                spans.append(_span(getattr(node, field)))
        spans += [_span(decorator) for decorator in getattr(node, "decorator_list", [])]
    return spans


def _functions(tree: ast.Module) -> dict[int, str]:
    """The outermost function around each line, with its class."""
    found: dict[int, str] = {}

    def visit(node: ast.AST, path: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = range(child.lineno, (child.end_lineno or child.lineno) + 1)
                found.update(dict.fromkeys(lines, ".".join((*path, child.name))))
            elif isinstance(child, ast.ClassDef):
                visit(child, (*path, child.name))

    visit(tree, ())
    return found


def _changed(before: str, after: str) -> str:
    """The lines that differ, as `old -> new`."""
    gone: list[str] = []
    come: list[str] = []
    for line in difflib.ndiff(before.splitlines(), after.splitlines()):
        if line.startswith(("- ", "+ ")):
            (gone if line[0] == "-" else come).append(" ".join(line[2:].split()))
    return f"{' '.join(gone)} -> {' '.join(come)}"


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def _is_meant(operator: str, node: Any) -> bool:
    """Neither the star of `*args` and the slash of a signature, nor the sign of a number, which `NumberReplacer` changes."""
    if "BinaryOperator" in operator:
        return node.parent.type in ARITHMETIC
    return not (operator.endswith("Delete_USub") and node.type == "factor" and node.children[-1].type == "number")


def _edits(code: str) -> Iterator[tuple[Position, str]]:
    """Every change to a piece of code: where it begins, and the whole piece after it."""
    _, *original = _nodes(parso.parse(code, cache=False))
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        for number, node in enumerate(original, 1):
            if not _is_meant(name, node):
                continue
            for index, (start, _) in enumerate(operator.mutation_positions(node)):
                tree = parso.parse(code, cache=False)  # operators change a tree in place
                twin = next(itertools.islice(_nodes(tree), number, None))
                siblings, changed = twin.parent.children, operator.mutate(twin, index)
                if changed is not None:
                    siblings[next(k for k, child in enumerate(siblings) if child is twin)] = changed
                    yield start, tree.get_code()
    for node in original:
        if node.type == "operator" and node.value in AUGMENTED:
            tree = parso.parse(code, cache=False)
            tree.get_leaf_for_position(node.start_pos).value = AUGMENTED[node.value]
            yield node.start_pos, tree.get_code()


def mutants_of(root: Path, module: str) -> list[Mutant]:
    """The mutants of one module, by line.

    Args:
        root: the repository.
        module: the module's path in it.
    """
    code = (root / module).read_text(encoding="utf-8")
    tree = ast.parse(code)
    skipped, functions = left_out(tree), _functions(tree)
    lines = code.splitlines()
    made: dict[str, Mutant] = {}
    done, parts = 0, [part.get_code() for part in parso.parse(code).children]
    for number, part in enumerate(parts):  # a statement of the module at a time, so that little is parsed anew
        for (inside, column), changed in _edits(part):
            line = done + inside
            at = (line, len(lines[line - 1][:column].encode()))  # ast counts bytes
            source = "".join((*parts[:number], changed, *parts[number + 1 :]))
            if any(start <= at < end for start, end in skipped) or source in made:
                continue
            function = functions.get(line, "")
            made[source] = Mutant(module, line, f"{function or 'module'}: {_changed(part, changed)}", source, function)
        done += part.count("\n")
    return sorted(made.values(), key=lambda mutant: (mutant.line, mutant.name))
