"""The child of the sandbox: walls itself in, runs a program and its tests, and says so once the tests have passed.

Started by `w2s_tasks.sandbox.run` as a script, in isolated mode and with the standard library alone. The kernel holds the
walls, whatever the program does inside this interpreter:

* **seccomp**: of the kernel's some 350 calls a program may make those of `CALLS`; every other one is "not implemented". It
  has no socket, no process or thread beside it, no signal to anyone, nothing to mount; and it opens files to read alone.
* **Landlock**, where the kernel has it (Linux 5.13): of the files it can read those of Python and the system's libraries.
* limits of processor time, memory and open files, and the end of this process with that of its parent.

Sources: seccomp(2), landlock(7), prctl(2) and setrlimit(2) of the Linux manual; the calls' numbers are those of the kernel's
``asm/unistd_64.h`` (x86_64) and ``asm-generic/unistd.h`` (aarch64).
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Iterator

X86_64 = """
    read:0 write:1 close:3 stat:4 fstat:5 lstat:6 poll:7 lseek:8 mmap:9 mprotect:10 munmap:11 brk:12
    rt_sigaction:13 rt_sigprocmask:14 rt_sigreturn:15 pread64:17 readv:19 writev:20 access:21 select:23
    sched_yield:24 mremap:25 madvise:28 nanosleep:35 getitimer:36 alarm:37 setitimer:38 getpid:39 exit:60
    uname:63 fcntl:72 getcwd:79 readlink:89 gettimeofday:96 getrusage:98 sysinfo:99 times:100 getuid:102
    getgid:104 geteuid:107 getegid:108 getppid:110 sigaltstack:131 gettid:186 time:201 futex:202
    sched_getaffinity:204 getdents64:217 restart_syscall:219 clock_gettime:228 clock_getres:229
    clock_nanosleep:230 exit_group:231 openat:257 newfstatat:262 readlinkat:267 faccessat:269 pselect6:270
    ppoll:271 getrandom:318 statx:332 faccessat2:439
"""
AARCH64 = """
    getcwd:17 fcntl:25 faccessat:48 openat:56 close:57 getdents64:61 lseek:62 read:63 write:64 readv:65
    writev:66 pread64:67 pselect6:72 ppoll:73 readlinkat:78 newfstatat:79 fstat:80 exit:93 exit_group:94
    futex:98 nanosleep:101 getitimer:102 setitimer:103 clock_gettime:113 clock_getres:114 clock_nanosleep:115
    sched_getaffinity:123 sched_yield:124 restart_syscall:128 sigaltstack:132 rt_sigaction:134
    rt_sigprocmask:135 rt_sigreturn:139 times:153 uname:160 getrusage:165 gettimeofday:169 getpid:172
    getppid:173 getuid:174 geteuid:175 getgid:176 getegid:177 gettid:178 sysinfo:179 brk:214 munmap:215
    mremap:216 mmap:222 mprotect:226 madvise:233 getrandom:278 statx:291 faccessat2:439
"""
CALLS: dict[str, tuple[int, dict[str, int]]] = {
    machine: (audit, {name: int(number) for name, _, number in (call.partition(":") for call in calls.split())})
    for machine, audit, calls in (("x86_64", 0xC000003E, X86_64), ("aarch64", 0xC00000B7, AARCH64))
}
"""By machine: what the kernel's audit calls it, and the calls that a program may make, by their names."""

# Of `linux/filter.h`: load a word of the call, compare, return.
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
NUMBER, MACHINE, SECOND, THIRD = 0, 4, 24, 32  # places in `struct seccomp_data`: the call, and its arguments' lower halves
ALLOW, KILL, REFUSE, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050000 | 13, 0x00050000 | 38  # EACCES, ENOSYS
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
HARMLESS_FCNTL = 3
"""F_DUPFD, F_GETFD, F_SETFD and F_GETFL; F_SETOWN and F_SETSIG would send signals."""

PDEATHSIG, NO_NEW_PRIVS, SECCOMP, FILTER, SIGKILL = 1, 38, 22, 2, 9  # of `linux/prctl.h` and `linux/seccomp.h`
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls, the same on every machine
ALL_RIGHTS = (1 << 13) - 1
"""Every access to files that Landlock's first version knows."""
READ_RIGHTS = 0b1101
"""Execute (libraries), read files and folders."""

libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *values: object) -> None:
    if libc.prctl(option, *values, *[ctypes.c_ulong(0)] * (4 - len(values))):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def instructions(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """The filter of a machine's calls: code, jumps where true and where false, operand."""
    audit, numbers = CALLS[machine]
    yield LOAD, 0, 0, MACHINE
    yield EQUAL, 1, 0, audit
    yield RETURN, 0, 0, KILL
    yield LOAD, 0, 0, NUMBER
    for name, number in numbers.items():
        if name == "openat":
            yield EQUAL, 0, 4, number
            yield LOAD, 0, 0, THIRD
            yield ANY_BIT, 0, 1, TO_WRITE
            yield RETURN, 0, 0, REFUSE
            yield RETURN, 0, 0, ALLOW
        elif name == "fcntl":
            yield EQUAL, 0, 4, number
            yield LOAD, 0, 0, SECOND
            yield GREATER, 0, 1, HARMLESS_FCNTL
            yield RETURN, 0, 0, REFUSE
            yield RETURN, 0, 0, ALLOW
        else:
            yield EQUAL, 0, 1, number
            yield RETURN, 0, 0, ALLOW
    yield RETURN, 0, 0, UNKNOWN


def filter_calls(machine: str) -> None:
    """Leave this process the calls of `CALLS`, for good."""
    found = [struct.pack("HBBI", *one) for one in instructions(machine)]
    code = ctypes.create_string_buffer(b"".join(found))
    program = struct.pack("HxxxxxxP", len(found), ctypes.addressof(code))
    _prctl(SECCOMP, ctypes.c_ulong(FILTER), program)


def hide_files() -> None:
    """Leave this process the files of Python and of the system's libraries, where the kernel has Landlock."""
    handled = ctypes.create_string_buffer(struct.pack("Q", ALL_RIGHTS))
    rules = libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(8), ctypes.c_uint(0))
    if rules < 0:
        return
    for path in {sys.base_prefix, sys.base_exec_prefix, "/usr", "/lib", "/lib64"}:
        if os.path.isdir(path):  # noqa: PTH112 - pathlib takes half as long as all the rest
            folder = os.open(path, os.O_PATH | os.O_DIRECTORY)
            rule = struct.pack("=Qi", READ_RIGHTS, folder)
            if libc.syscall(ADD_RULE, rules, 1, rule, ctypes.c_uint(0)):
                raise OSError(ctypes.get_errno(), f"landlock: {path}")
            os.close(folder)
    if libc.syscall(RESTRICT_SELF, rules, ctypes.c_uint(0)):
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(rules)


def limit(seconds: int, megabytes: int) -> None:
    """Limit processor time, memory and open files; no core and no file is written."""
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most + 1 if what == resource.RLIMIT_CPU else most))


def wall_in(seconds: int, megabytes: int) -> None:
    """Put up all walls.

    Raises:
        OSError, KeyError: one of them can't be had on this machine.
    """
    _prctl(NO_NEW_PRIVS, ctypes.c_ulong(1))
    _prctl(PDEATHSIG, ctypes.c_ulong(SIGKILL))
    limit(seconds, megabytes)
    hide_files()
    filter_calls(os.uname().machine)


def attempt(program: str, tests: str, function: str) -> None:
    """Run a program as a module of its own, then the tests on its names.

    What the tests mean by ``abs`` or ``print`` is Python's own, whatever the program has made of it, but for the function
    under test, which may be named like one of Python's. All that is used after the program has run is taken before.

    Raises:
        BaseException: whatever one of the two raises.
    """
    run, known = exec, dict(__builtins__.__dict__)
    kept = known.keys() - {function}
    checking = compile(tests, "<tests>", "exec", dont_inherit=True)
    solution = types.ModuleType("solution")
    names, sys.modules["solution"] = solution.__dict__, solution
    run(compile(program, "<program>", "exec", dont_inherit=True), names)
    run(checking, {**{k: v for k, v in names.items() if k not in kept}, "__builtins__": known, "__name__": "tests"})


def main() -> None:
    """Take the job from standard input, and answer on the pipe that the first argument numbers."""
    answer, seconds, megabytes = map(int, sys.argv[1:])
    job = json.load(sys.stdin)
    write, leave, token = os.write, os._exit, job["token"].encode()
    os.environ.clear()
    wall_in(seconds, megabytes)
    try:
        attempt(job["program"], job["tests"], job["function"])
    except BaseException as error:  # noqa: BLE001 - a program raises anything, also on its way out
        token = type(error).__name__.encode(errors="replace")[:80]
    write(answer, token)
    leave(0)


if __name__ == "__main__":
    main()
