"""A frozen transformers model that gives one vector a text, alone or under a linear head (a probe).

The vector is the hidden state of the text's last token, or the mean over its tokens, behind one of the layers. Which tokens
are the text's own the attention mask tells, never a token's id: a text may hold the padding token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.modeling_outputs import SequenceClassifierOutput

from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import NO_CODE, base_config, base_tokenizer, check_tokenizer, loading
from w2s_tasks.models.packed_hf import is_encoder, usable_device
from w2s_tasks.models.reading import Reader, Tokens
from w2s_tasks.models.ref import MARKERS, check_folder, resolve
from w2s_tasks.models.texts import Pooling
from w2s_tasks.packing.budget import find_budget
from w2s_tasks.packing.linear import quicken
from w2s_tasks.packing.masks import inner
from w2s_tasks.user_text import read_text

Array = np.ndarray[Any, np.dtype[np.float32]]
WEIGHTS = "head.safetensors"


def check_layer(config: Any, layer: int, name: str) -> None:
    """Refuse, by a model's configuration, a layer that it does not have, and a model without one stack of layers.

    Raises:
        UserError: says which there are.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{name} is an encoder-decoder: it has no one hidden state of a text. Use a decoder or an encoder.")
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if layers is not None and not -layers - 1 <= layer <= layers:
        raise UserError(
            f"layer: {name} has no layer {layer}: 0 is its embeddings, 1 to {layers} are behind its layers, -1 is the last."
        )


class Pooled(torch.nn.Module):
    """The body of a transformers model: token columns to one vector a row."""

    def __init__(self, model: torch.nn.Module, name: str, layer: int = -1, pooling: Pooling | None = None) -> None:
        """Nothing is copied; the model's own settings stay as they are.

        Args:
            model: a transformers model, with a head, an adapter, or bare.
            name: for messages.
            layer: 0 for the embeddings, k for behind layer k; -1 for the last, with the model's final norm.
            pooling: None for last, and for the mean where every token sees the whole text.

        Raises:
            UserError: no such layer.
        """
        super().__init__()
        self.body = inner(model).base_model
        self.config = copy.deepcopy(self.body.config)
        check_layer(self.config, layer, name)
        self.layer = layer
        self._sees_all = is_encoder(self.config)
        self.pooling: Pooling = pooling or ("mean" if self._sees_all else "last")

    @property
    def base_model(self) -> torch.nn.Module:
        """The body."""
        body: torch.nn.Module = self.body
        return body

    def forward(self, **columns: torch.Tensor) -> torch.Tensor:
        """Padded rows [rows, tokens] to float32 vectors [rows, width]."""
        last = self.layer == -1
        more = {} if self._sees_all else {"use_cache": False}
        out = self.body(**columns, output_hidden_states=not last, **more)
        states = out[0] if last else out.hidden_states[self.layer]
        mask = columns["attention_mask"]
        if self.pooling == "mean":
            own = mask[..., None].float()
            return (states.float() * own).sum(1) / own.sum(1)
        places = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        return states[torch.arange(len(states), device=states.device), places].float()


