"""Hidden states of texts in a loaded model: the vectors that probes, filters by neighbours and the like stand on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from w2s_tasks.errors import UserError
from w2s_tasks.models.classifier import W2SClassifier
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.pooled import Array, Pooled, StateReader, pooled_states
from w2s_tasks.models.reading import Tokens
from w2s_tasks.models.texts import Pooling, Text


def hidden_states(lm: LM, texts: Sequence[str | Text], *, layer: int = -1, pooling: Pooling | None = None) -> Array:
    """One vector for each text, from a model as it is: frozen, without gradients, its adapter on where it has one.

    A row's vector does not hang on the rows beside it: an architecture in which padding changes it is found by a trial, and
    runs rows of one length together. A text that is longer than the window loses its beginning in a language model (as
    lm_eval cuts prompts), in a classifier as that cuts what it classifies.

    Args:
        lm: `w2s-hf` with a causal model, or `w2s-classifier`.
        texts: as their prompts are given to lm_eval; a classifier takes pairs too.
        layer: 0 for the embeddings, k for behind layer k, -1 for the last, with the model's final norm.
        pooling: the last token's state, or the mean over the text's tokens; None for last in language models and the mean
            in encoders.

    Returns:
        float32, shape [texts, width].

    Raises:
        UserError: a model whose hidden states are not here, or a layer that it does not have.
    """
    if isinstance(lm, W2SClassifier):
        name, model, tokenizer = lm.pretrained, lm.model, lm.reader.tokenizer
        rows = lm.reader.encode([(text,) if isinstance(text, str) else text for text in texts]) if texts else []
    elif isinstance(lm, W2SHF) and lm.backend == "causal":
        name, model, tokenizer = lm._name, lm.language_model, lm.tokenizer
        rows = _encoded(lm, [text if isinstance(text, str) else "\n".join(text) for text in texts])
    else:
        raise UserError(
            f"{type(lm).__name__} gives no hidden states: they are those of a causal model (w2s-hf) or a classifier "
            "(w2s-classifier) on this machine."
        )
    reader = StateReader(Pooled(model, name, layer, pooling).eval(), tokenizer, name)
    return pooled_states(reader, rows)


def _encoded(lm: Any, texts: Sequence[str]) -> list[Tokens]:
    """Texts as a language model reads prompts; one without a token is the beginning of a text."""
    rows = [tokens[-lm.max_length :] or [lm.prefix_token_id] for tokens in lm.tokenize(texts)]
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
