"""What a sequence classifier reads: texts to rows of tokens in its window, rows to batches whose padding changes no score.

Encoders and language models with a classification head differ in what their forward pass takes: positions that begin behind
the padding's (RoBERTa and its relatives), no padding token at all (GPT-2), token types that some look up among the words. A
row's scores must not depend on what stands beside it; an architecture whose padding changes them is found out by a trial,
and its batches then hold rows of one length.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from w2s_tasks.errors import UserError
from w2s_tasks.models.texts import Text
from w2s_tasks.packing.precision import in_float32, widenable
from w2s_tasks.user_text import one_line

log = logging.getLogger(__name__)

Tokens = dict[str, list[int]]
FIELDS = ("input_ids", "attention_mask", "token_type_ids")
WINDOW = 512
"""Tokens of an encoder whose configuration and tokenizer name no limit."""
TOLERANCE = 1e-3
"""How far padding may move a log-probability, in float32."""
TRIED = 4
"""Rows, from the shortest to the longest, on which padding is tried."""
LIMITS = ("max_position_embeddings", "max_seq_len", "n_positions")
"""How configurations call the number of their positions."""


def positions(model: torch.nn.Module) -> int | None:
    """How many tokens have a position in a model; None where nothing limits them.

    RoBERTa and its relatives count positions from behind the padding token's id: 514 places are 512 tokens.
    """
    config: Any = model.config
    text = config.get_text_config()
    most = next((getattr(text, name) for name in LIMITS if getattr(text, name, None)), -1)
    if most < 0:
        return None
    tables = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "position_embeddings"]
    first = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return int(most) - max(first, default=0)


def window(tokenizer: Any, model: torch.nn.Module, asked: int | None = None) -> int:
    """How many tokens a model reads of a text: as many as were asked for, else what its tokenizer and positions allow.

    Raises:
        UserError: more were asked for than there are positions, or none.
    """
    most = positions(model)
    if asked is None:
        # A tokenizer without a limit of its own says 1e30.
        return int(min(tokenizer.model_max_length, most or WINDOW))
    if asked < 1 or (most is not None and asked > most):
        raise UserError(f"max_length: {asked} tokens; this model takes 1 to {most if most is not None else 'any number'}.")
    return asked


def _typed(config: Any) -> bool:
    """Whether a model has kinds of tokens; GPT-2 and others take their numbers for words and add those words' embeddings."""
    return (getattr(config, "type_vocab_size", None) or 0) > 1 or config.model_type == "xlnet"


