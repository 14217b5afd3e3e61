"""OpenAI's protocol at other providers: who is who by its host, each dialect at a stand-in that speaks it, last days."""

from __future__ import annotations

import datetime as dt
import http.client
import io
import json
import re
import shlex
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_support import TEMPLATE
from openai_service import Azure, Nebius, Service
from openai_service.chat import Chat
from openai_service.files import Files
from openai_service.jobs import Jobs
from openai_service.submit import SETTLE
from rich.console import Console

from trainers.config.reading import load, parse
from trainers.fit.openai import OpenAI, base_ref
from trainers.flow import run as ex
from trainers.flow.plan import show_plan
from trainers.flow.progress import Progress
from trainers.services import chat_rows as cr
from trainers.services import service as ft_service
from trainers.services.dialects import DIALECTS, UNKNOWN, Dialect, Trained, dialect_of
from trainers.services.estimate import training_estimate
from trainers.services.job import JobSpec, Submission
from w2s_tasks import doctor
from w2s_tasks.errors import UserError
from w2s_tasks.models import ends
from w2s_tasks.models.chat import wire
from w2s_tasks.models.service import Access, checked_url

KEY = "sk-canary-51c07be94d3a4e12"
DAY = dt.date(2026, 11, 28)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("W2S_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(
        Submission.__init__, "__kwdefaults__", {**(Submission.__init__.__kwdefaults__ or {}), "settle": SETTLE}
    )


# ---- who is who ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("HTTPS://API.OpenAI.COM:443/v1", "openai"),
        ("https://api.openai.com./v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://api.tokenfactory.nebius.com/v1", "nebius"),
        ("https://api.tokenfactory.us-central1.nebius.com/v1", "nebius"),
        ("https://me.openai.azure.com", "azure"),
        ("https://me.openai.azure.com:443/openai/v1", "azure"),
        ("https://me.cognitiveservices.azure.com", "azure"),
        ("https://notopenai.com/v1", None),
        ("https://api.openai.com.evil.org/v1", None),
        ("https://api.openai.com.evil.org./v1", None),
        ("https://evil.org/api.openai.com/v1", None),
        ("https://api-openai.com/v1", None),
        ("https://notnebius.com/v1", None),
        ("https://nebius.com.evil.org/v1", None),
        ("https://mine.westeurope.cloudapp.azure.com/v1", None),
        ("https://openai.azure.com.evil.org", None),
        ("https://api.together.xyz/v1", None),
        ("http://localhost:8000/v1", None),
    ],
)
def test_a_service_is_known_by_its_host_alone(url: str, name: str | None) -> None:
    access = Access(url)
    assert dialect_of(access) is (DIALECTS[name] if name else UNKNOWN)
    assert access.is_openai == (name == "openai")
    assert access.is_azure == (name == "azure")
    assert wire.Endpoint(url, "m").is_openai == (name in ("openai", "azure"))
    assert bool(ends.ends_at(url)) == bool(ft_service.closing_note(access)) == (name == "openai")
    for given, dialect in DIALECTS.items():
        assert dialect_of(access, given) is dialect  # a gateway: what is named goes first


@pytest.mark.parametrize("url", ["https://api.openai.com:8000.evil.org/v1", "https://api.openai.com:99999/v1"])
def test_an_address_with_no_port_in_its_place_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="base_url must be an address"):
        checked_url(url)


def test_the_advice_names_no_service_of_another_protocol_as_one_of_this() -> None:
    assert re.search(r"Nebius.*Azure.*Together, Fireworks and Mistral.*of their own.*not supported", ft_service.ALTERNATIVES)


# ---- a job that a provider keeps little of ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"row {i}"}, {"role": "assistant", "content": str(i % 2)}]}
        for i in range(12)
    ]
    (tmp_path / "train.jsonl").write_text(cr.to_jsonl(rows))
    return tmp_path


def submit(
    service: Service, folder: Path, dialect: Dialect, *, state: str = "state.json", access: Access | None = None, **spec: Any
) -> tuple[str, list[str]]:
    """The job's id and what the user was told."""
    access, notes = access or Access(service.base_url), []
    chosen = JobSpec("base", folder / "train.jsonl", **{"seed": 1, "dialect": dialect} | spec)
    client = ft_service.reading_client(access)
    return Submission(client, access, chosen, folder / state, note=notes.append).submit(), notes


