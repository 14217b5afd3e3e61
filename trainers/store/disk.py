"""A disk that is full, read-only or over its quota, and places where no file can be, whichever library met them."""

from __future__ import annotations

import errno

from w2s_tasks.errors import causes

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EROFS, errno.EACCES, errno.EPERM}
NO_PLACE = {
    errno.ENAMETOOLONG: "a name or path is too long (255 bytes a name, 4,095 in all); choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file, where a folder has to be",
    errno.EISDIR: "a folder stands where a file has to be",
    errno.EEXIST: "a file stands there",
    errno.ELOOP: "a link leads back to itself",
}
SIGNS = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122", "File too large", "os error 27")
TORCH = ("PytorchStreamWriter failed writing", "unexpected pos")
"""What torch.save says when a write comes back short; it keeps no error number."""


def problem(error: BaseException) -> str | None:
    """What to tell a user about an error of the disk; None for any other error."""
    for one in causes(error):
        number = one.errno if isinstance(one, OSError) else None
        where = f" ({one.filename})" if isinstance(one, OSError) and one.filename else ""
        if number in NO_ROOM or any(sign in str(one) for sign in (*SIGNS, *TORCH)):
            return (
                f"a file could not be written{where}: the disk is full, or a quota or size limit was met. What was finished "
                "is kept; make room, or choose another --runs-dir, and run the same command again."
            )
        if number in NOT_ALLOWED and where:
            return f"no permission to write{where}, or a read-only disk. Choose another place, e.g. with --runs-dir."
        if number in NO_PLACE and where:
            return f"{NO_PLACE[number]}{where}."
    return None