class StateReader(Reader):
    """A `Reader` whose scores of a row are its vector."""

    def scores(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Vectors, [rows, width]."""
        result: torch.Tensor = self.run(batch)
        return result

    def difference(self, one: torch.Tensor, other: torch.Tensor) -> float:
        """As a share of the largest entry: states are of any size."""
        return super().difference(one, other) / max(float(other.abs().max()), 1e-9)


@torch.no_grad()
def body_budget(model: Pooled | Probed) -> int:
    """Padded tokens of a forward pass."""
    device = next(model.parameters()).device
    return find_budget(model.base_model, device).in_batch


@torch.no_grad()
def pooled_states(reader: StateReader, rows: Sequence[Tokens]) -> Array:
    """The vectors of encoded texts, [rows, width], run by length within the device's token budget."""
    budget = body_budget(reader.model)
    found: Array = np.empty((len(rows), reader.model.config.get_text_config().hidden_size), dtype=np.float32)
    with tqdm(total=len(rows), desc="reading", unit="row", leave=False, disable=None) as bar:
        for batch in reader.batches(rows, budget) if rows else ():
            found[batch] = reader.scores(reader.pad_together([rows[i] for i in batch])).cpu().numpy()
            bar.update(len(batch))
    return found


class Head(torch.nn.Module):
    """A linear layer on standardised vectors; it begins as 0, as the probes of openai/weak-to-strong do."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = torch.nn.Linear(width, outputs)
        for weight in self.linear.parameters():
            torch.nn.init.zeros_(weight)

    def standardise(self, states: torch.Tensor) -> None:
        """Take mean and standard deviation of every entry of the vectors [rows, width]; one that never varies keeps 1."""
        self.mean = states.mean(0)
        spread = states.std(0, correction=0)
        self.scale = torch.where(spread > 1e-6 * (1 + self.mean.abs()), spread, torch.ones_like(spread))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, width] to [rows, outputs]."""
        logits: torch.Tensor = self.linear((states - self.mean) / self.scale)
        return logits


@dataclass(frozen=True)
class Probe:
    """What a saved head reads, and what its outputs stand for: ``head.json`` beside the weights."""

    layer: int
    pooling: Pooling
    classes: tuple[str, ...]
    """The choice of each output; none for a head of one number, which scores an answer."""

    def save(self, head: Head, folder: Path) -> None:
        """Write ``head.json`` and ``head.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.cpu().contiguous() for name, t in head.state_dict().items()}, folder / WEIGHTS)
        (folder / MARKERS["head"]).write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple[Probe, Head]:
        """Read both.

        Raises:
            UserError: no such folder, or one that is cut or altered.
        """
        if not folder.is_dir():
            raise UserError(f"the probe's folder {folder} does not exist.")
        check_folder(folder, MARKERS["head"])
        with loading(str(folder)):
            told = cls(**json.loads(read_text(folder / MARKERS["head"])))
            if told.pooling not in get_args(Pooling) or not isinstance(told.layer, int):
                raise ValueError(f"{MARKERS['head']}: layer {told.layer!r}, pooling {told.pooling!r}")
            weights = load_file(folder / WEIGHTS)
            outputs, width = weights["linear.weight"].shape
            if outputs != max(1, len(told.classes)):
                raise ValueError(f"{outputs} outputs for {len(told.classes)} classes")
            head = Head(width, outputs)
            head.load_state_dict(weights)
        return told, head


class Probed(torch.nn.Module):
    """A body under a head, called like a sequence classifier."""

    def __init__(self, states: Pooled, head: Head, classes: Sequence[str]) -> None:
        super().__init__()
        self.states, self.head, self.config = states, head, states.config
        self.config.num_labels = max(1, len(classes))
        if classes:
            self.config.id2label = dict(enumerate(classes))

    @property
    def base_model(self) -> torch.nn.Module:
        """The body."""
        return self.states.base_model

    @property
    def dtype(self) -> torch.dtype:
        """The body's."""
        return next(self.states.parameters()).dtype

    def forward(self, **columns: torch.Tensor) -> SequenceClassifierOutput:
        """Logits of padded rows."""
        return SequenceClassifierOutput(logits=self.head(self.states(**columns)))


def load_pooled(args: Mapping[str, Any], layer: int, pooling: Pooling | None) -> tuple[Pooled, Any]:
    """A pretrained model, frozen, in float32 on a CPU and as it was saved elsewhere; and its tokenizer.

    Args:
        args: `pretrained`; `revision` and `device` where they are given.
        layer: see `Pooled`.
        pooling: see `Pooled`.

    Raises:
        UserError: a model that can't be loaded, or has no such layer.
    """
    from transformers import AutoModel

    name = str(args["pretrained"])
    path = resolve(name)
    check_tokenizer(path)
    device = usable_device(args.get("device"))
    check_layer(base_config(args), layer, name)
    tokenizer = base_tokenizer(args)
    with loading(name):
        body = AutoModel.from_pretrained(
            path,
            revision=args.get("revision", "main"),
            use_safetensors=True,
            dtype=torch.float32 if device == "cpu" else "auto",
            **NO_CODE,
        )
    quicken(body)
    pooled = Pooled(body.to(device).eval().requires_grad_(False), name, layer, pooling)
    if pooled.pooling == "last":
        tokenizer.truncation_side = "left"  # of a long text the end stays, which is what is read
    return pooled, tokenizer


def load_probed(args: Mapping[str, Any]) -> tuple[Probed, Any]:
    """A pretrained model under the head in the folder ``args["head"]``, and its tokenizer.

    Raises:
        UserError: as `load_pooled` and `Probe.load`; a head for vectors of another size.
    """
    told, head = Probe.load(Path(str(args["head"])).expanduser())
    pooled, tokenizer = load_pooled(args, told.layer, told.pooling)
    width, own = len(head.mean), pooled.config.get_text_config().hidden_size
    if width != own:
        raise UserError(
            f"the head in {args['head']} reads vectors of {width}, {args['pretrained']} gives {own}: not its model."
        )
    return Probed(pooled, head, told.classes), tokenizer