@pytest.mark.parametrize("lost", ["metadata", "seed", "both"])
def test_a_gateway_that_forgets_is_found_out_and_never_paid_twice(folder: Path, lost: str) -> None:
    with Service(models={"base": None}, key=KEY) as service:
        jobs = service.part(Jobs)
        jobs.no_metadata, jobs.no_seed = lost != "seed", lost != "metadata"
        service.faults.add("POST /v1/fine_tuning/jobs", "lost", times=2)
        first, _ = submit(service, folder, UNKNOWN)
        second, told = submit(service, folder, UNKNOWN, seed=2, state="second.json")
        third, told = submit(service, folder, UNKNOWN, hyperparameters={"n_epochs": 2}, state="third.json")
        assert len({first, second, third}) == len(jobs.all) == 3  # one file content, three jobs
        assert len(told) == 1
        assert ("metadata" in told[0]) == jobs.no_metadata
        assert ("no seed" in told[0]) == jobs.no_seed
        for state, spec in (
            ("state.json", {}),
            ("second.json", {"seed": 2}),
            ("third.json", {"hyperparameters": {"n_epochs": 2}}),
        ):
            job = json.loads((folder / state).read_text())["job"]
            (folder / state).unlink()
            assert submit(service, folder, UNKNOWN, state=state, **spec)[0] == job
        assert len(jobs.all) == 3


def test_a_service_that_keeps_all_gets_no_note(folder: Path) -> None:
    with Service(models={"base": None}, key=KEY) as service:
        assert submit(service, folder, DIALECTS["openai"], hyperparameters={"n_epochs": 2})[1] == []


def test_hyperparameters_that_are_not_taken_are_told(folder: Path) -> None:
    with Service(models={"base": None}, key=KEY) as service:
        service.speech.asked = lambda service, request: (json.loads(request.body), {"n_epochs": 3})  # type: ignore[method-assign]
        told = submit(service, folder, UNKNOWN, hyperparameters={"n_epochs": 2, "lora": True})[1]
    assert len(told) == 1
    assert "keeps no n_epochs: 2, lora: True (the job trains" in told[0]


def test_a_service_without_a_list_of_files_knows_the_job_by_the_file_on_disk(folder: Path) -> None:
    with Service(models={"base": None}, key=KEY) as service:
        service.part(Jobs).no_metadata = True
        service.faults.add("GET /v1/files", "status", status=404, times=99)
        first, _ = submit(service, folder, UNKNOWN)
        path = folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"job": None}))
        assert submit(service, folder, UNKNOWN)[0] == first
        assert len(service.part(Jobs).all) == 1


# ---- Nebius -------------------------------------------------------------------------------------------------------


def test_nebius_is_asked_in_its_dialect_and_never_paid_twice(folder: Path) -> None:
    dialect = DIALECTS["nebius"]
    with Service(models={"base": None}, key=KEY, speaks=Nebius()) as service:
        service.faults.add("POST /v1/fine_tuning/jobs", "lost")
        job, _ = submit(service, folder, dialect, hyperparameters={"lora": True, "learning_rate": 2e-4})
        (folder / "state.json").unlink()
        assert submit(service, folder, dialect, hyperparameters={"lora": True, "learning_rate": 2e-4})[0] == job
        [kept] = service.part(Jobs).all.values()
        assert (
            kept.data["hyperparameters"] | {"lora": True, "learning_rate": 2e-4, "n_epochs": 3}
            == kept.data["hyperparameters"]
        )
        with pytest.raises(UserError, match=r"not permitted: (metadata|method)"):
            submit(service, folder, DIALECTS["openai"], state="other.json")  # the stand-in is strict


