"""Scoring choices from log-probabilities; prices; requests and answers on the wire. No network, no model."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from w2s_tasks.errors import UserError
from w2s_tasks.models import prices
from w2s_tasks.models.chat.choices import ChoiceSet, Position
from w2s_tasks.models.chat.replies import BadReplyError, RefusedError, read_reply
from w2s_tasks.models.chat.wire import (
    Conversation,
    Dialect,
    Endpoint,
    Writer,
    adapted,
    cut,
    resolve_base_url,
)
from w2s_tasks.models.chat.written import parse_choice
from w2s_tasks.models.ref import ModelRef

RATINGS = [f" {i}" for i in range(1, 10)]


def at(token: str, top: dict[str, float]) -> Position:
    """A position from a table of probabilities."""
    return Position(token, math.log(top[token]), tuple((t, math.log(p)) for t, p in top.items()))


def test_all_variants_of_a_choice_are_summed() -> None:
    scores = ChoiceSet.of([" no", " yes"]).score(
        [at("Yes", {"Yes": 0.4, " yes": 0.2, '"yes': 0.1, "YES": 0.05, " No": 0.1, "n": 0.05})]
    )
    assert scores.loglik == pytest.approx((math.log(0.15), math.log(0.75)))
    assert scores.greedy == 1
    assert not any(scores.floored)


def test_a_word_that_only_begins_like_a_choice_does_not_count() -> None:
    scores = ChoiceSet.of(["reasonable", "unreasonable"]).score(
        [at("reason", {"reason": 0.5, "un": 0.2, "Reasonably": 0.2, "really": 0.05})]
    )
    assert scores.loglik == pytest.approx((math.log(0.5), math.log(0.2)))


def test_a_choice_outside_the_list_gets_the_tightest_bound() -> None:
    choices = ChoiceSet.of(["negative", "positive"])
    # The four listed tokens leave 0.2: the least likely of them, 0.1, is the tighter bound.
    scores = choices.score([at("positive", {"positive": 0.4, "A": 0.2, "The": 0.1, "I": 0.1})])
    assert scores.floored == (True, False)
    assert scores.loglik[0] == pytest.approx(math.log(0.1))
    # Here they leave 0.01, which is tighter.
    scores = choices.score([at("positive", {"positive": 0.5, "A": 0.3, "The": 0.19})])
    assert scores.loglik[0] == pytest.approx(math.log(0.01), rel=1e-6)


def test_nothing_listed_is_a_tie_and_says_so() -> None:
    scores = ChoiceSet.of(["negative", "positive"]).score([at("The", {"The": 0.6, "A": 0.3})])
    assert scores.floored == (True, True)
    assert scores.loglik[0] == scores.loglik[1]
    assert scores.greedy is None
    assert not scores.unfinished


def test_a_lead_in_is_passed_at_the_next_position() -> None:
    choices = ChoiceSet.of(['"0"', '"1"'])
    assert choices.has_lead
    first = at('"', {'"': 0.8, "1": 0.15, "0": 0.05})
    assert choices.score([first]).unfinished
    scores = choices.score([first, at("0", {"0": 0.9, "1": 0.1})])
    assert scores.loglik == pytest.approx((math.log(0.05 + 0.8 * 0.9), math.log(0.15 + 0.8 * 0.1)))
    assert scores.greedy == 0


def test_words_that_all_choices_share_are_a_lead_in() -> None:
    choices = ChoiceSet.of(["Option A", "Option B"])
    assert choices.has_lead
    scores = choices.score([at("Option", {"Option": 0.9, "A": 0.1}), at(" B", {" B": 0.7, " A": 0.3})])
    assert scores.greedy == 1
    assert scores.loglik[0] == pytest.approx(math.log(0.9 * 0.3))


def test_ratings_are_told_apart() -> None:
    top = {str(i): i / 100 for i in range(1, 10)}
    scores = ChoiceSet.of(RATINGS).score([at("9", top)])
    assert scores.loglik == pytest.approx([math.log(i / 100) for i in range(1, 10)])


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        (["1", "2", "10"], ["'1'", "'10'"]),
        (["The cat sat", "The dog ran", "A bird"], ["'The cat sat'", "'The dog ran'"]),
        (["no", "none"], ["'no'", "'none'"]),
        (["same", "same"], ["'same'"]),
    ],
)
def test_choices_that_begin_alike_are_refused_by_name(choices: list[str], named: list[str]) -> None:
    with pytest.raises(UserError) as error:
        ChoiceSet.of(choices)
    assert all(name in str(error.value) for name in named)


def test_choices_that_differ_in_case_or_marks_only_stay_apart() -> None:
    assert ChoiceSet.of(["A", "a"]).compatible("a") == [1]
    assert ChoiceSet.of(["(A)", "(B)"]).compatible(" (") == [0, 1]
    assert ChoiceSet.of(["?", "!"]).compatible("!") == [1]


TOKENS = st.sampled_from(["neg", "pos", " positive", "Negative", '"', "The", " a", "\n", "p", "x"])


@given(
    st.lists(st.dictionaries(TOKENS, st.floats(1e-6, 0.09), min_size=1, max_size=9), min_size=1, max_size=4),
    st.data(),
)
def test_a_floor_never_overtakes_a_listed_choice(tables: list[dict[str, float]], data: st.DataObject) -> None:
    positions = [at(data.draw(st.sampled_from(sorted(t))), t) for t in tables]
    scores = ChoiceSet.of(["negative", "positive"]).score(positions)
    listed = [x for x, floored in zip(scores.loglik, scores.floored, strict=True) if not floored]
    floors = [x for x, floored in zip(scores.loglik, scores.floored, strict=True) if floored]
    assert all(math.isfinite(x) and x <= 1e-9 for x in scores.loglik)
    assert all(f <= x for f in floors for x in listed)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"answer": "not wrong"}', 0),
        ("wrong", 1),
        ("Answer: wrong.", 1),
        ('{"answer": ', None),
        ("", None),
        (None, None),
        ("I can't say", None),
        ('```json\n{"answer": "wrong"}\n```', 1),
        ('{"answer": "not wrong"}\n\n\n   ', 0),
        ('{"answer": "not wrong"\n\n', 0),
        ('{\n\n"answer"\n:\n"wro', 1),
        ('{"answer": "', None),
        ('{"answer": 3}', None),
        ('{"verdict": "wrong"}', None),
        ('"not wrong"', 0),
        ('"not wr', 0),
        ('"wrong" or "not wrong"?', None),
        ("{\n\n\n", None),
    ],
)
def test_constrained_answers_are_read(text: str | None, found: int | None) -> None:
    assert parse_choice(text, [" not wrong", " wrong"]) == found


# --- the wire -------------------------------------------------------------------------------------------------------------

ENDPOINT = Endpoint("https://api.openai.com/v1", "gpt-5-o1-mini")


def test_temperature_is_what_the_task_says_whatever_the_models_name() -> None:
    writer = Writer(ENDPOINT, Dialect("max_completion_tokens"))
    settings = {"until": ["\n\n"], "max_gen_toks": 32, "do_sample": False, "temperature": 0.0}
    assert writer.text("Hi", settings, 256).body == {
        "model": "gpt-5-o1-mini",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 32,
        "temperature": 0.0,
        "stop": ["\n\n"],
    }
    assert writer.text("Hi", {"temperature": 0.7, "top_p": 0.9}, 256).body["temperature"] == 0.7
    assert writer.text("Hi", {}, 256).body["temperature"] == 0.0


def test_samples_of_one_prompt_have_keys_of_their_own_and_greedy_answers_share_one() -> None:
    writer = Writer(ENDPOINT, Dialect())
    sampled = {writer.text("Hi", {"temperature": 1.0}, 9, n).key(ENDPOINT) for n in range(3)}
    greedy = {writer.text("Hi", {}, 9, n).key(ENDPOINT) for n in range(3)}
    assert (len(sampled), len(greedy)) == (3, 1)


def test_keys_differ_by_address_model_prompt_and_settings() -> None:
    base = Writer(ENDPOINT, Dialect()).first_token("Hi")
    other_address = Endpoint("http://localhost:1/v1", ENDPOINT.model)
    others = [
        base.key(other_address),
        Writer(Endpoint(ENDPOINT.base_url, "other"), Dialect()).first_token("Hi").key(ENDPOINT),
        Writer(ENDPOINT, Dialect()).first_token("Ho").key(ENDPOINT),
        Writer(ENDPOINT, Dialect(top=5)).first_token("Hi").key(ENDPOINT),
        Writer(ENDPOINT, Dialect(), {"seed": 1}).first_token("Hi").key(ENDPOINT),
    ]
    assert len({base.key(ENDPOINT), *others}) == 6


def test_more_than_four_stops_are_cut_here() -> None:
    body = Writer(ENDPOINT, Dialect()).text("Hi", {"until": list("abcdef")}, 9).body
    assert body["stop"] == list("abcd")
    assert cut("xyf z", list("abcdef")) == "xy"
    assert cut("xyz", []) == "xyz"


def test_messages_stay_messages() -> None:
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi é"}]
    assert Writer(ENDPOINT, Dialect()).first_token(Conversation.of(messages)).body["messages"] == messages
    with pytest.raises(UserError, match="apply_chat_template"):
        Writer(Endpoint("http://x/v1", "m", "completions"), Dialect()).first_token(Conversation.of(messages))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            Dialect("max_completion_tokens"),
        ),
        ("top_logprobs must be less than or equal to 5", Dialect(top=5)),
        ("Requested sample logprobs of 20, which is greater than max allowed: 8", Dialect(top=8)),
        ("logprobs are not supported with reasoning models", Dialect(top=0)),
        ("Unsupported parameter: 'stop'", Dialect(stop=False)),
        ("Input should be 'text' or 'json_object' (response_format)", Dialect(schema="")),
        ("You must not ask that", None),
    ],
)
def test_a_refusal_teaches_the_dialect(message: str, expected: Dialect | None) -> None:
    assert adapted(Dialect(), RefusedError(400, message)) == expected


@pytest.mark.parametrize("data", [None, "<html>", {}, {"choices": []}, {"choices": [{"message": {"content": 3}}]}, [1]])
def test_what_is_no_answer_is_no_answer(data: object) -> None:
    with pytest.raises(BadReplyError):
        read_reply("chat", data)


def test_base_url() -> None:
    assert resolve_base_url("http://localhost:8000/v1/chat/completions/") == "http://localhost:8000/v1"
    for bad in ("localhost:8000", "http://user:secret@host/v1", "https://host/v1?key=secret"):
        with pytest.raises(UserError) as error:
            resolve_base_url(bad)
        assert "secret" not in str(error.value)


def test_the_identity_of_an_endpoint_is_address_and_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    one = ModelRef("w2s-chat", {"model": "m", "max_cost": 3, "api_key_env": "MY_KEY", "num_concurrent": 4})
    assert one.identity() == ModelRef("w2s-chat", {"model": "m", "base_url": "https://api.openai.com/v1/"}).identity()
    assert "MY_KEY" not in one.identity()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert one.identity() == ModelRef("w2s-chat", {"model": "m", "base_url": "http://localhost:8000/v1"}).identity()
    assert one.identity() != ModelRef("w2s-chat", {"model": "m2", "base_url": "http://localhost:8000/v1"}).identity()


# --- prices ---------------------------------------------------------------------------------------------------------------


def test_a_tuned_model_costs_what_its_base_costs_tuned() -> None:
    table = prices.table()
    tuned = table.tokens("ft:gpt-4o-mini-2024-07-18:acme:w2s:abc")
    assert tuned == table.models["gpt-4o-mini"].tuned
    assert table.training("gpt-4o-mini-2024-07-18") == table.training("ft:gpt-4o-mini-2024-07-18:acme::x") == 3.0
    assert table.tokens("my-own-model") is None
    price = table.tokens("gpt-4o-mini")
    assert price is not None
    assert price.cost(1_000_000, 0, cached=1_000_000) == pytest.approx(0.075)
    assert price.cost(1_000_000, 1_000_000, batch=True) == pytest.approx(0.375)


def test_the_users_prices_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(
        "as_of: 2026-11-01\nmodels:\n  gpt-4o-mini: {input: 1, output: 2}\n  mine: {input: 0, output: 0}\n", "utf-8"
    )
    monkeypatch.setenv(prices.ENVIRONMENT, str(file))
    table = prices.table()
    price = table.tokens("gpt-4o-mini")
    assert price is not None
    assert price.cost(1_000_000, 1_000_000) == 3.0
    assert table.tokens("mine") is not None
    assert table.tokens("gpt-4o") is not None
    assert str(table.as_of) == "2026-11-01"


@pytest.mark.parametrize(
    "text", ["as_of: 2026-11-01\nmodels: {m: {input: -1, output: 1}}", "models: {}", "- 1", "{", "as_of: x\nmodels: {}"]
)
def test_a_bad_price_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"prices\.yaml"):
        prices.table(file)


def test_a_stored_conversation_is_json() -> None:
    prompt = Conversation.of([{"role": "user", "content": "Hi"}])
    assert json.loads(json.dumps([prompt])) == ['[{"role": "user", "content": "Hi"}]']


def test_dequantised_weights_are_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf
    import numpy as np

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    dequantise = importlib.import_module("bench.dequantise").dequantise
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "in.gguf", "llama")
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("w", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert dequantise(tmp_path / "in.gguf", tmp_path / "out.gguf") == 1
    read = gguf.GGUFReader(tmp_path / "out.gguf")
    assert read.tensors[0].tensor_type == gguf.GGMLQuantizationType.F32
    assert np.array_equal(read.tensors[0].data, gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
    template, tokens = read.get_field("tokenizer.chat_template"), read.get_field("tokenizer.ggml.tokens")
    assert template is not None
    assert tokens is not None
    assert (template.contents(), tokens.contents()) == ("{{ messages }}", ["a", "b"])
