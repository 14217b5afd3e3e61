"""Whatever stands in a file, its reader returns or raises a UserError: hypothesis over the parsers and loaders.

A few examples by default; `HYPOTHESIS_PROFILE=long` runs a thousand times as many. What was found stands as cases in
test_bad_input_config.py and test_bad_input_data.py.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainers.commands.sweep import parse_grid
from trainers.config import experiment as config
from trainers.config import reading
from trainers.fit.classifier import Classifier
from trainers.fit.lora import Lora
from trainers.labels.label_set import LabelSet
from trainers.labels.splits import SplitSettings
from w2s_tasks.errors import UserError
from w2s_tasks.models import prices
from w2s_tasks.models.recorded import read_replies
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.scoring import answers
from w2s_tasks.user_text import parse_yaml

few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=8
)
GOOD: dict[str, Any] = {"task": "t", "weak": {"model": "m"}, "strong": {"model": "s"}}
KEYS = st.sampled_from(sorted(config.Experiment.model_fields))
INNER = st.sampled_from(sorted({*Classifier.model_fields, *Lora.model_fields, *SplitSettings.model_fields}))
YAML_TEXT = st.text(alphabet=st.sampled_from(list("ab:,-[]{}&*!|>#'\"%@`?<~ .0159\n\t\0\ufeffé\u2028")), max_size=60)


@contextlib.contextmanager
def only_user_errors() -> Iterator[None]:
    with contextlib.suppress(UserError):
        yield


@few
@given(YAML_TEXT)
@example("a: &a [*a]")
@example("? {a: b}\n: c")
@example("2026-02-30")
@example("0b_")
@example("!!timestamp x")
@example("!!int ''")
@example("<<: 3")
@example("=")
def test_yaml_text(text: str):
    with only_user_errors():
        parse_yaml(text, "x.yaml")
    with only_user_errors():
        reading.parse(text, "x.yaml")
    with only_user_errors():
        reading.parse(json.dumps(GOOD), "x.yaml", [f"weak.lr={text}", text])
    with only_user_errors():
        parse_grid([f"seed={text}", text])


@few
@given(KEYS, VALUES)
@example("strong", {"trainer": ["lora"]})
@example("strong", {"trainer": {}, "model": "x"})
@example("method_args", {"bootstrap": {"chain": [{"model": None}]}})
@example("method_args", {"ensemble": {"members": [{"seed": "x"}]}})
@example("method_args", {"ensemble": {"members": [{"seed": [1]}]}})
def test_any_value_of_any_key(key: str, value: Any):
    with only_user_errors():
        reading.parse(json.dumps(GOOD | {key: value}), "x.yaml")


@few
@given(st.sampled_from(["weak", "strong", "split", "safety", "evaluate", "unsupervised"]), INNER, VALUES)
def test_any_value_of_any_inner_key(section: str, key: str, value: Any):
    with only_user_errors():
        reading.parse(json.dumps(GOOD | {section: {**GOOD.get(section, {}), key: value}}), "x.yaml")


@few
@given(st.dictionaries(st.sampled_from(["as_of", "models", "x"]), VALUES))
def test_price_tables(data: dict[str, Any]):
    with tempfile.TemporaryDirectory() as folder, only_user_errors():
        path = Path(folder, "p.yaml")
        path.write_text(json.dumps(data))
        prices.table(path)


CELLS = st.none() | st.integers(-(2**62), 2**62) | st.floats() | st.text(max_size=5) | st.lists(st.floats(), max_size=3)


@few
@given(
    st.dictionaries(st.sampled_from(["row_id", "soft", "hard", "gold"]), st.lists(CELLS, min_size=2, max_size=2), min_size=3)
)
def test_label_sets_of_any_cells(columns: dict[str, list[Any]]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "l.parquet")
        base = {"row_id": ["a", "b"], "soft": [[0.9, 0.1], [0.2, 0.8]], "hard": [0, 1], "gold": [0, 0]}
        try:
            table = pa.table(base | columns)
        except (pa.ArrowException, OverflowError):
            return  # a column of such cells can't be
        pq.write_table(table, path)
        with only_user_errors():
            LabelSet.load(path)


@few
@given(st.binary(max_size=400), st.integers(0, 10_000), st.integers(0, 10_000))
def test_label_sets_of_damaged_bytes(noise: bytes, start: int, length: int):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "l.parquet")
        pq.write_table(pa.table({"row_id": ["a"], "soft": [[0.9, 0.1]], "hard": [0], "gold": [0]}), path)
        data = path.read_bytes()
        place = start % len(data)
        path.write_bytes(data[:place] + noise + data[place + length % (len(data) - place) :])
        with only_user_errors():
            LabelSet.load(path)


@few
@given(st.lists(VALUES | st.fixed_dictionaries({"prompt": VALUES, "response": VALUES}), max_size=3), st.binary(max_size=20))
def test_recorded_replies(records: list[Any], noise: bytes):
    text = "\n".join(json.dumps(r) for r in records).encode() + noise
    with tempfile.TemporaryDirectory() as folder:
        for name in ("r.jsonl", "justice_1.json", "samples_t_2026-01-01T00-00-00.jsonl"):
            path = Path(folder, name)
            path.write_bytes(text)
            with only_user_errors():
                read_replies(path)


@few
@given(st.dictionaries(st.sampled_from(["doc_id", "arguments", "resps", "prompt"]), VALUES))
def test_samples_of_any_values(record: dict[str, Any]):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "samples_t_2026-01-01T00-00-00.jsonl")
        path.write_text(json.dumps({"resps": [["a"]]} | record))
        with only_user_errors():
            read_replies(path)


@few
@given(VALUES, VALUES)
def test_evaluations_of_any_values(data: Any, row: Any):
    with tempfile.TemporaryDirectory() as folder:
        whole = {"configs": {"t": {}}, "n-samples": {"t": {"effective": 1}}, "results": {"t": {}}}
        Path(folder, "results_x.json").write_text(json.dumps(whole | data if isinstance(data, dict) else data))
        Path(folder, "samples_t_x.jsonl").write_text(json.dumps(row) + "\n")
        with only_user_errors():
            read_evaluation(Path(folder))


@few
@given(
    st.text(max_size=200) | st.text(alphabet="0123456789.- ", max_size=400),
    st.sampled_from([["unreasonable", "reasonable"], ["no", "yes"], [str(i) for i in range(1, 11)]]),
)
@example("9" * 400, [str(i) for i in range(1, 11)])
@example("0." + "9" * 400, ["no", "yes"])
def test_parsers_of_replies_read_any_text(reply: str, choices: list[str]):
    for name, parse in answers.PARSERS.items():
        found = None
        with contextlib.suppress(ValueError):  # choices that the study's own parser does not know
            found = parse(reply, choices)
        # The study's parser reads ratings that are not on the scale, by intention.
        assert found is None or name == "published" or 0 <= found < len(choices)


@few
@given(st.text(max_size=200), st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4, unique=True))
def test_parsers_take_any_choices(reply: str, choices: list[str]):
    for parse in (answers.strict, answers.lenient):
        found = parse(reply, choices)
        assert found is None or 0 <= found < len(choices)