@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azure_is_asked_in_its_dialect_at_both_addresses(folder: Path, version: str | None) -> None:
    with Service(models={"base": None}, key=KEY, speaks=Azure()) as service:
        address = service.base_url.removesuffix("/v1") + ("" if version else "/openai/v1")
        access = Access(address, api_version=version)
        dialect = dialect_of(access, "azure")
        values = {"hyperparameters": {"n_epochs": 2}, "extra": dict(dialect.extra)}
        job, _ = submit(service, folder, dialect, access=access, **values)
        (folder / "state.json").unlink()
        assert submit(service, folder, dialect, access=access, **values)[0] == job
        [kept] = service.part(Jobs).all.values()
        assert kept.data["hyperparameters"]["n_epochs"] == 2
        assert (kept.data["metadata"] is None) == bool(version)
        with pytest.raises(UserError, match="does not support fine-tuning"):
            submit(service, folder, dialect, access=access, state="other.json")


def test_a_file_that_a_service_finds_wrong_is_told_and_makes_no_job(folder: Path) -> None:
    with Service(models={"base": None}, key=KEY) as service:
        body = {
            "id": "file-1",
            "object": "file",
            "filename": "f",
            "status": "error",
            "status_details": "Line 3 is too long.",
        }
        service.faults.add("POST /v1/files", "body", status=200, body=json.dumps(body).encode())
        with pytest.raises(UserError, match=r"did not accept the file.*Line 3 is too long.*no job was made"):
            submit(service, folder, UNKNOWN)
        assert not service.part(Jobs).all


# ---- experiments --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_model(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers as tf

    folder = tmp_path_factory.mktemp("base")
    tokenizer = tf.AutoTokenizer.from_pretrained(causal_model("llama"))
    tokenizer.chat_template = TEMPLATE
    tf.AutoModelForCausalLM.from_pretrained(causal_model("llama")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def experiment(tmp_path: Path, own_task: Path, encoder_folder: Path) -> Callable[..., ex.Run]:
    def build(strong: str, *sets: str) -> ex.Run:
        path = tmp_path / "small.yaml"
        path.write_text(
            f"""\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.5, limit: {{weak: 16, transfer: 16}}, seed: 0}}
weak: {{model: {encoder_folder}, text: text, epochs: 1}}
strong: {{trainer: openai, poll_seconds: 0.01, n_epochs: 2, {strong}}}
methods: [xent]
arms: [zero_shot, student]
seeds: [0]
evaluate: {{num_fewshot: 0, limit: 4}}
"""
        )
        flow = ex.open_run(load(str(path), list(sets))[0], tmp_path / "runs")
        flow.build(Progress(quiet=True))
        return flow

    return build


@pytest.fixture
def nebius(base_model: Path, tmp_path: Path) -> Iterator[Service]:
    with Service({"org/base": base_model}, key=KEY, folder=tmp_path / "tuned", speaks=Nebius()) as running:
        yield running


def test_an_experiment_at_nebius_says_how_to_deploy_and_goes_on(nebius: Service, experiment: Callable[..., ex.Run]) -> None:
    strong = f'model: org/base, dialect: nebius, base_url: "{nebius.base_url}", hyperparameters: {{learning_rate: 1e-3}}'
    with pytest.raises(UserError, match=r"Nebius Token Factory.*only once it is deployed") as stopped:
        experiment(strong)
    [(job, kept)] = nebius.part(Jobs).all.items()
    assert kept.data["hyperparameters"]["learning_rate"] == 1e-3
    assert kept.data["hyperparameters"]["lora"] is True
    # The command that the user is told, carried out.
    command = shlex.split(str(stopped.value).splitlines()[1])
    header = dict(line.replace("$OPENAI_API_KEY", KEY).split(": ") for line in command if ": " in line and line[0] != "{")
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(command[1]).netloc)
    connection.request("POST", urllib.parse.urlsplit(command[1]).path, command[-1].encode(), header)
    name = json.load(connection.getresponse())["name"]
    connection.close()
    assert name.startswith("org/base-LoRa:w2s-")
    setting = re.search(r"--set (\S+)=NAME", str(stopped.value))
    assert setting
    flow = experiment(strong, f"{setting[1]}={name}")
    assert list(nebius.part(Jobs).all) == [job]
    assert {body["model"] for body in nebius.part(Chat).asked} == {"org/base", name}
    assert "evaluate student, seed 0" in {step.title for step in flow.layout.steps.values()}


