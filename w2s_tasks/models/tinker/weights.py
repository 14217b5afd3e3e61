"""Weights of a Tinker service as a standard PEFT folder, which ``hf``, vLLM and `w2s-hf` load.

A service hands out an export: `adapter_config.json` and `adapter_model.safetensors`, in PEFT's names or in its own, where
the unembedding is called so and a prefix may be missing. From SDK 0.38 on the export is made for the download and deleted
after it; before that it is a tar archive, which SkyRL's server has under its own names (docs/services.md).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_tasks.errors import UserError
from w2s_tasks.models.tinker.service import LostError, Service, result_of
from w2s_tasks.user_text import one_line, shown

if TYPE_CHECKING:
    import torch

SCHEME = "tinker://"
PLACE = re.compile(r"tinker://(?P<run>[^/]+)/((?P<kind>weights|sampler_weights|external_weights)/)?(?P<name>[^/]+)")
SAMPLER = "sampler_weights"
EXPORT = "w2s-fetch"
EXPORT_SECONDS = 3600
"""How long an export that was made for a download stays, should deleting it fail."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OWN_NAMES = {"model.unembed_tokens.": "lm_head.", "unembed_tokens.": "lm_head."}
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])\.weight")


@dataclass(frozen=True)
class Place:
    """Where weights are at a service."""

    run: str
    kind: str
    name: str

    @classmethod
    def of(cls, path: str) -> Place:
        """Read an address; SkyRL's server leaves out the kind of weights for sampling.

        Raises:
            UserError: it is none.
        """
        match = PLACE.fullmatch(path)
        if match is None:
            raise UserError(f"{shown(path)} is no address of weights, such as tinker://RUN/weights/NAME.")
        return cls(match["run"], match["kind"] or SAMPLER, match["name"])

    def __str__(self) -> str:
        return f"{SCHEME}{self.run}/{self.kind}/{self.name}"

    @property
    def trained(self) -> str:
        """The training weights of the same name, of which an export can be made."""
        return f"{SCHEME}{self.run}/weights/{self.name}"


def whole(path: str) -> str:
    """An address of weights with their kind, as lists of checkpoints have it; any other as it is."""
    return str(Place.of(path)) if PLACE.fullmatch(path) else path


def fetch(path: str, to: Path | None, service: Service) -> Path:
    """Bring an adapter home.

    Args:
        path: ``tinker://RUN/weights/NAME``; of ``sampler_weights`` the training weights of the same name are taken.
        to: the folder to make, by default RUN-NAME here; one that is there already is left alone.
        service: where the weights are.

    Returns:
        The folder.

    Raises:
        UserError: no such weights, a folder in the way, an export that is not a LoRA adapter.
    """
    place = Place.of(path)
    to = to or Path(re.sub(r"[^\w.-]+", "-", f"{place.run}-{place.name}"))
    if to.exists():
        raise UserError(f"{to} is there already: give another folder (--to), or remove it.")
    with tempfile.TemporaryDirectory() as scratch:
        _download(place, Path(scratch), service)
        part = to.with_name(f"{to.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        as_peft(Path(scratch), part)
        part.rename(to)
    return to


def _download(place: Place, folder: Path, service: Service) -> None:
    rest = service.rest()
    if hasattr(rest, "get_external_weights_urls"):
        with _exported(rest, place, service) as export:
            found = service.within("asking for its files", rest.get_external_weights_urls(export).result)
            for name, url in found.urls.items():
                _save(url, _inside(folder, name))
        return
    tar = folder / "archive.tar"
    _save(_archive_url(rest, place, service), tar)
    try:
        with tarfile.open(tar) as opened:
            for member in opened.getmembers():
                name = Path(member.name).name
                if name in (CONFIG, WEIGHTS) and (file := opened.extractfile(member)):  # what else is in there stays there
                    with file, (folder / name).open("wb") as out:
                        shutil.copyfileobj(file, out)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{place}: the archive can't be read ({one_line(error)}).") from error


def _archive_url(rest: Any, place: Place, service: Service) -> str:
    what = f"asking for {place}"
    try:
        found = service.within(what, lambda: rest.get_checkpoint_archive_url_from_tinker_path(str(place)).result())
    except LostError:  # SkyRL's server has weights for sampling under their name alone
        found = service.within(what, lambda: rest.get_checkpoint_archive_url(place.run, place.name).result())
    return str(found.url)


@contextlib.contextmanager
def _exported(rest: Any, place: Place, service: Service) -> Iterator[str]:
    """The address of an export of these weights; one that is made here is deleted behind."""
    if place.kind == "external_weights":
        yield str(place)
        return
    with service.session() as client:
        trained = service.within(
            f"loading {place.trained}", lambda: result_of(lambda: client.create_training_client_from_state(place.trained))
        )
        export = service.within(
            f"exporting {place.trained}",
            lambda: trained.save_weights_external(EXPORT, ttl_seconds=EXPORT_SECONDS).result().path,
        )
        try:
            yield export
        finally:
            with contextlib.suppress(UserError):
                service.within("deleting the export", lambda: rest.delete_checkpoint_from_tinker_path(export).result())


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"the export names a file outside its folder: {shown(name)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _save(url: str, path: Path) -> None:
    if not url.startswith(("https://", "http://")):
        raise UserError(f"the export names an address that is none: {shown(url)}.")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:  # noqa: S310 - checked above
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise UserError(f"{path.name} can't be downloaded ({one_line(error)}). Run again.") from error


def as_peft(export: Path, folder: Path) -> None:
    """Write an export as a PEFT adapter.

    Args:
        export: holds `adapter_config.json` and `adapter_model.safetensors`, maybe in a folder below.
        folder: to make.

    Raises:
        UserError: no safetensors there, or tensors that are no LoRA factors of a plain linear layer.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    config_file = next(export.rglob(CONFIG), None)
    if config_file is None or not (config_file.parent / WEIGHTS).is_file():
        raise UserError(f"the export has no {CONFIG} with {WEIGHTS} beside it.")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    factors = peft_names(load_file(config_file.parent / WEIGHTS))
    modules = sorted({FACTOR.fullmatch(name)["module"].rsplit(".", 1)[-1] for name in factors})  # type: ignore[index]
    rank = next(tensor.shape[0] for name, tensor in factors.items() if ".lora_A." in name)
    folder.mkdir(parents=True)
    LoraConfig(
        base_model_name_or_path=config.get("base_model_name_or_path"),
        r=int(config.get("r", rank)),
        lora_alpha=config.get("lora_alpha", rank),
        target_modules=modules,
        task_type="CAUSAL_LM",
    ).save_pretrained(str(folder))
    save_file(factors, folder / WEIGHTS)


def peft_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LoRA factors under PEFT's names.

    Raises:
        UserError: other tensors, e.g. those of a mixture's experts, which hold several layers each.
    """
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(PREFIX)
        for own, standard in OWN_NAMES.items():
            if inner.startswith(own):
                inner = standard + inner.removeprefix(own)
                break
        if not FACTOR.fullmatch(inner) or tensor.dim() != 2:
            raise UserError(
                f"the export's tensor {name} of shape {list(tensor.shape)} is no LoRA factor of a linear layer. Adapters of "
                "experts are turned into PEFT's form by tinker-cookbook (weights.build_lora_adapter)."
            )
        named[PREFIX + inner] = tensor.contiguous()
    return named
