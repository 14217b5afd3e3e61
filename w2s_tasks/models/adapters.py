"""PEFT adapters on a loaded base: which are taken, how one is put on, and how the base comes back.

Taken are LoRA adapters with the options of `TAKEN`; a test holds each to PEFT's own forward pass. Everything else that PEFT
can do is refused by name: virtual tokens look at a whole row, which a pack is not; other kinds and options would load, too,
but nobody has shown that all of such an adapter is taken up. An adapter is always put on the base as it was saved, whose
embeddings are never resized: one base with one adapter has one score, however it was loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import loading
from w2s_tasks.models.ref import check_folder, resolve
from w2s_tasks.user_text import read_text, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Of the names that PEFT gives an adapter's tensors."""
TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM")
"""What an adapter may have been trained for; another task's brings a head that a language model does not have."""
INITS = ("gaussian", "orthogonal", "eva")
"""How an adapter began is no matter where the base stayed as it was."""
BASE_CHANGING_INITS = ("pissa", "olora")
"""These take the adapter's first weights out of the base's, which PEFT does again when it loads one."""
TAKEN: dict[str, tuple[Any, ...] | None] = {
    "r": None,
    "lora_alpha": None,
    "lora_dropout": None,
    "target_modules": None,
    "exclude_modules": None,
    "target_parameters": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layers_to_transform": None,
    "layers_pattern": None,
    "rank_pattern": None,
    "alpha_pattern": None,
    "fan_in_fan_out": None,
    "use_rslora": None,
    "use_dora": None,
    "lora_bias": None,
    "ensure_weight_tying": None,
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": (None, True, False, *INITS, *BASE_CHANGING_INITS),
    # What is no matter to the numbers, or only together with an option that is not taken.
    "peft_type": ("LORA",),
    "task_type": TASKS,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": None,
    "peft_version": None,
    "revision": None,
    "eva_config": None,
    "loftq_config": None,
    "megatron_core": None,
    "qalora_group_size": None,
}
"""The options of an adapter's configuration that are taken, with their values where not every one is."""


def adapter_folder(name: str) -> Path:
    """The folder of an adapter; of one on the hub nothing but safetensors and text is fetched, never a pickle.

    Raises:
        UserError: no adapter, one with pickled weights only, or one of a kind or with an option that is not in `TAKEN`.
    """
    found = Path(resolve(name, key="peft"))
    if not found.is_dir():
        from huggingface_hub import snapshot_download

        with loading(name):
            found = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
        check_folder(found, CONFIG)
    if not (found / WEIGHTS).is_file():
        raise UserError(f"the adapter {found} holds no {WEIGHTS}: the name that PEFT gives an adapter's weights.")
    _check_options(found, json.loads(read_text(found / CONFIG)))
    return found


def _check_options(folder: Path, config: Mapping[str, Any]) -> None:
    for option, value in {"peft_type": None, **config}.items():  # the kind first: its options say less
        values = TAKEN.get(option, (None, False, {}))  # off is off, also for what a later version of PEFT brings
        if values is not None and value not in values:
            raise UserError(
                f"{folder / CONFIG}: {option} = {shown(value)} is not taken: nobody has shown that such an adapter is "
                "scored as PEFT scores it. Merge it into its base (PEFT's merge_and_unload) and give the merged model as "
                "pretrained=, or use --model hf."
            )


class Base:
    """A base model as it was before an adapter changed it: its modules, and the weights that are written over.

    PEFT's `unload` leaves the trained copies of `modules_to_save` in place, and what an adapter brings for weights of the
    base itself (biases, embeddings, the rest of PiSSA).
    """

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        """Remember the base; weights that the adapter in `folder` writes over get a copy to be written to."""
        self.model = model
        written = self._written(folder)
        self._modules = [(parent, name, child) for parent in model.modules() for name, child in parent._modules.items()]
        self._weights = [(weight, weight.data) for weight in written]
        for weight, data in self._weights:
            weight.data = data.clone()

    def _written(self, folder: Path) -> list[torch.nn.Parameter]:
        """Parameters of the base that loading this adapter may change.

        Raises:
            UserError: the adapter brings them in another size.
        """
        brought = {name.removeprefix(PREFIX).replace(".base_layer.", "."): shape for name, shape in _shapes(folder).items()}
        weights = {n: w for n, w in self.model.named_parameters(remove_duplicate=False) if n in brought}
        for name, weight in weights.items():
            if brought[name] != list(weight.shape):
                raise UserError(
                    f"the adapter {folder} does not fit the base: it brings {name} as {brought[name]}, the base has "
                    f"{list(weight.shape)}. Where tokens were added before it was trained, merge it into that base "
                    "(PEFT's merge_and_unload), save both with the tokenizer, and give that folder as pretrained=."
                )
        changed = json.loads(read_text(folder / CONFIG)).get("init_lora_weights") in BASE_CHANGING_INITS
        return list(self.model.parameters()) if changed else list(weights.values())

    def forget_unchanged(self) -> None:
        """Free the copies that were not needed."""
        changed = []
        for weight, data in self._weights:
            if torch.equal(weight.data, data):
                weight.data = data
            else:
                changed.append((weight, data))
        self._weights = changed

    def restore(self) -> torch.nn.Module:
        """The base, bit for bit."""
        for parent, name, child in self._modules:
            parent._modules[name] = child
        for weight, data in self._weights:
            weight.data = data
        vars(self.model).pop("peft_config", None)
        return self.model


def _shapes(folder: Path) -> dict[str, list[int]]:
    """The names and shapes of the tensors in an adapter's file."""
    with safe_open(str(folder / WEIGHTS), framework="pt") as f:
        return {name: f.get_slice(name).get_shape() for name in f.keys()}  # noqa: SIM118 - not a dict


def put_on(base: Base, folder: Path, name: str) -> Any:
    """The base with an adapter on it, every tensor of which was taken up.

    Args:
        base: the base; it is whole again after an error.
        folder: the adapter's, from `adapter_folder`.
        name: the base's, for messages.

    Raises:
        UserError: an adapter that can't be loaded, or was made for another base: such a one loads in part, and PEFT only
            warns.
    """
    from peft import PeftConfig, get_peft_model

    try:
        with loading(f"{name} with {folder}"):
            config = PeftConfig.from_pretrained(str(folder))
            made_for, config.base_model_name_or_path = config.base_model_name_or_path, None  # PEFT warns of another path
            config.inference_mode = True
            model: Any = get_peft_model(base.model, config)
            renamed = getattr(base.model, "_checkpoint_conversion_mapping", {})  # as PeftModel.from_pretrained has it
            loaded = model.load_adapter(str(folder), "default", key_mapping=renamed)
            differing = {*loaded.missing_keys, *loaded.unexpected_keys, *_of_base_missing(model, folder)}
        if differing:
            raise UserError(
                f"the adapter {folder} does not fit the base {name}: {len(differing)} of its tensors differ, e.g. "
                f"{min(differing)}. It was made for {made_for!r}."
            )
        base.forget_unchanged()
    except BaseException:
        base.restore()
        raise
    return model


def _of_base_missing(model: Any, folder: Path) -> set[str]:
    """What an adapter should bring for the base itself and does not, as biases of `bias: all`: PEFT does not miss that."""
    from peft import get_peft_model_state_dict

    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name for name in places if "lora_" not in name} - _shapes(folder).keys()