def test_an_experiment_at_azure_says_how_to_deploy_and_goes_on(
    base_model: Path, tmp_path: Path, experiment: Callable[..., ex.Run]
) -> None:
    speech = Azure({"own-base": "gpt-base"})
    with Service({"gpt-base": base_model}, key=KEY, folder=tmp_path / "tuned", speaks=speech) as service:
        address = service.base_url.removesuffix("/v1")
        strong = f'model: gpt-base, dialect: azure, base_url: "{address}", api_version: 2024-10-21'  # a date to YAML
        strong += ", model_args: {top_logprobs: 5}, deployments: {gpt-base: own-base}"
        with pytest.raises(UserError, match=r"Azure OpenAI.*only once it is deployed") as stopped:
            experiment(strong)
        [(job, kept)] = service.part(Jobs).all.items()
        assert next(iter(service.part(Files).stored.values())).data["status"] == "processed"
        command = shlex.split(str(stopped.value).splitlines()[1])
        assert command[command.index("--model-name") + 1] == kept.data["fine_tuned_model"]
        name = command[command.index("--deployment-name") + 1]
        speech.deployments[name] = kept.data["fine_tuned_model"]
        experiment(strong, f"strong.deployments.{job}={name}")
        assert list(service.part(Jobs).all) == [job]
        assert {body["model"] for body in service.part(Chat).asked} == {"gpt-base", kept.data["fine_tuned_model"]}


def test_a_model_that_nobody_names_is_one_sentence(experiment: Callable[..., ex.Run], base_model: Path) -> None:
    with Service({"org/base": base_model}, key=KEY, speaks=Nebius()) as service:
        bare = re.sub("learning_rate.*", "", f'model: org/base, base_url: "{service.base_url}"')
        service.speech.asked = lambda service, request: (json.loads(request.body), {"n_epochs": 2, "batch_size": 8})  # type: ignore[method-assign]
        with pytest.raises(UserError, match="succeeded but names no model"):
            experiment(bare, "arms=[student]")


def test_the_commands_name_the_resource_and_the_checkpoint() -> None:
    trained = Trained("ftjob-0a1b2c3d4e5f6a7b", "gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18.ft-0a1b; rm -r ~")
    azure = shlex.split(DIALECTS["azure"].deploy(trained, Access("https://me.openai.azure.com", "AZURE_OPENAI_API_KEY")))  # type: ignore[misc]
    assert azure[azure.index("--name") + 1] == "me"
    assert azure[azure.index("--model-name") + 1] == trained.model  # whatever a service says stays one word
    trained = Trained("ftjob-1", "org/base", None, "ckpt-'2'")
    text = DIALECTS["nebius"].deploy(trained, Access("https://api.tokenfactory.nebius.com/v1", "NEBIUS_API_KEY"))  # type: ignore[misc]
    assert text.startswith("curl https://api.tokenfactory.nebius.com/v0/models")
    assert "$NEBIUS_API_KEY" in text
    assert json.loads(shlex.split(text)[-1])["source"] == "ftjob-1:ckpt-'2'"


# ---- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("dialect: together", "dialect"),
        ("hyperparameters: {n_epochs: 2}", "'n_epochs' is a key of strong itself"),
        ("hyperparameters: {learning_rate: 1e-4}", "OpenAI has no hyperparameter 'learning_rate'.*learning_rate_multiplier"),
        ("dialect: nebius, learning_rate_multiplier: 2", "Nebius Token Factory has no.*Known: batch_size.*learning_rate"),
        ("dialect: nebius, hyperparameters: {lora_rank: 8}", "'lora_rank'.*Did you mean 'lora_r'"),
        ("extra_body: {integrations: [{api_key: x}]}", "looks like a secret"),
        ("extra_body: {model: x}", "'model' is a key of strong itself"),
        ("model_args: {api_version: x}", "'api_version' is a key of strong itself"),
    ],
)
def test_what_a_provider_does_not_know_is_refused_in_the_config(settings: str, said: str) -> None:
    text = f"task: w2s_sst2\nweak: {{model: x}}\nstrong: {{model: m, trainer: openai, {settings}}}\n"
    with pytest.raises(UserError, match=rf"(?s)c\.yaml:3: strong.*{said}"):
        parse(text, "c.yaml")


