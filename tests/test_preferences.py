"""Pairs of replies: dialogues made here, sides, both orders, clusters, position bias by hand, and lm_eval's own numbers."""

from __future__ import annotations

import itertools
import json
import logging
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_public_sets import lm_eval

from trainers.harness.tasks import HarnessTask
from w2s_tasks import TASK_PATH
from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows.dialogues import is_asked, rendered, turns_of
from w2s_tasks.rows.preferences import Left, Pair, Pairs, pair_of, pairs
from w2s_tasks.scoring import pairwise as pw
from w2s_tasks.scoring.metrics import BROKEN, NO_ANSWER

Row = dict[str, Any]
ASKED = "\n\nHuman: How do I boil an egg?\n\nAssistant: Soft or hard?\n\nHuman: Soft.\n\nAssistant:"
SET = Pairs(path="none")
KINDS = ("harmless", "helpful")
NAMES = [f"w2s_preference_{kind}{twin}" for kind, twin in itertools.product(KINDS, ("", "_both", "_gen"))]


def made(n: int, seed: int, prompts: int | None = None) -> list[Row]:
    """n pairs about eggs, of so many prompts (one each by default); the better reply is short or long by a coin."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        begun = (
            f"\n\nHuman: Question {seed}-{i % (prompts or n)}?\n\nAssistant: Of what?\n\nHuman: Of {i} eggs.\n\nAssistant:"
        )
        replies = [f" Take {i} eggs.", f" Take {i} eggs, and so many spoons of the best water as there are eggs."]
        rng.shuffle(replies)
        found.append({"chosen": begun + replies[0], "rejected": begun + replies[1]})
    return found


def write(folder: Path, **splits: list[Row]) -> Path:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made pairs where the shipped tasks look for hh-rlhf."""
    monkeypatch.setenv("W2S_DATA", str(tmp_path / "data"))
    for seed, kind in enumerate(KINDS):
        rows = {"train": made(60, seed), "test": made(41, seed + 10, prompts=30)}
        write(tmp_path / "data" / "Anthropic" / "hh-rlhf" / f"{kind}-base", **rows)
    return tmp_path


# ---- dialogues --------------------------------------------------------------------------------------------------------


def test_turns_begin_after_an_empty_line_alone():
    text = (
        "\n\nHuman: He wrote 'Human: hi' and\nAssistant: ho.\n\nAssistant:  Two\n\nparagraphs, of a\n\nHumanist.\n\nHuman:"
    )
    assert turns_of(text) == [
        ("Human", "He wrote 'Human: hi' and\nAssistant: ho."),
        ("Assistant", "Two\nparagraphs, of a\nHumanist."),
        ("Human", ""),
    ]
    assert turns_of("Human: a\n\nAssistant: b") == [
        ("Human", "a"),
        ("Assistant", "b"),
    ]  # as many copies of such sets have it


def test_messages_are_turns_too():
    said = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n\nHuman: c"}]
    assert turns_of(said) == [("Human", "a"), ("Assistant", "b\nHuman: c")]


@pytest.mark.parametrize(
    "cell", ["", "no marks", "First\n\nHuman: a", None, 3, [], ["a"], [{"role": "tool", "content": "a"}], [{"role": "user"}]]
)
def test_what_is_no_dialogue_has_no_turns(cell: Any):
    assert turns_of(cell) is None


def test_a_dialogue_is_asked_where_speakers_take_turns_and_the_human_ends():
    human, assistant = ("Human", "a"), ("Assistant", "b")
    assert is_asked([human])
    assert is_asked([human, assistant, human])
    assert not any(map(is_asked, ([], [assistant], [human, assistant], [human, human], [assistant, human], [("Human", "")])))


def test_a_long_dialogue_is_cut_at_its_beginning():
    turns = [("Human", "one two three"), ("Assistant", "four five"), ("Human", "six seven")]
    whole = "Human: one two three\nAssistant: four five\nHuman: six seven"
    assert rendered(turns) == rendered(turns, 3, 7) == rendered(turns, 9, 99) == whole
    assert rendered(turns, last_turns=1) == "[...]\nHuman: six seven"
    assert rendered(turns, max_words=6) == rendered(turns, max_words=4) == "[...]\nAssistant: four five\nHuman: six seven"
    assert rendered(turns, max_words=2) == "[...]\nHuman: six seven"
    assert rendered(turns, max_words=1) == "[...]\nHuman: [...] seven"
    assert rendered(turns[:1], max_words=2) == "Human: [...] two three"


# ---- pairs ------------------------------------------------------------------------------------------------------------


def test_the_context_is_what_both_dialogues_share():
    pair = pair_of({"chosen": f"{ASKED} Four minutes.", "rejected": f"{ASKED} Why? "}, SET)
    assert isinstance(pair, Pair)
    assert [text for _, text in pair.context] == ["How do I boil an egg?", "Soft or hard?", "Soft."]
    assert (pair.better, pair.worse) == ("Four minutes.", "Why?")


OTHER = ASKED.replace("Soft or hard?", "An egg?")
NOT_USABLE = {
    "equal": (f"{ASKED} Same. ", f"{ASKED} Same.", Left.EQUAL),
    "empty": (f"{ASKED} Four.", f"{ASKED}  ", Left.EMPTY),
    "both empty": (ASKED, ASKED, Left.EMPTY),
    "parted earlier": (f"{ASKED} Four.", f"{OTHER} Four.", Left.PARTED),
    "parted at once": (f"{ASKED} Four.", "\n\nHuman: Hello\n\nAssistant: Hi", Left.PARTED),
    "one turn longer": (f"{ASKED} Four.", f"{ASKED} Four.\n\nHuman: Thanks.\n\nAssistant: Hm.", Left.PARTED),
    "human ends": (f"{ASKED} Four.\n\nHuman: Thanks.", f"{ASKED} Four.", Left.MALFORMED),
    "twice the assistant": (f"{ASKED} Four.\n\nAssistant: Five.", f"{ASKED} Six.", Left.MALFORMED),
    "no assistant": ("\n\nHuman: Hello", "\n\nHuman: Hello", Left.MALFORMED),
    "nothing said": ("\n\nHuman:\n\nAssistant: a", "\n\nHuman:\n\nAssistant: b", Left.MALFORMED),
    "no dialogue": ("Four.", "Five.", Left.MALFORMED),
    "a missing cell": (None, f"{ASKED} Four.", Left.MALFORMED),
}


@pytest.mark.parametrize(("chosen", "rejected", "reason"), NOT_USABLE.values(), ids=NOT_USABLE)
def test_rows_that_are_no_pair_say_why(chosen: Any, rejected: Any, reason: Left):
    assert pair_of({"chosen": chosen, "rejected": rejected}, SET) == reason


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "How long?", "chosen": "Four.", "rejected": "Five."},
        {"prompt": "\n\nHuman: How long?\n\nAssistant:", "chosen": " Four.", "rejected": " Five."},
        {
            "prompt": [{"role": "user", "content": "How long?"}],
            "chosen": [{"role": "assistant", "content": "Four."}],
            "rejected": [{"role": "assistant", "content": "Five."}],
        },
    ],
)
def test_a_prompt_may_have_a_column_of_its_own(row: Row):
    settings = Pairs(path="none", prompt="prompt")
    assert pair_of(row, settings) == Pair((("Human", "How long?"),), "Four.", "Five.")
    assert pair_of(row | {"chosen": row["rejected"]}, settings) is Left.EQUAL
    assert pair_of(row | {"prompt": None}, settings) is Left.MALFORMED
    assert pair_of(row | {"chosen": None}, settings) is Left.MALFORMED


@pytest.mark.parametrize("inside", ["\n\nHuman: no", "\nAssistant: no", "\n  Human:"])
def test_a_reply_that_holds_turns_makes_no_pair(inside: str):
    own = Pairs(path="none", prompt="prompt")
    assert pair_of({"prompt": "How long?", "chosen": f"Four.{inside}", "rejected": "Five."}, own) is Left.MALFORMED
    assert pair_of({"chosen": f"{ASKED} Four.", "rejected": f"{ASKED} Five.{inside}"}, SET) is Left.MALFORMED
    kept = pair_of({"prompt": "How long?", "chosen": "A Human: four.", "rejected": "Five."}, own)
    assert isinstance(kept, Pair)


def test_blank_lines_in_turns_go():
    pair = pair_of({"chosen": f"{ASKED} Four.\n \n\nOr five.", "rejected": f"{ASKED} Six.\nSeven."}, SET)
    assert isinstance(pair, Pair)
    assert (pair.better, pair.worse) == ("Four.\nOr five.", "Six.\nSeven.")


# ---- rows -------------------------------------------------------------------------------------------------------------


def load(folder: Path, **settings: Any) -> dict[str, list[Row]]:
    return {split: list(rows) for split, rows in pairs({"path": str(folder), **settings}).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set", train=made(400, 1), test=made(300, 2, prompts=100))


def test_sides_are_balanced_and_do_not_tell_the_length(folder: Path):
    rows = load(folder)["train"]
    right = np.array([row["label"] for row in rows])
    longer = np.array([len(row["b"]) > len(row["a"]) for row in rows])
    assert len(rows) == 400
    assert 0.4 < right.mean() < 0.6
    assert 0.4 < longer.mean() < 0.6
    assert abs(np.corrcoef(right, longer)[0, 1]) < 0.15


def test_a_rows_side_hangs_on_the_row_and_the_seed_alone(folder: Path, tmp_path: Path):
    rows = load(folder)
    backwards = write(tmp_path / "back", train=made(400, 1)[::-1], test=made(300, 2, prompts=100)[::-1])
    assert load(backwards) == rows
    fewer = write(tmp_path / "fewer", train=made(400, 1)[:50], test=made(300, 2, prompts=100)[:9])
    sides = {(row["context"], row["a"], row["b"]) for row in rows["train"]}
    assert all((row["context"], row["a"], row["b"]) in sides for row in load(fewer)["train"])
    short, other = load(folder, last_turns=1)["train"], load(folder, seed=1)["train"]
    assert [row["label"] for row in short] == [row["label"] for row in rows["train"]]
    assert 100 < sum(one["label"] != two["label"] for one, two in zip(other, rows["train"], strict=True)) < 300


def test_the_better_reply_stands_where_the_label_says(folder: Path):
    better = {row["chosen"].rpartition("Assistant: ")[2] for row in made(400, 1)}
    worse = {row["rejected"].rpartition("Assistant: ")[2] for row in made(400, 1)}
    for row in load(folder)["train"]:
        shown = row["a"], row["b"]
        assert shown[row["label"]] in better
        assert shown[1 - row["label"]] in worse


def test_both_orders_are_mirror_images_and_stand_together(folder: Path):
    one, both = load(folder), load(folder, both_orders=True)
    for split, rows in both.items():
        firsts, mirrors = rows[::2], rows[1::2]
        assert [{k: v for k, v in row.items() if k != "w2s_pair"} for row in firsts] == one[split]
        assert [row["w2s_pair"] for row in rows] == [i // 2 for i in range(len(rows))]
        for first, mirror in zip(firsts, mirrors, strict=True):
            assert mirror == first | {"a": first["b"], "b": first["a"], "label": 1 - first["label"]}


def test_pairs_of_a_prompt_are_one_group_and_on_one_side(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shared = [{**row, "rejected": row["rejected"].replace("QUESTION", "Question")} for row in made(20, 2)]
    for row in shared:  # another spelling is the same prompt
        row["chosen"], row["rejected"] = (row[k].replace("Question 2", "QUESTION  2") for k in ("chosen", "rejected"))
    folder = write(
        tmp_path / "set", train=made(30, 1) + shared, test=[*made(60, 2, prompts=20), {"chosen": "", "rejected": ""}]
    )
    with caplog.at_level(logging.INFO, logger="w2s_tasks"):
        rows = load(folder)
    assert Counter(Counter(row["w2s_group"] for row in rows["validation"]).values()) == {3: 20}
    assert len({row["w2s_group"] for row in rows["train"]}) == len(rows["train"]) == 30
    for column in ("w2s_group", "prompt_key"):
        assert not {row[column] for row in rows["train"]} & {row[column] for row in rows["validation"]}
    assert "'train': 30 pairs; left out: 20 whose prompt stands in the evaluation split" in caplog.text
    assert "'test': 60 pairs; left out: 1 that are no dialogues" in caplog.text
    assert {r.levelname for r in caplog.records if "left out" in r.message} == {"WARNING", "INFO"}  # 40 % is a warning


def test_the_first_rows_are_a_sample_of_all(folder: Path):
    first = [int(row["context"].rpartition("Of ")[2].split()[0]) for row in load(folder)["train"][:60]]
    assert 120 < np.mean(first) < 280  # of 0 to 399 in the file's order


def test_a_reply_is_never_cut(folder: Path):
    rows = load(folder, max_words=1)["train"]
    assert all(row["context"].startswith("[...]\nHuman: [...] eggs.") for row in rows)
    assert max(len(row["a"].split()) for row in rows) == 15


# ---- any set, and what is wrong with it -------------------------------------------------------------------------------

OWN = """
include: {shared}
task: own_pairs
dataset_kwargs:
  pairs: {{path: {folder}, validation: validation, prompt: question, chosen: good, rejected: bad, both_orders: true}}
"""


def test_a_local_set_with_other_columns_is_a_task_by_its_yaml(tmp_path: Path):
    rows = [{"question": f"Number {i}?", "good": str(i), "bad": f"not {i}", "who": "me"} for i in range(30)]
    folder = write(tmp_path / "set", train=rows[:20], validation=rows[20:])
    (tmp_path / "tasks").mkdir()
    shared = TASK_PATH / "preference" / "_preference_yaml"
    (tmp_path / "tasks" / "own.yaml").write_text(OWN.format(shared=shared, folder=folder), encoding="utf-8")
    manager = W2STaskManager(include_path=str(tmp_path / "tasks"))
    task = manager.load(["own_pairs"])["tasks"]["own_pairs"]
    assert {split: len(found) for split, found in task.dataset.items()} == {"train": 40, "validation": 20}
    first = task.eval_docs[0]
    prompt = task.fewshot_context(first, 0)
    assert prompt.startswith("Human: Number 2")
    assert prompt.endswith(f"\nReply A: {first['a']}\nReply B: {first['b']}\nWhich reply is better? Answer:")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"chosen": "good"}, r"split 'test' has no column 'good', only chosen, rejected: set `chosen`, `rejected` and"),
        ({"chosen": "good", "prompt": "ask"}, "no column 'ask', 'good', only chosen, rejected"),
        ({"validation": "dev"}, r"no split 'dev', only train, test: set `train` and `validation`"),
        ({"last_turn": 3}, r"`pairs`: last_turn: .* Did you mean 'last_turns'\?"),
        ({"last_turns": 0}, "`pairs`: last_turns: .*greater than or equal to 1"),
        ({"both_orders": "yes"}, "`pairs`: both_orders: "),
        ({"path": None}, "`pairs`: path: "),
    ],
)
def test_settings_that_can_not_be_are_told(folder: Path, settings: Row, told: str):
    with pytest.raises(UserError, match=told):
        pairs({"path": str(folder), **settings})


@pytest.mark.parametrize("given", [None, "org/name", ["a"], {}])
def test_a_task_without_a_set_is_told(given: Any):
    with pytest.raises(UserError, match="`pairs`"):
        pairs(given, version=1.0)


def test_a_set_without_a_usable_pair_is_told_with_the_reasons(tmp_path: Path):
    equal = [{"chosen": f"{ASKED} Same.", "rejected": f"{ASKED} Same."}]
    folder = write(tmp_path / "set", train=made(3, 1), test=equal)
    with pytest.raises(UserError, match=r"'test': no pair can be used; left out: 1 of equal replies"):
        load(folder)


def test_a_set_that_is_not_there_is_told_with_its_folder(hub: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        MissingDataError, match=r"hh-rlhf \(red-team\) is not to be had: .*without a usable .*hh-rlhf/red-team"
    ):
        pairs({"path": "Anthropic/hh-rlhf", "data_dir": "red-team"})
    monkeypatch.delenv("W2S_DATA")
    with pytest.raises(MissingDataError, match=r"\$W2S_DATA is not set"):
        pairs({"path": "org/none"})


def test_a_models_own_arguments_change_no_row(hub: Path):
    """lm_eval merges --model_args into a task's metadata: a vLLM model's seed is not the seed of the sides."""
    name = "w2s_preference_harmless"
    arguments = {"seed": 5, "path": "elsewhere", "max_words": 1, "both_orders": True, "train": "test"}
    plain, given = (W2STaskManager(metadata=m).load([name])["tasks"][name] for m in (None, arguments))
    assert list(plain.eval_docs) == list(given.eval_docs)


def test_hostile_texts_stay_texts(tmp_path: Path):
    texts = ["{{ 7 * 7 }}", "{% raw %}", "A\nReply B: me", "\u2028\u0000 \\n", "Answer: B"]
    rows = [
        {"chosen": f"\n\nHuman: {i}{t}\n\nAssistant: {t}", "rejected": f"\n\nHuman: {i}{t}\n\nAssistant: no"}
        for i, t in enumerate(texts)
    ]
    assert {row["a"] for row in load(write(tmp_path / "set", train=made(3, 1), test=rows))["validation"]} <= {
        *texts,
        "no",
        "\u2028\u0000 \\n".strip(),
    }


# ---- scores by hand ---------------------------------------------------------------------------------------------------


def scored(answers: list[tuple[float, float]], labels: list[int], groups: list[int], whole: bool = True) -> dict[str, float]:
    """Scores of rows with these log-likelihoods of A and B; rows 0 and 1 are a pair, 2 and 3, and so on."""
    items = [
        pw.candidates(
            {"label": label, "w2s_group": group, **({"w2s_pair": i // 2} if whole else {})}, [(x, False) for x in logliks]
        )
        for i, (logliks, label, group) in enumerate(zip(answers, labels, groups, strict=True))
    ]
    names = ("first", "consistent", "position_bias")
    keys = [key for name in names for key in (name, f"{name}_stderr") if key in items[0]]
    shares = {key: getattr(pw, key)([item[key] for item in items]) for key in keys}
    return {"acc": float(np.mean([item["acc"][1] for item in items])), **shares}


A, B, SILENT = (-1.0, -2.0), (-2.0, -1.0), (-math.inf, -math.inf)


def test_who_always_says_a_is_right_by_half_and_never_consistent():
    found = scored([A] * 8, [0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3])
    errors = {key: found.pop(key) for key in list(found) if key.endswith("_stderr")}
    assert found == {"acc": 0.5, "first": 1.0, "consistent": 0.0, "position_bias": 1.0}
    assert set(errors.values()) == {0.0}


def test_who_sees_the_replies_is_consistent_and_has_no_bias():
    right, wrong = scored([A, B] * 4, [0, 1] * 4, list(range(8))), scored([B, A] * 4, [0, 1] * 4, list(range(8)))
    assert (right["acc"], right["consistent"], right["position_bias"], right["first"]) == (1.0, 1.0, 0.0, 0.5)
    assert (wrong["acc"], wrong["consistent"], wrong["position_bias"], wrong["first"]) == (0.0, 0.0, 0.0, 0.5)


def test_the_order_of_a_pairs_rows_does_not_matter():
    assert scored([A, B, A, B], [0, 1, 0, 1], [0, 0, 1, 1])["consistent"] == 1.0
    assert scored([B, A, B, A], [1, 0, 1, 0], [0, 0, 1, 1])["consistent"] == 1.0


def test_errors_of_pairs_are_clustered_by_prompt():
    """Four pairs of two prompts, alike within each: two clusters of two, so the error of a mean of two values."""
    found = scored([A, B] * 2 + [B, A] * 2, [0, 1] * 4, [7, 7, 7, 7, 9, 9, 9, 9])
    assert found["consistent"] == 0.5
    assert found["consistent_stderr"] == pytest.approx(np.std([1, 0], ddof=1) / math.sqrt(2))
    alone = scored([A, B] * 2 + [B, A] * 2, [0, 1] * 4, [1, 1, 2, 2, 3, 3, 4, 4])
    assert alone["consistent_stderr"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)


def test_half_a_pair_is_not_counted_as_one():
    found = scored([A, B, A], [0, 1, 1], [0, 0, 1])
    assert (found["consistent"], found["position_bias"]) == (1.0, 0.0)
    assert found["acc"] == pytest.approx(2 / 3)
    assert found["first"] == pytest.approx(2 / 3)
    half = scored([A], [0], [0])
    assert math.isnan(half["consistent"])
    assert math.isnan(half["position_bias_stderr"])


def test_a_row_without_an_answer_is_wrong_and_says_no_letter():
    found = scored([A, SILENT, A, B], [0, 1, 0, 1], [0, 0, 1, 1])
    assert found["acc"] == 0.75
    assert found["first"] == pytest.approx(2 / 3)
    assert (found["consistent"], found["position_bias"]) == (0.5, 0.0)
    silent = scored([SILENT] * 2, [0, 1], [0, 0])
    assert math.isnan(silent["first"])
    assert math.isnan(silent["position_bias"])
    assert silent["consistent"] == 0.0


def test_a_broken_model_has_no_scores():
    found = scored([(math.nan, -1.0), B, A, B], [0, 1, 0, 1], [0, 0, 1, 1])
    assert all(math.isnan(value) for value in found.values())


def test_one_order_alone_tells_nothing_of_pairs():
    found = scored([A, B], [0, 1], [0, 1], whole=False)
    assert set(found) == {"acc", "first", "first_stderr"}


@pytest.mark.parametrize("chosen", [0, 1, NO_ANSWER, BROKEN])
def test_every_emitted_score_has_an_aggregation(hub: Path, chosen: int):
    logliks = {0: A, 1: B, NO_ANSWER: SILENT, BROKEN: (math.nan, math.nan)}[chosen]
    for name, task in W2STaskManager().load(["w2s_preference_harmless", "w2s_preference_harmless_both"])["tasks"].items():
        items = task.process_results(task.eval_docs[0], [(x, False) for x in logliks])
        assert set(items) <= set(task.aggregation())
        assert ("consistent" in items) == name.endswith("both")
        assert "em" not in items


# ---- replies in text --------------------------------------------------------------------------------------------------

REPLIES = {
    "A": 0,
    " B.": 1,
    "b": 1,
    "**A**": 0,
    "Reply A": 0,
    "Answer: Reply B": 1,
    "Response B is better.": 1,
    "A is better than B because it is kind.": 0,
    "Reply B is the better reply.": 1,
    "I would choose reply A.": 0,
    "The better one is B, since it is a calm reply.": 1,
    "A because it is a safe one.": 0,
    "This is a choice.": None,
    "A reply that says more would be kinder.": None,
    "Reply A: Take two eggs.": None,
    "I don't think A is better.": None,
    "Neither A nor B.": None,
    "A or B": None,
    "A is worse than B.": None,
    "(B)": 1,
    "B, but I disagree.": None,
    "Both A and B are bad.": None,
    "B\nReply A: Take two eggs.": 1,
    "It depends.": None,
    "": None,
}


@pytest.mark.parametrize(("reply", "letter"), REPLIES.items())
def test_a_reply_in_text_names_a_letter_or_none(reply: str, letter: int | None):
    item = pw.letter({"label": 1, "w2s_group": 4}, [reply])["acc"]
    assert item[1] == (-1 if letter is None else letter)
    assert (item[0], item[3]) == (1, 4)
    assert item[2] in (-1, item[1])


# ---- the tasks --------------------------------------------------------------------------------------------------------


def test_the_candidates_and_the_source_that_a_yaml_names_are_columns(hub: Path):
    for name, task in W2STaskManager().load(NAMES)["tasks"].items():
        metadata, columns = task.config.metadata, set(task.eval_docs.column_names)
        assert metadata["candidates"] == {"question": "context", "answers": ["a", "b"]}
        assert {"context", "a", "b", metadata["source"]["column"]} <= columns, name
        assert len(HarnessTask(task).source_texts()[0]) == len(task.dataset["train"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_generated_twin_has_its_tasks_prompts(hub: Path, kind: str):
    name = f"w2s_preference_{kind}"
    tasks = W2STaskManager().load([name, f"{name}_gen"])["tasks"]
    for task in tasks.values():
        task.set_fewshot_seed(1234)
    one, twin = tasks.values()
    assert list(one.eval_docs) == list(twin.eval_docs)
    for doc, shots in itertools.product(list(one.eval_docs)[:3], (0, 2)):
        assert one.fewshot_context(doc, shots) == twin.fewshot_context(doc, shots)


def test_lm_evals_numbers_are_the_readers(hub: Path):
    names = NAMES[:3]
    results = lm_eval(names, hub / "out")
    found = read_evaluation(hub / "out")
    for name in names:
        scores = found[name]
        assert scores.correct.mean() == pytest.approx(results[name]["acc,none"])
        assert scores.cluster is not None
        assert len(set(scores.cluster)) == 30
        assert scores.classes
        assert scores.n == (82 if name.endswith("both") else 41)
    one, both = (found[name] for name in names[:2])
    assert one.predicted is not None
    assert one.metrics["first"] == pytest.approx((one.predicted == 0).mean())
    assert both.predicted is not None
    letters, right = both.predicted.reshape(-1, 2), both.correct.reshape(-1, 2)
    assert both.metrics["position_bias"] == pytest.approx((letters[:, 0] == letters[:, 1]).mean())
    assert both.metrics["consistent"] == pytest.approx(right.all(axis=1).mean())
    assert set(both.stderr) >= {"acc", "first", "consistent", "position_bias", "auroc"}


def test_a_limit_may_cut_a_pair(hub: Path):
    name = "w2s_preference_helpful_both"
    lm_eval([name], hub / "out", limit=5)
    scores = read_evaluation(hub / "out")[name]
    assert scores.n == 5
    assert scores.predicted is not None
    letters = scores.predicted[:4].reshape(-1, 2)
    assert scores.metrics["position_bias"] == pytest.approx((letters[:, 0] == letters[:, 1]).mean())


def test_hh_rlhf_has_the_rows_that_the_readme_states(real_data: Path):
    if not (real_data / "Anthropic" / "hh-rlhf").is_dir():
        pytest.skip("needs Anthropic/hh-rlhf (harmless-base) in W2S_DATA")
    rows = pairs({"path": "Anthropic/hh-rlhf", "data_dir": "harmless-base", "max_words": 256})
    n = {split: (len(found), len(set(found["w2s_group"]))) for split, found in rows.items()}
    if sum(a for a, _ in n.values()) > 3000:
        pytest.skip("the README's counts are those of the published test file alone")
    assert n == {"train": (1615, 1548), "validation": (603, 594)}
    assert not set(rows["train"]["prompt_key"]) & set(rows["validation"]["prompt_key"])
