"""What `w2s eval` checks before lm_eval sees it: keys, remote code, unknown names; and whose answers a cache holds."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from w2s_tasks import MODELS
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.keys import refuse
from w2s_tasks.paths import check_place
from w2s_tasks.plugin.eval_values import MOST, check_values
from w2s_tasks.user_text import one_line, read_yaml, shown

log = logging.getLogger(__name__)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Turn what lm_eval, its models and its tasks raise into one sentence; under ``w2s --verbose`` the log says where.

    Raises:
        UserError: with the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every model and task of lm_eval's has its own ways
        log.info("what lm_eval raised", exc_info=True)
        raise UserError(f"w2s eval: lm_eval ended with {type(error).__name__}: {one_line(error)}") from error


def check_arguments(model: str, args: Mapping[str, Any], where: str = "model_args") -> None:
    """Refuse an argument that a model of ours does not take, and a missing one.

    Args:
        model: its name in lm_eval.
        args: what it is to be made with.
        where: the file or option that they came with.

    Raises:
        UserError: with the nearest one that it does.
    """
    if model not in MODELS:
        return
    from lm_eval.api.registry import get_model

    parameters = {k: p for k, p in inspect.signature(get_model(model).__init__).parameters.items() if k != "self"}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    known = [name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD]
    for name in args:
        if name not in known and not open_ended:
            raise UserError(
                f"{where}: {model} takes no argument '{name}'.{nearest(str(name), known)} Known: {', '.join(known)}."
            )
    hints = get_type_hints(get_model(model).__init__)
    for name, value in args.items():
        if name in known and not (parameters[name].default is value or value == ""):
            _check_type(name, value, hints.get(name, Any), where)
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and args.get(name) in (None, ""):
            raise UserError(f"{where}: {model} needs the argument {name}, e.g. --model_args {name}=...")


def _check_type(name: str, value: Any, hint: Any, where: str) -> None:
    """Refuse a value of another type than a model's parameter has, and a number that counts nothing."""
    try:
        TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True)).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {name}: {error.errors()[0]['msg']}, got {shown(value)}.") from error
    if isinstance(value, int | float) and not 0 <= value <= MOST:
        raise UserError(f"{where}: {name}: a number from 0 to {MOST:,} is expected, got {shown(value)}.")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """lm_eval's own reading of a command line; what argparse refuses ends with its message and exit code 2."""
    from lm_eval._cli import HarnessCLI

    before, sys.argv = sys.argv, ["lm_eval", "run", *arguments]
    try:
        return HarnessCLI().parse_args()
    except ValueError as error:
        raise UserError(f"w2s eval: {one_line(error)}") from error
    finally:
        sys.argv = before


def _config(path: Path) -> dict[str, Any]:
    from lm_eval.config.evaluate_config import DICT_KEYS, EvaluatorConfig

    data = read_yaml(path)
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: an evaluation is a mapping of keys (as the flags of w2s eval), found {found}.")
    known = [f.name for f in dataclasses.fields(EvaluatorConfig)]
    for key, value in data.items():
        if key not in known:
            raise UserError(f"{path}: unknown key {shown(key)}.{nearest(str(key), known)} Known: {', '.join(known)}.")
        if key in DICT_KEYS and not isinstance(value, dict | str | None):
            raise UserError(f"{path}: {key}: a mapping or k=v,k=v is expected, got {shown(value)}.")
    return data


def mapping(given: Any, where: str) -> dict[str, Any]:
    """Arguments as lm_eval reads them: a mapping, or k=v,k=v, or JSON."""
    from lm_eval.utils import simple_parse_args_string

    if isinstance(given, str) and given and "=" not in given and not given.lstrip().startswith("{"):
        raise UserError(f"{where}: write k=v,k=v or a mapping, got {shown(given)}.")
    try:
        return dict(simple_parse_args_string(given) if isinstance(given, str) else given or {})
    except ValueError as error:
        raise UserError(f"{where}: write k=v,k=v or a mapping ({one_line(error)}).") from error


def _cache_of(path: str, model: str, args: Mapping[str, Any]) -> str:
    """A cache's path with the model's identity in it: lm_eval's cache does not know whose answers it holds."""
    from w2s_tasks.models.ref import ModelRef

    identity = ModelRef(model, args).identity()
    return f"{path}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def checked(arguments: Sequence[str]) -> list[str]:
    """The arguments for `lm_eval run`, once nothing in them or in their config file is to be refused.

    ``--use_cache PATH`` becomes a path of the model's own.

    Raises:
        UserError: a key, remote code, a config that is no mapping or has an unknown key, a model that does not exist.
    """
    from lm_eval.api.registry import model_registry
    from lm_eval.config.evaluate_config import DICT_KEYS

    from w2s_tasks.plugin.saving import check_output

    parsed = vars(_parsed(arguments))
    path = parsed.get("config")
    values = _config(Path(path)) if path else {}
    values |= {k: v for k, v in parsed.items() if v or v == 0}
    where = f"{path}" if path else "w2s eval"
    check_values(values, where)
    given = {key: mapping(value, f"{where}: {key}") for key, value in values.items() if key in DICT_KEYS}
    for key, value in given.items():
        refuse(value, f"{where}: {key}")
    args = given.get("model_args", {})
    refuse({"trust_remote_code": values.get("trust_remote_code")}, where)
    if not values.get("tasks"):
        raise UserError(f"{where}: no tasks; name some, e.g. --tasks w2s_sst2 (`w2s tasks` lists ours).")
    model = str(values.get("model") or "hf")
    if model not in model_registry:
        raise UserError(f"{where}: no model '{model}' in lm_eval.{nearest(model, list(model_registry))}")
    check_arguments(model, args, where)
    if (values.get("log_samples") or values.get("predict_only")) and not values.get("output_path"):
        raise UserError(f"{where}: --log_samples and --predict_only need --output_path, the folder to write to.")
    if values.get("output_path"):
        check_output(values["output_path"], f"{where}: output_path")
    cache = values.get("use_cache")
    if cache:
        check_place(Path(cache), f"{where}: use_cache", behind=len("-0123456789ab_rank0.db-journal"))
    return [*arguments, "--use_cache", _cache_of(cache, model, args)] if cache else list(arguments)
