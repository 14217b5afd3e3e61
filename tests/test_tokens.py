"""Common beginnings are tokenized once, and the tokens are those of the whole strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from w2s_tasks.packing import tokens

TEXT = st.text(alphabet="ab .,'\n\t0123é’\u3000-", max_size=40)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.backend_tokenizer, self.seen = tokenizer, tokenizer.backend_tokenizer, 0

    def __call__(self, strings: list[str], **more: Any) -> Any:
        self.seen += sum(map(len, strings))
        return self.tokenizer(strings, **more)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@given(TEXT, st.lists(TEXT, min_size=3, max_size=6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_tokens_are_those_of_the_whole_strings(tokenizer: Any, joint: str, tails: list[str], special: bool):
    strings = [("Review: the film was lovely\nSentiment: positive\n\n" * 9) + joint + tail for tail in tails]
    expected = tokenizer(strings, add_special_tokens=special)["input_ids"]
    assert tokens.encode_all(tokenizer, strings, {"add_special_tokens": special}) == expected


def test_a_common_beginning_is_read_once_a_task(tokenizer: Any):
    shots = [f"Task {t}. " + "Review: the film was lovely\nSentiment: positive\n\n" * 40 for t in range(2)]
    strings = [f"{head}Review: the plot {i}\nSentiment:" for head in shots for i in range(50)]
    counting = Counting(tokenizer)
    found = tokens.encode_all(counting, strings, {})
    assert found == tokenizer(strings)["input_ids"]
    assert counting.seen < sum(map(len, strings)) / 8
    assert len(tokens.groups(strings)) == 2


def test_other_tokenizers_read_whole_strings():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    )
    assert not tokens.cuts_words(plain)
    assert not tokens.cuts_words(object())
    strings = ["a" * 400 + "b" * k for k in range(4)]
    assert tokens.encode_all(plain, strings, {}) == plain(strings)["input_ids"]


@pytest.mark.pypi
def test_smollm2_reads_real_prompts_as_whole_ones(smollm2: str):
    from transformers import AutoTokenizer

    from trainers.harness import evaluate as hn

    smol = AutoTokenizer.from_pretrained(smollm2)
    assert tokens.cuts_words(smol)
    for name in ("w2s_ethics_probe_justice", "w2s_ethics_probe_utilitarianism"):
        task = hn.Harness().task(name)
        pairs = [r.args for r in task.requests(list(task.task.eval_docs), hn.PromptStyle(8))]
        strings = [context + choice for context, choice in pairs]
        assert tokens.encode_all(smol, strings, {}) == smol(strings)["input_ids"]
