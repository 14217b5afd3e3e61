"""w2s-tinker: log-likelihoods and text as w2s-hf has them, every answer kept, one sentence for what is wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from lm_eval.api.instance import Instance
from typer.testing import CliRunner

from trainers.cli import app
from trainers.harness.pool import ModelPool
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.replies import Usage
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.tinker.model import W2STinker, _reply, _scores
from w2s_tasks.models.tinker.service import Service as TinkerAccess

if TYPE_CHECKING:
    from tinker_service import Service

WORDS = "lovely dull brave cold film story plot actor song".split()


@pytest.fixture
def base(causal_model: Callable[[str], Path]) -> Path:
    return causal_model("llama")


@pytest.fixture
def there(base: Path, tinker_service: Service, tmp_path: Path) -> Callable[..., W2STinker]:
    own = {"model": "tiny/base", "tokenizer": str(base), "store": str(tmp_path / "answers"), "timeout": 20}
    return lambda **more: W2STinker(**{**own, **more})


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, i, task_name="t", doc_id=i, metadata=("t", i, 1)) for i, one in enumerate(arguments)]


def choices() -> list[Instance]:
    """Short and long continuations, equal ones, an empty context, a prompt that is too long."""
    pairs = [(f"the {a} and the {b} was", f" {a}") for a in WORDS[:4] for b in WORDS[4:7]]
    pairs += [("", "a film"), ("the film", " was quite brave and lovely"), ("the film", " was quite brave and lovely")]
    return asked("loglikelihood", *pairs, (" ".join(WORDS * 60), " lovely song"))


def test_log_likelihoods_and_greedy_flags_are_those_of_w2s_hf(there: Callable[..., W2STinker], base: Path) -> None:
    lm = there()
    here = W2SHF(str(base), device="cpu", max_length=lm.max_length).loglikelihood(choices(), disable_tqdm=True)
    found = lm.loglikelihood(choices(), disable_tqdm=True)
    assert [x for x, _ in found] == pytest.approx([x for x, _ in here], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in here]


@pytest.mark.parametrize("first", [[None], []])
def test_a_value_for_the_first_token_may_be_null_or_left_out(first: list[None]) -> None:
    answer = SimpleNamespace(prompt_logprobs=[*first, -3.0, -0.25, -0.5], topk_prompt_logprobs=None)
    assert _scores(_reply(answer, Usage(4, 1, 0), "m"), (7, 8)) == (-0.75, True)


def test_text_is_what_w2s_hf_writes(there: Callable[..., W2STinker], base: Path) -> None:
    settings = {"until": ["\n", " film"], "max_gen_toks": 8, "do_sample": False}
    requests = asked("generate_until", *[(f"the {word} was", settings) for word in WORDS])
    here = W2SHF(str(base), device="cpu").generate_until(requests, disable_tqdm=True)
    assert there().generate_until(requests, disable_tqdm=True) == here
    assert len(set(here)) > 1


def test_samples_of_one_prompt_differ_and_come_again(there: Callable[..., W2STinker]) -> None:
    settings = {"until": ["\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = asked("generate_until", *[("the film was", settings)] * 4)
    first = there().generate_until(requests, disable_tqdm=True)
    assert len(set(first)) > 1
    assert there().generate_until(requests, disable_tqdm=True) == first


def test_no_answer_is_asked_for_twice(there: Callable[..., W2STinker], tinker_service: Service, tmp_path: Path) -> None:
    lm = there()
    first = lm.loglikelihood(choices(), disable_tqdm=True)
    done = tinker_service.done("sample")
    assert done == len(choices()) - 1  # two of them are the same
    assert lm.meter.requests == done
    assert there().loglikelihood(choices(), disable_tqdm=True) == first
    assert tinker_service.done("sample") == done
    tinker_service.futures.add("FUTURE sample", "fail", code="user", message="out of luck", skip=5)
    with pytest.raises(UserError, match="out of luck"):
        there(store=str(tmp_path / "other"), num_concurrent=1).loglikelihood(choices(), disable_tqdm=True)
    before = tinker_service.done("sample")
    there(store=str(tmp_path / "other")).loglikelihood(choices(), disable_tqdm=True)
    assert tinker_service.done("sample") - before == done - 5


def test_a_budget_stops_before_it_is_passed(
    there: Callable[..., W2STinker], tinker_service: Service, tmp_path: Path
) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("as_of: 2026-11-01\nmodels:\n  tiny/base: {input: 100.0, output: 100.0}\n")
    with pytest.raises(UserError, match="no price is known for tiny/base"):
        there(max_cost=1.0)
    lm = there(max_cost=0.01, prices=str(table), num_concurrent=1)
    with pytest.raises(UserError, match=r"max_cost \$0.01 does not suffice.*what is answered is stored"):
        lm.loglikelihood(choices(), disable_tqdm=True)
    assert 0 < tinker_service.tokens()["prefill"] * 100 / 1e6 <= 0.01


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": None, "model_path": None}, "needs model=NAME"),
        ({"model_path": "runs/1/final"}, "an address such as tinker://"),
        ({"model": "tiny/bsae"}, "Did you mean 'tiny/base'"),
        ({"model_path": "tinker://nobody:train:0/sampler_weights/none"}, "run again|not there|refused"),
        ({"base_url": "ftp://somewhere"}, "base_url must be an address"),
        ({"tokenizer": "/no/such/folder"}, "does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    change: dict[str, Any], sentence: str, there: Callable[..., W2STinker]
) -> None:
    with pytest.raises(UserError, match=sentence):
        there(**change).loglikelihood(choices()[:1], disable_tqdm=True)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [(None, "needs a key"), ("sk-canary-9b3e5d17a0c2", "starts with tml-"), ("tml-canary-9b3e5d17a0c2", "was not accepted")],
)
def test_a_key_that_is_missing_or_wrong(
    key: str | None, sentence: str, there: Callable[..., W2STinker], tinker_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    from w2s_tasks.models.tinker import service

    if key:
        monkeypatch.setenv("TINKER_API_KEY", key)
    else:
        monkeypatch.delenv("TINKER_API_KEY")
        monkeypatch.setattr(service, "TINKER", tinker_service.base_url)
    with pytest.raises(UserError, match=sentence) as found:
        there().loglikelihood(choices()[:1], disable_tqdm=True)
    assert "canary" not in str(found.value)


def test_an_account_without_money_is_told_in_time(there: Callable[..., W2STinker], tinker_service: Service) -> None:
    tinker_service.faults.add("POST /api/v1/asample", "status", status=402, times=50, message="add a card")
    with pytest.raises(UserError, match=r"no answer within 4 s.*paused due to billing"):
        there(timeout=4).loglikelihood(choices()[:1], disable_tqdm=True)


def test_another_sessions_heartbeat_is_no_reason(tinker_service: Service) -> None:
    def wait() -> None:
        log = logging.getLogger("tinker.lib")
        log.warning("paused")
        log.warning("Session heartbeat failed for 150 seconds for session x")
        time.sleep(5)

    with pytest.raises(UserError, match="Its SDK said last: paused"):
        TinkerAccess(tinker_service.base_url).within("waiting", wait, 0.3)


def test_who_answers_is_known_by_address_model_and_tokenizer(base: Path, tmp_path: Path, tinker_service: Service) -> None:
    def identity(**args: Any) -> str:
        return ModelRef("w2s-tinker", {"model": "tiny/base", "tokenizer": str(base), **args}).identity()

    assert identity() == identity(timeout=5, num_concurrent=1, max_cost=3, api_key_env="OTHER", store="x")
    assert identity() == identity(base_url=tinker_service.base_url)
    others = [identity(model="other"), identity(model_path="tinker://a/b/c"), identity(base_url="http://elsewhere")]
    assert len({identity(), *others}) == 4


def test_the_command_line_has_it(base: Path, tinker_service: Service, tmp_path: Path, own_task: Path) -> None:
    args = f"model=tiny/base,tokenizer={base},store={tmp_path / 'answers'}"
    command = ["eval", "--model", "w2s-tinker", "--model_args", args, "--tasks", "own_reviews", "--limit", "4"]
    done = CliRunner().invoke(app, [*command, "--include_path", str(own_task), "--output_path", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert tinker_service.done("sample") == 8
    found = CliRunner().invoke(app, ["fetch", "tinker://nowhere"])
    assert isinstance(found.exception, UserError) or found.exit_code
    assert ModelPool().load(ModelRef("w2s-tinker", {"model": "tiny/base", "tokenizer": str(base)}))
