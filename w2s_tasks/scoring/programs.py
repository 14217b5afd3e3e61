"""Scores of programs that a model wrote: run against their tests in the sandbox, never without lm_eval's flag for it.

``acc`` is the share that pass (pass@1 of one greedy sample), read leniently: the code in a ``` block, a whole function, a
continuation without what follows it. ``acc_strict`` takes prompt and reply as they stand, as the papers do. ``unparsed`` is
the share in which not even a piece compiles; nothing of those is run.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from w2s_tasks import sandbox
from w2s_tasks.rows.programs import humaneval_tests, mbpp_function, mbpp_tests
from w2s_tasks.scoring.generated import NO_GROUP, UNPARSED, Answered, NoReply

Doc = dict[str, Any]

FAILS, PASSES = 0, 1
"""The choices of an item: every program should pass."""
BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
METRICS = ("acc", "acc_strict", "unparsed", "unparsed_strict")  # each with its _stderr


def compiles(program: str) -> bool:
    """Whether a text is a Python program; it is not run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(program, "<reply>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _defines(function: str, text: str) -> bool:
    return re.search(rf"^(async )?def {re.escape(function)}\b", text, re.MULTILINE) is not None


def _code(reply: str, function: str | None) -> tuple[str, bool]:
    """The part of a reply that is code, and whether a block holds it."""
    blocks = [textwrap.dedent(block) for block in BLOCK.findall(reply)]
    if not blocks:
        return reply, False
    return next((b for b in blocks if function and _defines(function, b)), blocks[0]), True


def _readings(prompt: str, code: str, in_block: bool, function: str | None) -> Iterator[str]:
    """What a piece of code can mean behind a prompt, the likeliest first."""
    if function is None:
        yield code
    elif _defines(function, textwrap.dedent(code)):
        yield f"{prompt}\n\n\n{textwrap.dedent(code)}"  # the prompt's imports and helpers stay; its own function is replaced
    elif in_block:
        yield f"{prompt}\n{textwrap.indent(code, '    ')}"
    else:
        yield prompt + code
        yield f"{prompt}\n{code}"
        yield f"{prompt}\n    {code.lstrip()}"


def lenient(prompt: str, reply: str, function: str | None) -> str | None:
    """The program that a reply means; None where no beginning of it compiles.

    Args:
        prompt: signature and docstring, which the reply goes on or tells again.
        reply: the model's text.
        function: the one that was asked for; None where the reply is the whole program.
    """
    code, in_block = _code(reply, function)
    lines = code.splitlines(keepends=True)
    for n in range(len(lines), 0, -1):
        beginning = "".join(lines[:n])
        if not beginning.strip():
            break
        for program in _readings(prompt, beginning, in_block, function):
            if compiles(program):
                return program
    return None


def _chosen(program: str | None, tests: str, tested: str) -> int:
    """Whether a program passes; unparsed where there is none."""
    if program is None:
        return UNPARSED
    return PASSES if sandbox.run(program, tests, function=tested).passed else FAILS


def _scored(prompt: str, reply: str, function: str | None, tests: str, tested: str) -> dict[str, Any]:
    if isinstance(reply, NoReply):
        return {}
    whole = prompt + reply
    strict, meant = (whole if reply.strip() and compiles(whole) else None), lenient(prompt, reply, function)
    found = _chosen(meant, tests, tested)
    item: Answered = (PASSES, found, found if strict == meant else _chosen(strict, tests, tested), NO_GROUP)
    return {key: item for name in METRICS for key in (name, f"{name}_stderr")}


def humaneval(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """``process_results`` of HumanEval: the prompt goes on with the reply."""
    return _scored(doc["prompt"].strip(), results[0], doc["entry_point"], humaneval_tests(doc), doc["entry_point"])


def mbpp(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """``process_results`` of MBPP: the reply is the program."""
    try:
        tested = mbpp_function(doc)
    except SyntaxError:  # the data's own program is none
        tested = ""
    return _scored("", results[0], None, mbpp_tests(doc), tested)
