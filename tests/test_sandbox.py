"""The sandbox: programs that try to get out, to hold on, or to pass without passing."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from w2s_tasks import sandbox
from w2s_tasks.errors import UserError
from w2s_tasks.sandbox import Limits, confined, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")

QUICK = Limits(seconds=1, megabytes=256)
LANDLOCK = sys.platform == "linux" and ctypes.CDLL(None).syscall(444, None, 0, 1) > 0
needs_landlock = pytest.mark.skipif(not LANDLOCK, reason="reading is bounded where the kernel has Landlock")

ADD = "def add(a, b):\n    return a + b\n"
ASKS = "assert add(1, 2) == 3"


def test_what_passes_its_tests_passes_and_nothing_else():
    assert run(ADD, ASKS).passed
    assert run(ADD.replace("+", "-"), ASKS).ended == "AssertionError"
    assert run("def add(a, b:", ASKS).ended == "SyntaxError"
    assert run("", ASKS).ended == "NameError"
    assert run(ADD, "assert add(").ended == "SyntaxError"


def test_the_standard_library_is_there_and_nothing_of_ours():
    library = (
        "import collections, dataclasses, datetime, decimal, hashlib, heapq, itertools, json, math, random, re, sqlite3"
    )
    assert run(library, "assert hashlib.md5(b'').hexdigest()[:4] == 'd41d'; assert math.gcd(4, 6) == 2").passed
    for module in ("w2s_tasks", "numpy", "lm_eval"):
        assert run(f"import {module}", "").ended == "ModuleNotFoundError"
    assert run("import os, sys", "assert not os.environ and os.getcwd() == '/' and 'w2s' not in str(sys.path)").passed
    assert run("from dataclasses import dataclass\n@dataclass\nclass A:\n    a: 'int' = 1", "assert A().a == 1").passed


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "import builtins; builtins.exec = builtins.compile = lambda *a, **k: None",
        "import builtins; builtins.print = lambda *a: None; builtins.AssertionError = ValueError",
        "import sys; sys.exit = lambda *a: None; sys.excepthook = lambda *a: None",
        "def check(*a): pass\nadd = lambda a, b: 3\nassert_ = None\nabs = lambda x: 0",
        "import builtins; builtins.abs = lambda x: 0\ndef add(a, b): return 7",
        "def add(a, b):\n    import sys\n    sys.exit(0)",
        "def add(a, b):\n    import os\n    os._exit(0)",
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'passed')\n    except OSError: pass",
        "import os; os.closerange(0, 64)",
        "import atexit, os; atexit.register(os._exit, 0)",
        "if True:\n    pass\n'''",
        "import signal; signal.signal(signal.SIGALRM, lambda *a: 1/0); signal.alarm(1)",
    ],
)
def test_a_program_does_not_pass_by_leaving_or_by_patching(program: str):
    tests = "def check(f):\n    assert abs(f(1, 2) - 3) < 0.1\n    assert abs(f(1, 1) - 2) < 0.1\ncheck(add)"
    assert not run(program, tests, QUICK).passed


def test_the_function_under_test_may_be_named_like_one_of_pythons():
    program, tests = "def sum(a, b): return a * b", "assert sum(3, 4) == 12"
    assert run(program, tests, function="sum").passed
    assert run(program, tests, QUICK).ended == "TypeError"
    assert not run(f"{program}\nabs = lambda x: 0", "assert abs(sum(1, 1) - 2) == 0", QUICK, "sum").passed
    assert run("", "assert sum([1, 2]) == 3", function="sum").passed  # nothing hides it


def test_what_tests_print_or_return_is_no_verdict():
    assert not run("print('passed')\nraise ValueError", "").passed
    assert not run("class passed(Exception): pass\nraise passed", "").passed  # what was raised is told by its name


@pytest.mark.parametrize(
    "harm",
    [
        "open({place!r}, 'w')",
        "open({place!r}, 'a')",
        "os.open({place!r}, os.O_RDONLY | os.O_CREAT)",
        "os.open({there!r}, os.O_RDWR)",
        "os.open({there!r}, os.O_RDONLY | os.O_TRUNC)",
        "os.remove({there!r})",
        "os.rename({there!r}, {place!r})",
        "os.link({there!r}, {place!r})",
        "os.symlink({there!r}, {place!r})",
        "os.mkdir({place!r})",
        "os.chmod({there!r}, 0)",
        "os.chown({there!r}, 1, 1)",
        "os.utime({there!r}, (0, 0))",
        "os.truncate({there!r}, 0)",
        "os.setxattr({there!r}, 'user.a', b'1')",
        "os.memfd_create('a')",
    ],
)
def test_no_file_is_written(tmp_path: Path, harm: str):
    there, place = tmp_path / "there", tmp_path / "place"
    there.write_text("kept")
    before = there.stat()
    assert not run("import os\n" + harm.format(there=str(there), place=str(place)), "", QUICK).passed
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    assert (there.read_text(), there.stat().st_mtime, there.stat().st_mode) == ("kept", before.st_mtime, before.st_mode)


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "~", ".", str(Path(__file__).parent)])  # noqa: S108
def test_no_folder_takes_a_file(folder: str):
    place = Path(folder).expanduser().absolute() / "w2s-sandbox-test"
    assert not run(f"open({str(place)!r}, 'w').write('x')", "").passed
    assert not place.exists()


@pytest.mark.parametrize(
    "harm",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.socketpair()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1')",
        "import os; os.fork()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.system('true') and 1/0",
        "import subprocess; subprocess.run(['true'], check=True)",
        "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)",
        "import threading; threading.Thread(target=print).start()",
        "import multiprocessing as m; m.Process(target=print).start()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
        "import os; os.killpg(0, 9)",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import resource as r; r.prlimit(__import__('os').getppid(), r.RLIMIT_CPU, (1, 1))",
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, 1)",
        "import ctypes; assert ctypes.CDLL(None).ptrace(16, __import__('os').getppid(), 0, 0) == 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(425, 1, 0) >= 0",  # io_uring
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 4096, 0o1600) >= 0",
    ],
)
def test_no_socket_no_process_no_signal_no_right(harm: str):
    outcome = run(harm, "", QUICK)
    assert not outcome.passed
    assert outcome.ended != sandbox.TIME


@needs_landlock
def test_nothing_of_the_user_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "secret").write_text("s")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    places = [tmp_path / "secret", Path(__file__), "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/etc/passwd"]
    for place in places:
        assert run(f"open({str(place)!r}).read()", "").ended == "PermissionError"
    assert run(f"import os; os.listdir({str(Path.home())!r})", "").ended == "PermissionError"


def test_the_environment_is_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert run("import os", "assert not os.environ and os.getenv('OPENAI_API_KEY') is None").passed


def test_time_memory_and_output_have_an_end():
    assert run("while True: pass", "", QUICK).ended == sandbox.TIME
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\n"
    assert not run(f"{deaf}while True: pass", "", QUICK).passed
    loud = run("while True: print('x' * 1000)", "", QUICK)
    assert loud.ended == sandbox.TIME
    assert len(loud.output) == QUICK.output
    assert run("x = ' ' * (1 << 29)", "", QUICK).ended == "MemoryError"
    assert run("def f(): f()\nf()", "").ended == "RecursionError"


def test_who_sleeps_is_woken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "WAIT", 1)
    assert run("import time; time.sleep(60)", "", QUICK).ended == sandbox.TIME


def test_endless_words_on_the_verdicts_own_pipe_are_no_verdict():
    write = "        try: os.write(fd, b'y' * 60000)\n        except OSError: pass"
    flood = f"import os\nwhile True:\n    for fd in range(3, 12):\n{write}"
    assert not run(flood, "", QUICK).passed


def test_nothing_is_left_behind():
    def children() -> set[str]:
        return set(
            subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout.split()
        )

    before, open_files = len(children()), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    run("import time; time.sleep(0)", "")
    run("import os; os._exit(3)", "")
    assert len(children()) <= before
    assert len(os.listdir("/proc/self/fd")) == open_files  # noqa: PTH208


def test_what_is_printed_is_kept_and_surrogates_do_no_harm():
    assert run("print('hello', '\\udc80'.encode(errors='replace'))", "").output.startswith("hello")
    assert run("x = '\udc80'", "").ended == "UnicodeEncodeError"
    assert run("import sys; sys.stdout.buffer.write(bytes(range(256)))", "").passed


def test_sets_have_one_order():
    program = "order = list({'a', 'b', 'c', 'd', 'e', 'f'})\nprint(order)"
    assert len({run(program, "").output for _ in range(3)}) == 1


def test_a_program_dies_with_who_started_it(tmp_path: Path):
    copy = tmp_path / "confined.py"  # a command line of its own
    copy.write_text(sandbox.CONFINED.read_text())
    source = (
        "import os, pathlib, threading\nfrom w2s_tasks import sandbox\nsandbox.check()\n"
        f"sandbox.CONFINED = pathlib.Path({str(copy)!r})\n"
        "threading.Timer(0.5, os._exit, [0]).start()\nsandbox.run('import time; time.sleep(77)', '')"
    )
    subprocess.run([sys.executable, "-c", source], check=False)
    deadline = time.monotonic() + 10
    while str(copy) in (found := _command_lines()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert str(copy) not in found


def _command_lines() -> str:
    return subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True).stdout


def test_where_no_walls_can_be_had_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    copy = tmp_path / "confined.py"
    copy.write_text(sandbox.CONFINED.read_text().replace("x86_64", "vax").replace("aarch64", "pdp11"))
    monkeypatch.setattr(sandbox, "CONFINED", copy)
    sandbox.check.cache_clear()
    try:
        with pytest.raises(UserError, match=r"can't be run safely here.*KeyError"):
            run(ADD, ASKS)
        copy.write_text(
            "import sys, json, os\njob = json.load(sys.stdin)\nos.write(int(sys.argv[1]), job['token'].encode())"
        )
        with pytest.raises(UserError, match="lets pass `import socket"):
            run(ADD, ASKS)
    finally:
        sandbox.check.cache_clear()


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_calls_have_the_kernels_numbers(machine: str, header: str):
    path = Path(header)
    if not path.is_file():
        pytest.skip(f"needs the kernel's headers: {header}")
    found = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())
    numbers = {name: int(number) for name, number in found} | {"newfstatat": 79 if machine == "aarch64" else 262}
    known = {name: numbers.get(name) for name in confined.CALLS[machine][1]}
    alias = {"lseek": 62, "mmap": 222, "fcntl": 25, "fstat": 80} if machine == "aarch64" else {}
    assert {**known, **alias} == confined.CALLS[machine][1]
