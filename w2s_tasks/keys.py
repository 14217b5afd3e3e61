"""What looks like a secret among arguments, and what would run a model's own code: refused wherever arguments come in.

Keys are read from the environment only: arguments end in result files, manifests, reports and shell histories.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from w2s_tasks.errors import UserError

NAME = re.compile(
    r"(?i)(^|[_.\-\s])(api[-_]?key|token|secret|passw(or)?d|passphrase|credential|(access|private|secret)[-_]?key)s?$"
    r"|apikey|^authorization$|^x-api-key$"
)
TOKENIZER = re.compile(
    r"(?i)(^|[_.])(bos|eos|pad|unk|sep|cls|mask|start|end|stop|image|prefix|mm|think_end|think_start)_tokens?$"
)
"""Names that end in `token` and are a tokenizer's."""
VALUE = re.compile(r"\bsk-[\w-]{8,}|\bhf_[A-Za-z0-9]{16,}|(?i:\bbearer\s+\S{8,})")
REMOTE_CODE = ("trust_remote_code", "HF_DATASETS_TRUST_REMOTE_CODE")
OFF = (None, False, 0, "", "false", "False", "no", "0")


def _pairs(value: Any, path: str = "", depth: int = 0) -> Iterable[tuple[str, str, Any]]:
    """Every (path, key, value) below a value; a plain value in a list has the key of the list."""
    if depth > 20:
        return
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple | set):
        items = ((path.rpartition(".")[2], part) for part in value)
    for key, part in items:
        inner = f"{path}.{key}" if isinstance(value, Mapping) else path
        below = inner if path else str(key)
        yield below, str(key), part
        yield from _pairs(part, below, depth + 1)


def secret_in(arguments: Any) -> str | None:
    """The path of the first argument that looks like a secret, by its name or its value; None where none does."""
    if isinstance(arguments, str):
        return "the value" if VALUE.search(arguments) else None
    for path, key, value in _pairs(arguments):
        harmless = value is None or isinstance(value, bool) or TOKENIZER.search(key)
        count = isinstance(value, int) and key.endswith("tokens")
        named = NAME.search(key) and not harmless and not count
        if named or VALUE.search(key) or (isinstance(value, str) and VALUE.search(value)):
            # A key may stand on the wrong side of the '='; it is not repeated.
            return "an argument" if VALUE.search(path) else path
    return None


def remote_code_in(arguments: Any) -> bool:
    """Whether an argument asks that a model's or a data set's own code is run."""
    return any(key in REMOTE_CODE and value not in OFF for _, key, value in _pairs(arguments))


def refuse(arguments: Any, where: str) -> None:
    """Refuse arguments that hold a key or ask for remote code.

    Args:
        arguments: values, nested as they may be.
        where: the option or file that they came with.

    Raises:
        UserError: names the argument, never its value.
    """
    found = secret_in(arguments)
    if found:
        raise UserError(
            f"{where}: '{found}' looks like a secret: keys are read from the environment only (arguments end in result "
            "files). "
            "Export it, e.g. OPENAI_API_KEY or HF_TOKEN, and leave it out here."
        )
    if remote_code_in(arguments):
        raise UserError(f"{where}: trust_remote_code is off in this suite: a model's or data set's own code is never run.")
