"""Run a program that nobody has read, with its tests, where it can do no harm: no network, no writing, no processes.

Each program has a process of its own (`w2s_tasks.sandbox.confined`), which gives up every right before it begins. That needs
no privileges, no namespaces and no container, and works inside one, as root too. It is for Linux on x86_64 or aarch64:
elsewhere, and where the kernel's filter can't be had, nothing is run.

What holds: a program writes to no file, opens no socket, starts no process or thread, signals nobody, and is ended after its
time; memory and output are bounded. With Landlock (Linux 5.13) it reads nothing but Python and the system's libraries;
without it, it can read what you can read, and tell nobody. Of other files it can learn, with Landlock too, that they are
there and what they are (stat, access, readlink: names, sizes, times, owners, where links lead), not what is in them.

What does not: a program that *means* to pass can: it shares an interpreter with its tests, where it could look for the
token, or return an object that equals everything. And a fault of the kernel is a hole in every wall.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from w2s_tasks.errors import UserError

CONFINED = Path(__file__).with_name("confined.py")
ISOLATED = ("-P", "-s", "-S", "-B", "-u", "-X", "utf8")
"""No site-packages, no module of a script's folder, no bytecode, no buffered output; text is UTF-8."""
FIXED = {"PYTHONHASHSEED": "0"}
"""All of the environment: with it, sets have one order, and a program one outcome."""
WAIT = 4
"""Seconds that may pass for each second of processor time: other work on the machine is no fault of the program's."""
READ = 65536
PASSED, TIME = "passed", "time"


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: int = 4
    """Of processor time; `WAIT` times as many may pass."""
    megabytes: int = 1024
    """Of address space."""
    output: int = 4096
    """Bytes of standard output and error that are kept; the rest is read and dropped."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """Whether all tests were run, and passed."""
    ended: str
    """``passed``, the name of what was raised, ``time``, or how the process ended: for a reader. Programs choose names."""
    output: str = ""


def run(program: str, tests: str, limits: Limits = Limits(), function: str = "") -> Outcome:
    """Run a program, then tests on the names that it defines.

    Args:
        program: Python source, run as a module named ``solution``.
        tests: Python source that raises where the program is wrong; both are compiled by themselves.
        limits: what both may use together.
        function: the one under test. The tests mean the program's even where Python has one of that name; else Python's.

    Raises:
        UserError: as `check`.
    """
    check()
    return _run(program, tests, limits, function)


def _run(program: str, tests: str, limits: Limits, function: str = "") -> Outcome:
    token = secrets.token_hex(16)
    answer, theirs = os.pipe()
    command = [sys.executable, *ISOLATED, str(CONFINED), str(theirs), str(limits.seconds), str(limits.megabytes)]
    with open(answer, "rb", buffering=0) as told:  # noqa: PTH123 - a pipe
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                env=FIXED,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        with process:
            try:
                _give(
                    process, json.dumps({"token": token, "program": program, "tests": tests, "function": function}).encode()
                )
                said, output, in_time = _listen(process, told, limits)
            finally:
                process.kill()  # it has no children: it can't have any
            assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
            output = (output + process.stdout.read())[: limits.output]
    passed = said == token.encode()
    ended = PASSED if passed else _ended(said, process.returncode, in_time)
    return Outcome(passed, ended, output.decode(errors="replace"))


def _give(process: subprocess.Popen[bytes], job: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
    with suppress(BrokenPipeError):  # it ended before it began, and says why
        process.stdin.write(job)
        process.stdin.close()


def _listen(process: subprocess.Popen[bytes], told: IO[bytes], limits: Limits) -> tuple[bytes, bytes, bool]:
    """What the child said on its own pipe and what was printed, cut, until one is there or the time is over."""
    deadline = time.monotonic() + WAIT * limits.seconds
    said, output = b"", b""
    with selectors.DefaultSelector() as waiting:
        assert process.stdout is not None  # noqa: S101 - a pipe, as asked for
        waiting.register(told, selectors.EVENT_READ)
        waiting.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                piece = os.read(key.fd, READ)
                if key.fileobj is not told:
                    output = (output + piece)[: limits.output]
                    if not piece:
                        waiting.unregister(key.fileobj)
                elif piece and len(said) < READ:
                    said += piece
                else:
                    return said, output, True
    return said, output, False


def _ended(said: bytes, code: int, in_time: bool) -> str:
    if not in_time or code == -signal.SIGXCPU:
        return TIME
    if said:
        return said.decode(errors="replace")[:80]
    return f"ended by signal {-code}" if code < 0 else f"left with exit code {code}"


@functools.cache
def check() -> None:
    """Try the sandbox on two programs of our own, once a process.

    Raises:
        UserError: a right program does not pass here, or one that opens a socket or a file to write does.
    """
    right = _run("def one(): return 1", "assert one() == 1", Limits())
    if not right.passed:
        last = (right.output.strip().splitlines() or [right.ended])[-1]
        raise UserError(
            f"programs can't be run safely here ({last}): it needs Linux on x86_64 or aarch64, with seccomp filters. "
            "Run this in a container, or on another machine."
        )
    for harm in ("import socket; socket.socket()", "import os; os.open('/tmp/w2s', os.O_WRONLY | os.O_CREAT)"):
        if _run(harm, "", Limits()).passed:
            raise UserError(f"programs can't be run safely here: the sandbox lets pass `{harm}`.")