class Reader:
    """A classifier with its tokenizer: encodes texts, pads rows, runs batches."""

    def __init__(self, model: Any, tokenizer: Any, name: str, max_length: int | None = None) -> None:
        """Agree on a padding token: the model's where it has one, else the tokenizer's, else the end of a text.

        Args:
            model: a sequence classifier; its configuration is given the padding token that it lacks.
            tokenizer: its tokenizer, likewise.
            name: the model's name, for messages.
            max_length: tokens a text; longer ones are cut.

        Raises:
            UserError: see `window`.
        """
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_length = window(tokenizer, model, max_length)
        self._fields = FIELDS if _typed(model.config.get_text_config()) else FIELDS[:2]
        self._pads: bool | None = None
        config = model.config.get_text_config()
        words = getattr(config, "vocab_size", None) or len(tokenizer)
        known = (getattr(config, "pad_token_id", None), tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = next(token for token in known if isinstance(token, int) and 0 <= token < words)
        # The head reads the last token that is not this one: a model that knows none can't be given several rows.
        config.pad_token_id = model.config.pad_token_id = self.pad
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self.pad)

    def encode(self, texts: Sequence[Text]) -> list[Tokens]:
        """Tokenize every document once, truncated and unpadded; an empty text is one padding token."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length, return_attention_mask=True)
        rows = [{key: list(encoded[key][i]) for key in self._fields if key in encoded} for i in range(len(texts))]
        cut = sum(len(row["input_ids"]) >= self.max_length for row in rows)
        if cut:
            log.warning("%s: %d of %d texts fill its %d tokens and may be cut", self.name, cut, len(rows), self.max_length)
        nothing = {"input_ids": [self.pad], "attention_mask": [1], "token_type_ids": [0]}
        return [row if row["input_ids"] else {key: nothing[key] for key in row} for row in rows]

    def pad_together(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Rows as tensors [rows, tokens], padded on the right: under causal attention nothing before the padding sees it."""
        longest = max(len(row["input_ids"]) for row in rows)
        values = {"input_ids": self.pad}
        return {
            key: torch.tensor([row[key] + [values.get(key, 0)] * (longest - len(row[key])) for row in rows])
            for key in self._fields
            if key in rows[0]
        }

    def pairs(self, question: Text, answers: Sequence[str]) -> list[Text]:
        """A question beside each answer: two texts where the tokenizer keeps them apart, else one above the other.

        Of the latter, those that are too long lose their beginning: the answer stays whole.
        """
        whole = "\n".join(question)
        if self._apart:
            return [(whole, answer) for answer in answers]
        self.tokenizer.truncation_side = "left"
        return [(f"{whole}\n{answer}",) for answer in answers]

    @property
    def _apart(self) -> bool:
        """Whether the tokenizer has a mark between two texts; a second beginning of a text is none."""
        special = self.tokenizer.num_special_tokens_to_add
        return self.tokenizer.sep_token is not None and special(pair=True) > special(pair=False)

    def scores(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the classes, [rows, classes]; of a head with one number that number as it is.

        Raises:
            UserError: as `run`.
        """
        result: torch.Tensor = self.run(batch).logits.float()
        return result if result.shape[-1] == 1 else result.log_softmax(-1)

    def run(self, batch: Mapping[str, torch.Tensor]) -> Any:
        """What the model gives for padded rows.

        Raises:
            UserError: the model can't read these rows, as one that works on bytes, or needs pictures too.
        """
        device = next(self.model.parameters()).device
        try:
            return self.model(**{k: v.to(device) for k, v in batch.items()})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{self.name} can't classify a text of the task: {reason}") from error

    def difference(self, one: torch.Tensor, other: torch.Tensor) -> float:
        """How far two tables of scores lie apart, for the trial of padding."""
        return float((one - other).abs().max())

    @torch.no_grad()
    def pads_exactly(self, rows: Sequence[Mapping[str, list[int]]]) -> bool:
        """Whether rows score alike alone and padded: tried once, on some rows of several lengths.

        Raises:
            UserError: the model can't read a row alone either.
        """
        by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
        if self._pads is None and len(by_length[0]["input_ids"]) < len(by_length[-1]["input_ids"]):
            some = [by_length[i * (len(rows) - 1) // (TRIED - 1)] for i in range(TRIED)]
            training = self.model.training
            self.model.eval()
            self._pads = self._try_padding(some)
            self.model.train(training)
        return self._pads is not False

    def _try_padding(self, rows: Sequence[Mapping[str, list[int]]]) -> bool:
        # In half precision, padding changes what is rounded, which is not what is asked here.
        widened = widenable(self.model, sum(len(row["input_ids"]) for row in rows))
        with in_float32(self.model) if widened else contextlib.nullcontext():
            alone = torch.cat([self.scores(self.pad_together([row])) for row in rows])
            try:
                difference = self.difference(self.scores(self.pad_together(rows)), alone)
                reason = "" if difference <= TOLERANCE else f"scores differ by {difference:.1e}"
            except UserError as error:
                reason = one_line(error)
        if not reason:
            return True
        log.warning("%s: padding changes what it answers (%s); rows of one length are run together", self.name, reason)
        return False

    def batches(self, rows: Sequence[Mapping[str, list[int]]], budget: int) -> Iterator[list[int]]:
        """Row numbers in batches of similar length under a budget of padded tokens, the longest first."""
        exact = self.pads_exactly(rows)
        lengths = [len(row["input_ids"]) for row in rows]
        batch: list[int] = []
        for i in sorted(range(len(rows)), key=lambda i: -lengths[i]):
            longest = lengths[batch[0]] if batch else 0
            if batch and (longest * (len(batch) + 1) > budget or not (exact or lengths[i] == longest)):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch
