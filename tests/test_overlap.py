"""Rows that stand in train: found by each rule, told by `w2s validate`, left out of a split; families of variants."""

from __future__ import annotations

import io
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_input import one_clear_error
from conftest import OWN_TASK
from lm_eval.decontamination.janitor import Janitor, word_ngrams
from rich.console import Console

from trainers.config.reading import load
from trainers.flow.layout import Layout
from trainers.flow.run import Run, open_run
from trainers.harness.evaluate import Harness
from trainers.harness.tasks import HarnessTask
from trainers.labels.splits import SplitSettings
from trainers.steps.source import Split
from w2s_tasks.rows import overlap as ov
from w2s_tasks.rows.families import families, grams, numbered
from w2s_tasks.validate import validate

Rows = list[dict[str, Any]]

LONG = "the old lighthouse keeper wrote a letter to his sister every winter evening until the war"
INSIDE = LONG.removeprefix("the old ").removesuffix(" war")  # thirteen words


def write(folder: Path, train: Rows, test: Rows, **changes: Any) -> Path:
    """The task `own_reviews` over these rows."""
    folder.mkdir(exist_ok=True)
    for name, part in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    settings = yaml.safe_load(OWN_TASK.format(folder=folder)) | changes
    (folder / "own_reviews.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def own(folder: Path) -> HarnessTask:
    return Harness([str(folder)]).task("own_reviews")


def texts(*values: str, **more: Any) -> Rows:
    return [{"text": text, "label": i % 2, **more} for i, text in enumerate(values)]


def marks(evaluation: list[str], training: list[str], rule: ov.Rule) -> list[bool]:
    return ov.overlapping(evaluation, ov.common(evaluation, training, rule), rule)


# ---- rules ------------------------------------------------------------------------------------------------------------


def test_the_same_text_is_found_whatever_its_case_and_white_space():
    training = ["A  fine\tfilm .", "2 + 2", ""]
    assert marks(["a fine film .", "a fine film", "22", "2 - 2"], training, "exact") == [True, False, False, False]


def test_thirteen_words_are_found_and_twelve_are_not():
    twelve = " ".join(LONG.split()[2:14])
    assert len(INSIDE.split()) == 13
    evaluation = [f"So: {INSIDE.title()}, he said.", f"so {twelve} he said, and that was all there was to it"]
    assert marks(evaluation, [LONG], "13gram") == [True, False]


def test_a_row_of_fewer_words_is_judged_by_all_of_its_text():
    assert marks(["Quite  good", "good", INSIDE.rpartition(" ")[0]], ["quite good", LONG], "13gram") == [True, False, False]


def test_what_is_the_same_text_shares_its_words_too():
    rng = random.Random(0)
    pool = [" ".join(rng.choices("a b c d e".split(), k=rng.randint(0, 16))) for _ in range(300)]
    same, shared = (marks(pool[:100], pool[100:], rule) for rule in ("exact", "13gram"))
    assert any(same)
    assert all(also for one, also in zip(same, shared, strict=True) if one)


def test_words_in_a_row_are_those_of_lm_evals_own_decontamination():
    rng = random.Random(1)
    text = "".join(rng.choices(string.ascii_letters + "     ,.'", k=2000))
    assert [" ".join(gram) for gram in grams(text)] == list(word_ngrams(Janitor().normalize_string(text), 13))


def test_the_words_of_a_prompt_are_no_overlap(tmp_path: Path):
    """Every prompt shares its template; what a row holds beside what is asked is none either."""
    template = "Would most people who live in a town by the sea believe this to be so? {{text}}\nAnswer:"
    folder = write(tmp_path / "t", texts("one", "two", idx=LONG), texts("three", "One", idx=LONG), doc_to_text=template)
    task = own(folder).task
    found = ov.overlap(task, list(task.eval_docs), list(task.training_docs()))
    assert found.found == {"exact": 1, "13gram": 1, "source": None}


@pytest.mark.parametrize("doc_to_text", ["{{passage}}\n{{text}}", "text", "no column at all"])
def test_a_row_is_all_columns_that_are_asked(tmp_path: Path, doc_to_text: str):
    rows = (texts("why", passage="here"), texts("why", "who", passage="there"))
    task = own(write(tmp_path / "t", *rows, doc_to_text=doc_to_text)).task
    expected = 1 if doc_to_text == "text" else 0
    assert ov.overlap(task, list(task.eval_docs), list(task.training_docs())).found["exact"] == expected


@pytest.mark.parametrize(
    ("source", "counted"),
    [
        ({"column": "text", "before": " [SEP] "}, 1),
        ({"column": "text"}, 0),
        ({"column": "text", "contained": True}, None),
        ({"column": "text", "variants": True}, None),
        ({"column": "nowhere"}, None),
    ],
)
def test_rows_of_one_source_are_counted_where_the_task_names_it(tmp_path: Path, source: dict[str, Any], counted: int | None):
    rows = texts("He waits. [SEP] calm", "b [SEP] x"), texts("he waits. [SEP] bold", "c [SEP] calm")
    task = own(write(tmp_path / "t", *rows, metadata={"version": 1, "source": source})).task
    assert ov.overlap(task, list(task.eval_docs), list(task.training_docs())).found["source"] == counted


def test_hostile_and_empty_rows_are_read(tmp_path: Path):
    odd = ["", " ", "{{ 7 * 7 }}", "\u202e\0", "ſ" * 5000, "a " * 3000]
    task = own(write(tmp_path / "t", texts(*odd), texts(*odd))).task
    docs = list(task.eval_docs)
    assert ov.overlap(task, docs, docs).found == {"exact": 6, "13gram": 6, "source": None}
    assert ov.overlap(task, docs, []).found["exact"] == 0
    assert ov.overlap(task, [], docs) == ov.Overlap(0, {"exact": 0, "13gram": 0, "source": None})


# ---- validate ---------------------------------------------------------------------------------------------------------


def told(folder: Path, **settings: Any) -> str:
    console = Console(record=True, width=300, file=io.StringIO())
    given = {"documents": 3, "model": None, "mode": "loglikelihood", "examples": False}
    assert validate(["own_reviews"], **given, include_path=[str(folder)], console=console, **settings)
    return console.export_text()


def test_validate_counts_all_rows_and_only_when_asked(tmp_path: Path):
    filler = [f"film number {i}" for i in range(20)]
    folder = write(
        tmp_path / "t", texts(*filler, LONG, "Good ."), texts(*(f"other {i}" for i in range(20)), f"x {LONG}", "good .")
    )
    assert "overlap: 1 of 22 rows stand in train, 2 share 13 words in a row with it" in told(folder, with_overlap=True)
    assert "overlap" not in told(folder)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "w2s_ethics_virtue",
            "16 of 4,975 rows stand in train, 2,998 share 13 words in a row with it, 4,555 have their source",
        ),
        ("w2s_ethics_virtue_hard", "15 of 4,780 rows stand in train"),
        ("w2s_ethics_justice", "1 of 2,704 rows stand in train, 34 share"),
        ("w2s_ethics_commonsense", "0 of 2,109 rows stand in train, 0 share"),
    ],
)
def test_what_the_readme_says_of_the_real_rows_is_so(real_data: Path, name: str, line: str):
    from w2s_tasks import TASK_PATH
    from w2s_tasks.plugin.manager import W2STaskManager

    task = W2STaskManager().load([name])["tasks"][name]
    assert line in str(ov.overlap(task, list(task.eval_docs), list(task.training_docs())))
    rows = (TASK_PATH / "ethics" / "README.md").read_text(encoding="utf-8").splitlines()
    told = next(row for row in rows if row.startswith(f"| `{name}` | ")).split(" | ")
    assert told[2] == line.partition(" of ")[0]


# ---- splits -----------------------------------------------------------------------------------------------------------


def cut(task: HarnessTask, **settings: Any) -> Split:
    return Split(task=task, settings=SplitSettings(**settings), seed=0)


FILMS = [f"film number {i}" for i in range(40)]


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Three of 42 training rows overlap with the test rows: one as a text, one in thirteen words, one by its passage."""
    train = texts(*FILMS[:39], passage="its own") + texts(LONG, "asked here", "FILM  number 50", passage="there")
    test = texts("film number 50", f"so {LONG}", "asked otherwise", passage="elsewhere")
    train[40]["passage"] = test[2]["passage"] = "shared"
    source = {"column": "passage"}
    return write(tmp_path / "leaking", train, test, metadata={"version": 1, "source": source})


@pytest.mark.parametrize(("rule", "gone"), [("exact", {41}), ("13gram", {39, 41}), ("source", {40})])
@pytest.mark.parametrize("by", ["row", "study"])
def test_training_rows_that_stand_in_the_evaluation_split_are_left_out(leaking: Path, rule: str, gone: set[int], by: str):
    task = own(leaking)
    whole, without = cut(task, by=by).halves, cut(task, by=by, drop_overlap=rule).halves
    for side in ("weak", "transfer"):
        assert getattr(without, side) == [row for row in getattr(whole, side) if row not in gone]
    assert (without.overlapping, without.dropped, whole.overlapping) == (len(gone), 0, 0)


def test_the_rule_and_the_rows_that_are_asked_are_in_the_key_only_where_it_is_set(leaking: Path):
    task, settings = own(leaking), {"by": "row"}
    plain, dropping = cut(task, **settings).recipe(), cut(task, **settings, drop_overlap="exact").recipe()
    assert "drop_overlap" not in plain
    assert dropping["drop_overlap"] == "exact"
    rows = [json.loads(line) for line in (leaking / "test.jsonl").read_text().splitlines()]
    (leaking / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    fewer = own(leaking)
    assert cut(fewer, **settings).recipe() == plain
    assert cut(fewer, **settings, drop_overlap="exact").recipe() != dropping


def test_a_source_that_no_row_tells_is_one_clear_error(tmp_path: Path):
    folder = write(tmp_path / "t", texts(*FILMS), texts("a", "b"))
    one_clear_error(
        lambda: cut(own(folder), by="row", drop_overlap="source").halves,
        "split.drop_overlap: source: the metadata.*source: {column: NAME}.*13gram or exact",
        names="own_reviews",
    )


# ---- families ---------------------------------------------------------------------------------------------------------


def test_neighbours_that_agree_at_their_ends_are_a_family():
    scenarios = [
        "I gave my neighbour the keys before she left.",
        "I gave my neighbour no keys before she left.",
        "I fed the dog.",
        "I gave the dog fresh water.",
        "I gave my neighbour the keys after he came.",
    ]
    assert families(scenarios) == [0, 0, 2, 3, 4]  # the last one stands apart from what it resembles


def test_rows_apart_are_a_family_by_their_text_or_by_thirteen_words():
    rows = [LONG, "a", f"yes {LONG} no", "b", INSIDE, "A ", " ".join(INSIDE.split()[:12])]
    assert families(rows) == [0, 1, 0, 3, 0, 1, 6]
    assert numbered(families(rows)) == [0, 1, 0, 2, 0, 1, 3]


def test_families_grow_from_row_to_row_and_are_named_by_their_first():
    one, two = ([f"{side}{i}" for i in range(13)] for side in "ab")
    bridge = [*one, *two]
    assert families([" ".join(one), "x", " ".join(two), "y", " ".join(bridge)]) == [0, 1, 0, 3, 0]


def test_texts_without_words_and_repeated_texts_are_read():
    assert families(["", "...", "", "..."]) == [0, 1, 0, 1]
    assert families([]) == []
    assert families(["one word", "one word"]) == [0, 0]  # two words in common, and all of the text


ETHICS_LIKE = {
    "deontology": ({"column": "scenario"}, lambda i, k: {"scenario": f"Could you feed cat {i}?", "excuse": f"No, {k}."}),
    "virtue": (
        {"column": "scenario", "before": " [SEP] "},
        lambda i, k: {"scenario": f"Ann sold boat {i}. [SEP] trait {k}"},
    ),
    "justice": (
        {"column": "scenario", "variants": True},
        lambda i, k: {"scenario": f"I visit aunt{i} in town{i} every week but I didn't as cause{k} kept me{k}"},
    ),
    "commonsense": (
        {"column": "scenario", "variants": True},
        lambda i, k: {"scenario": f"I took neighbour{i} to the {'cliff' if k % 2 else 'doctor'}{k} at night{i}."},
    ),
}


@pytest.mark.parametrize(
    ("name", "shuffled"), [*((name, False) for name in ETHICS_LIKE), ("deontology", True), ("virtue", True)]
)
def test_variants_of_one_scenario_stay_on_one_side(tmp_path: Path, name: str, shuffled: bool):
    source, made = ETHICS_LIKE[name]
    rows = [{**made(i, k), "family": i, "label": k % 2} for i in range(40) for k in range(4)]
    if shuffled:
        random.Random(0).shuffle(rows)  # there the text tells them, wherever they stand
    folder = write(tmp_path / "t", rows, rows[:4], doc_to_text="{{scenario}}", metadata={"version": 1, "source": source})
    task = own(folder)
    halves = cut(task).halves
    weak, transfer = ({rows[i]["family"] for i in side} for side in (halves.weak, halves.transfer))
    assert not weak & transfer
    assert len(halves.weak) + len(halves.transfer) == 160
    assert 15 <= len(weak) <= 25


@pytest.mark.parametrize("name", ["justice", "deontology", "virtue", "commonsense"])
def test_ethics_training_rows_have_families_and_its_tasks_can_be_trained_on(name: str):
    task = Harness([]).task(f"w2s_ethics_probe_{name}")
    task.check_trainable()
    sources, contained = task.source_texts()
    assert not contained
    assert 1 < len(set(sources)) <= len(sources)
    split = cut(task)
    sides = ({sources[i] for i in side} for side in (split.halves.weak, split.halves.transfer))
    assert not set.intersection(*sides)


def test_a_ranking_of_pairs_is_not_trainable():
    one_clear_error(Harness([]).task("w2s_ethics_probe_utilitarianism").check_trainable, "scored as a ranking")


def test_neighbouring_variants_of_the_real_training_rows_are_never_parted(real_data: Path):
    for name in ("justice", "commonsense"):
        task = Harness([]).task(f"w2s_ethics_{name}")
        sources, _ = task.source_texts()
        halves = cut(task).halves
        assert not {sources[i] for i in halves.weak} & {sources[i] for i in halves.transfer}
        assert halves.dropped == 0
        assert 0.4 < len(halves.weak) / len(sources) < 0.6
        largest = max(sources.count(source) for source in set(sources[:2000]))
        assert largest < 0.02 * len(sources)


# ---- an experiment ----------------------------------------------------------------------------------------------------


def opened(file: Path, runs: Path, *sets: str) -> Run:
    return open_run(load(str(file), ["arms=[zero_shot]", "split.limit={weak: 40, transfer: 24}", *sets])[0], runs)


def test_an_experiment_drops_them_keeps_families_whole_and_tells_how_many(
    experiment_file: Path, own_task: Path, tmp_path: Path
):
    made = ETHICS_LIKE["justice"][1]
    rows = [{"text": made(i, k)["scenario"], "family": i, "label": k % 2} for i in range(40) for k in range(4)]
    source = {"column": "text", "variants": True}
    write(own_task, rows, rows[:12] + texts("another", "one", family=99), metadata={"version": 1, "source": source})
    flow = opened(experiment_file, tmp_path / "runs", "split.drop_overlap=13gram", "evaluate.limit=4")
    step = flow.layout.steps["split/0"]
    out = tmp_path / "out"
    out.mkdir()
    step.build(flow, out)
    split = json.loads((out / "split.json").read_text())
    assert (split["dropped"], split["overlapping"]) == (0, 12)
    families_of = [{step.task._doc_of[i]["family"] for i in split[side]} for side in ("weak", "transfer")]
    assert not set.intersection(*families_of)
    assert not {0, 1, 2} & set.union(*families_of)


@pytest.mark.parametrize("weak", [1600, None])
def test_the_shipped_experiment_is_laid_out_on_the_real_rows(real_data: Path, weak: int | None):
    sets = [f"split.limit.weak={json.dumps(weak)}"]
    split = Layout.load(load("ethics_commonsense", sets)[0]).steps["split/0"]
    assert isinstance(split, Split)
    assert split.settings.drop_overlap == "13gram"
    assert split.halves.overlapping == 0  # of short scenarios none stands in train
    assert split.size("weak") == weak or 3000 < split.size("weak") < 3700


def test_a_ranking_can_not_be_the_task_of_an_experiment(real_data: Path):
    one_clear_error(
        lambda: Layout.load(load("ethics_commonsense", ["task=w2s_ethics_utilitarianism"])[0]), "it is scored as a ranking"
    )


def test_too_few_rows_are_told_after_the_overlap_is_gone(leaking: Path, experiment_file: Path, tmp_path: Path):
    target = tmp_path / "own_tasks"
    for name in ("train.jsonl", "test.jsonl"):
        (target / name).write_text((leaking / name).read_text())
    train = (target / "train.jsonl").read_text()
    (target / "test.jsonl").write_text(train)
    one_clear_error(
        lambda: (
            opened(experiment_file, tmp_path / "runs", "split={drop_overlap: exact}").layout.steps["split/0"].side("weak")
        ),
        "the weak half is empty",
    )