def test_a_gateway_of_unknown_kind_may_have_any_hyperparameters() -> None:
    settings = OpenAI(model="m", base_url="http://localhost:8000/v1", hyperparameters={"learning_rate": 1e-4})
    assert settings.sent == {"learning_rate": 1e-4}
    assert base_ref(settings).args["model"] == "m"


def test_epochs_that_nebius_takes_are_counted() -> None:
    counts = cr.Counts(10, 1000, 100, 1, 0, 0, {"a": 5, "b": 5})
    assert training_estimate(counts, "m", "auto", DIALECTS["nebius"].epochs).epochs == 3
    assert training_estimate(counts, "m", "auto", UNKNOWN.epochs).epochs == 10
    assert training_estimate(counts, "m", 2, 3).epochs == 2


# ---- special tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|fim_suffix|>", "<|im_start|>", "<|eot_id|>", "<|reserved_200011|>"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_special_token_is_found_before_anything_is_sent(token: str, place: int) -> None:
    rows = [{"messages": [{"role": r, "content": f"{r} {i}"} for r in ("user", "assistant")]} for i in range(12)]
    rows[4]["messages"][place]["content"] = f"so{token}so"
    role = ("user", "assistant")[place]
    with pytest.raises(UserError, match=rf"row 5: the {role} message holds '{re.escape(token)}'.*Leave the row out"):
        cr.check_rows(rows, "gpt-4o-mini")


def test_what_only_looks_like_a_special_token_is_text() -> None:
    rows = [
        {"messages": [{"role": r, "content": f"<|no|> < |endoftext|> {i}"} for r in ("user", "assistant")]}
        for i in range(10)
    ]
    assert cr.check_rows(rows, "gpt-4o-mini").rows == 10


# ---- last days ----------------------------------------------------------------------------------------------------


def _printed(show: Callable[[Console], object]) -> str:
    out = io.StringIO()
    show(Console(file=out, width=200, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize(
    "model", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "ft:gpt-4o-mini-2024-07-18:org:x:1", "gpt-4o-mini-2024-07-18.ft-1"]
)
def test_the_end_of_a_model_is_that_of_its_base(model: str) -> None:
    [end] = [end for end in ends.ends_at("https://api.openai.com/v1", model) if end.models]
    assert end.models == ("gpt-4o-mini",)
    assert not ends.ends_at("http://localhost:8000/v1", model)


def test_days_left_are_counted_to_the_day() -> None:
    end = next(end for end in ends.ENDS if end.day == dt.date(2027, 1, 6))
    assert "39 days left, until 2027-01-06 (copies of its page, as of 2026-11-01)" in end.line(DAY)
    assert "1 day left" in end.line(dt.date(2027, 1, 5))
    assert "ended on 2027-01-06" in end.line(dt.date(2027, 1, 6))
    assert [e.day for e in ends.ENDS] == sorted(e.day for e in ends.ENDS)


def test_plan_and_doctor_say_how_many_days_are_left(own_task: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "task: own_reviews\ninclude_path: [own_tasks]\nweak: {model: x}\n"
        "strong: {model: gpt-4o-mini-2024-07-18, trainer: openai}\narms: [student]\n"
    )
    for sets, expected in ((), True), (["strong.base_url=http://localhost:1/v1"], False):
        text = _printed(lambda console, sets=sets: show_plan(load(str(tmp_path / "a.yaml"), sets)[0], console, DAY))
        assert ("OpenAI, new fine-tuning jobs of all others: 39 days left" in text) == expected
        assert ("gpt-4o-mini and its fine-tuned models: 47 days left, until 2027-01-14" in text) == expected
        assert "gpt-4.1" not in text
    told = {text: ok for ok, text in doctor._services(DAY)}
    assert len(told) == len(ends.ENDS)
    assert {ok for text, ok in told.items() if "ended on" in text} == {None}
    assert sum(ok is True and "days left" in text for text, ok in told.items()) >= 5
