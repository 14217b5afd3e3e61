"""One job, whatever happens: every kill point and every fault of the service ends with exactly one job, found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_service import ApiError, Service
from openai_service.files import Files
from openai_service.jobs import Jobs
from openai_service.submit import SETTLE, submit

from trainers.services import follow as ft_follow
from trainers.services import job as ft_job
from trainers.services import service as ft_service
from trainers.services.job import JobSpec, State, Submission
from trainers.services.service import reading_client
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat import wire
from w2s_tasks.models.service import Access

KEY = "sk-canary-4f1d9c77e2b84a0d"
REQUESTS = {
    "list": "GET /v1/fine_tuning/jobs",
    "model": "GET /v1/models/base",
    "files": "GET /v1/files",
    "upload": "POST /v1/files",
    "create": "POST /v1/fine_tuning/jobs",
    "poll": r"GET /v1/fine_tuning/jobs/[^/]+",
    "events": r"GET /v1/fine_tuning/jobs/[^/]+/events",
    "checkpoints": r"GET /v1/fine_tuning/jobs/[^/]+/checkpoints",
    "result": r"GET /v1/files/[^/]+/content",
}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("W2S_CACHE", str(tmp_path_factory.mktemp("cache")))
    with Service(models={"base": None}, key=KEY) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"row {i}"}, {"role": "assistant", "content": str(i % 2)}]}
        for i in range(12)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own pauses between repetitions are half a second and more."""
    import openai._base_client as base

    monkeypatch.setattr(base, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(base, "MAX_RETRY_DELAY", 0.02)


def one_job(service: Service) -> None:
    assert len(service.part(Jobs).all) == 1
    assert len([s for s in service.part(Files).stored.values() if s.data["purpose"] == "fine-tune"]) == 1


def submission(service: Service, folder: Path, **settings: object) -> Submission:
    endpoint = Access(service.base_url)
    spec = JobSpec("base", folder / "train.jsonl", hyperparameters={"n_epochs": 2}, seed=1)
    chosen = {"note": lambda text: None, "settle": SETTLE} | settings
    return Submission(reading_client(endpoint), endpoint, spec, folder / "state.json", **chosen)  # type: ignore[arg-type]


def process(service: Service, folder: Path) -> subprocess.Popen[str]:
    script = Path(__file__).parent / "openai_service" / "submit.py"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), service.base_url, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("moment", ["hang_before", "hang_after"])
@pytest.mark.parametrize("request_name", ["list", "upload", "create", "poll", "result"])
def test_a_killed_process_leaves_one_job_that_the_next_run_finds(
    service: Service, folder: Path, request_name: str, moment: str
):
    fault = service.faults.add(REQUESTS[request_name], moment)
    killed = process(service, folder)
    assert fault.reached.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    service.faults.clear()
    name = submit(service.base_url, folder)
    one_job(service)
    assert name in service.models
    assert len(json.loads((folder / "curves.json").read_text())) == 10


def test_a_process_killed_again_and_again_makes_one_job(service: Service, folder: Path):
    for name in ("upload", "create", "create", "list"):
        fault = service.faults.add(REQUESTS[name], "hang_after")
        killed = process(service, folder)
        # A later run may not come to this request any more; then it ends by itself.
        while killed.poll() is None and not fault.reached.wait(0.05):
            pass
        killed.kill()
        killed.wait()
        service.faults.clear()
    submit(service.base_url, folder)
    one_job(service)


@pytest.mark.parametrize("kind", ["reset", "lost", "malformed", "truncated", "slow", "html", "status"])
@pytest.mark.parametrize("request_name", list(REQUESTS))
def test_every_fault_of_every_request_ends_with_one_job(service: Service, folder: Path, request_name: str, kind: str):
    fault = service.faults.add(REQUESTS[request_name], kind)
    name = submit(service.base_url, folder)
    one_job(service)
    assert fault.hits == 1
    assert name in service.models
    assert len(json.loads((folder / "curves.json").read_text())) == 10
    assert (folder / "events.jsonl").read_text().count("\n") >= (0 if request_name == "events" else 13)


def test_429_waits_as_told_and_creates_once(service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr(ft_job.time, "sleep", slept.append)
    service.faults.add(REQUESTS["create"], "status", times=2, status=429, retry_after="7", code="rate_limit_exceeded")
    submission(service, folder).submit()
    one_job(service)
    assert slept.count(7.0) == 2


@pytest.mark.parametrize("kind", ["lost", "status"])
def test_when_no_answer_is_ever_clear_nothing_is_created_again_and_the_next_run_finds_it(
    service: Service, folder: Path, kind: str
):
    service.faults.add(REQUESTS["create"], kind, times=99)
    if kind == "lost":
        assert submission(service, folder).submit()
    else:
        with pytest.raises(UserError, match="creating the job"):
            submission(service, folder).submit()
        assert not service.part(Jobs).all
        service.faults.clear()
        assert submission(service, folder).submit()
    one_job(service)


def test_a_job_that_is_listed_late_is_waited_for(service: Service, folder: Path):
    service.part(Jobs).hidden = 2
    service.faults.add(REQUESTS["create"], "lost")
    submission(service, folder).submit()
    one_job(service)


def test_a_killed_run_waits_for_a_job_that_is_listed_late(service: Service, folder: Path):
    service.part(Jobs).hidden = 3
    first = submission(service, folder)
    with pytest.MonkeyPatch.context() as patch:
        # As if the process had died right after the service took the request.
        patch.setattr(Submission, "_find", lambda self, *, patient: None)
        patch.setattr(ft_job, "once", lambda client: _Dies(client))
        with pytest.raises(KeyboardInterrupt):
            first.submit()
    assert State.load(folder / "state.json", first.key, service.base_url).intent
    assert submission(service, folder).submit()
    one_job(service)


class _Dies:
    """A client whose process ends when the answer to `create` has come."""

    def __init__(self, client: object) -> None:
        self.files = client.files  # type: ignore[attr-defined]
        self.fine_tuning, self.jobs, self._jobs = self, self, client.fine_tuning.jobs  # type: ignore[attr-defined]

    def create(self, **parameters: object) -> None:
        self._jobs.create(**parameters)
        raise KeyboardInterrupt


def test_another_folder_and_a_lost_state_find_the_same_job(service: Service, folder: Path, tmp_path_factory):
    first = submission(service, folder).submit()
    other = tmp_path_factory.mktemp("other")
    (other / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    assert submission(service, other).submit() == first
    (folder / "state.json").write_text('{"run_key": "cut')
    assert submission(service, folder).submit() == first
    one_job(service)


def test_processes_that_submit_at_once_make_one_job(
    service: Service, folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    other = tmp_path_factory.mktemp("other")
    (other / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    service.faults.add(REQUESTS["model"], "slow", times=2, seconds=1.0)  # between the look at the list and the job
    started = [process(service, where) for where in (folder, other)]
    names = [running.communicate(timeout=120)[0].strip() for running in started]
    assert names[0] == names[1] != ""
    one_job(service)


def test_a_provider_that_forgets_metadata_is_asked_by_file(service: Service, folder: Path):
    service.part(Jobs).no_metadata = True
    service.faults.add(REQUESTS["create"], "lost")
    first = submission(service, folder).submit()
    (folder / "state.json").unlink()
    assert submission(service, folder).submit() == first
    one_job(service)


def test_another_seed_or_other_rows_are_another_job(service: Service, folder: Path):
    submission(service, folder).submit()
    keys = {submission(service, folder).key}
    spec = JobSpec("base", folder / "train.jsonl", hyperparameters={"n_epochs": 2}, seed=2)
    keys.add(spec.run_key)
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text().replace("row 3", "row three"))
    keys.add(submission(service, folder).key)
    assert len(keys) == 3
    submission(service, folder).submit()
    assert len(service.part(Jobs).all) == 2


def test_the_suffix_names_the_model_and_makes_no_other_job(folder: Path):
    first, second = (JobSpec("base", folder / "train.jsonl", suffix=s) for s in ("a", "b"))
    assert first.run_key == second.run_key


# ---- how a job can end --------------------------------------------------------------------------------------------


def follow(service: Service, folder: Path, **settings: object) -> object:
    sub = submission(service, folder)
    job_id = sub.submit()
    chosen = {"interval": 0.01, "title": "train", "note": lambda text: None} | settings
    return ft_follow.follow(sub.client, sub.access, job_id, **chosen)  # type: ignore[arg-type]


def test_an_unknown_state_is_not_the_end(service: Service, folder: Path):
    service.part(Jobs).states = ("validating_files", "paused", "awaiting_human_review", "running", "succeeded")
    assert follow(service, folder).status == "succeeded"  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", ["completed", "Completed", "COMPLETE", "success", "JOB_STATE_COMPLETED", "finished"])
def test_a_success_in_other_words_is_a_success(service: Service, folder: Path, word: str):
    service.part(Jobs).states, service.part(Jobs).said = ("running", "succeeded"), {"succeeded": word}
    assert follow(service, folder).fine_tuned_model  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", ["error", "ERRORED", "failure", "user_error", "JOB_STATE_FAILED", "expired", "timed-out"])
def test_a_failure_in_other_words_ends_and_is_told_by_its_word(service: Service, folder: Path, word: str):
    service.part(Jobs).states = ("running", word)
    with pytest.raises(UserError, match=f"ended as '{word}'.*no reason given.*replace"):
        follow(service, folder)


@pytest.mark.parametrize("word", ["canceled", "Cancelled", "aborted", "stopped", "JOB_STATE_CANCELLED"])
def test_a_cancellation_in_other_words_ends(service: Service, folder: Path, word: str):
    service.part(Jobs).states = ("running", word)
    with pytest.raises(UserError, match="was cancelled"):
        follow(service, folder)


def test_a_state_that_nobody_knows_is_told_and_not_polled_for_ever(service: Service, folder: Path):
    service.part(Jobs).states = ("running", "hibernating")
    said: list[str] = []
    with pytest.raises(UserError, match=r"'hibernating'.*not known here.*the same command goes on"):
        follow(service, folder, note=said.append)
    assert any("'hibernating', a state that this program does not know" in line for line in said)
    assert service.count("GET", REQUESTS["poll"].partition(" ")[2]) == ft_follow.PUZZLED
    one_job(service)


def test_waiting_has_a_deadline_and_leaves_the_job(service: Service, folder: Path):
    service.part(Jobs).states = ("running",)
    with pytest.raises(UserError, match=r"has not ended.*max_hours.*'running'.*goes on waiting"):
        follow(service, folder, patience=0.05)
    one_job(service)


def test_an_outage_has_the_same_deadline(service: Service, folder: Path):
    service.faults.add(REQUESTS["poll"], "status", times=1000, status=503)
    with pytest.raises(UserError, match=r"has not ended.*no answer"):
        follow(service, folder, patience=0.05)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"<html>Sign in to the network</html>", "text/html", "Sign in to the network"),
        (b'{"error": {"message": "Insufficient credits", "code": 402}}', "application/json", "Insufficient credits"),
        (b'["a list"]', "application/json", "a list"),
        (b"null", "application/json", "None"),
        (b"", "application/json", "no job"),
        (b"\xff\xfe\x00", "application/json", "no job"),
    ],
)
def test_an_answer_that_is_no_job_is_told_and_not_asked_for_ever(service: Service, folder: Path, body, kind, said):
    service.faults.add(REQUESTS["poll"], "body", status=200, times=1000, body=body, content_type=kind)
    with pytest.raises(UserError, match=said):
        follow(service, folder)


def test_a_job_of_which_nearly_nothing_is_told_is_followed(service: Service, folder: Path):
    """Azure and others leave out or null what OpenAI's own jobs hold, events and their messages too."""
    bare = {"id": "ftjob-x", "status": "succeeded", "fine_tuned_model": "ft:m"}
    sub = submission(service, folder)
    job_id = sub.submit()
    service.faults.add(REQUESTS["poll"], "body", status=200, body=json.dumps(bare | {"status": "running"}).encode())
    service.faults.add(REQUESTS["poll"], "body", status=200, body=json.dumps(bare).encode())
    event = {"id": "e", "object": "fine_tuning.job.event", "message": None, "data": None, "type": None, "level": None}
    page = json.dumps({"object": "list", "data": [event, {"id": "f"}], "has_more": True}).encode()
    service.faults.add(REQUESTS["events"], "body", status=200, times=1000, body=page)
    service.faults.add(REQUESTS["checkpoints"], "body", status=200, times=1000, body=b'{"data": null}')
    job = ft_follow.follow(sub.client, sub.access, job_id, interval=0.01, title="train", note=lambda text: None)
    outcome = ft_follow.collect(sub.client, job, note=lambda text: None)
    assert [e["id"] for e in outcome.events] == ["f", "e"]
    assert (outcome.checkpoints, outcome.curve) == ([], [])


@pytest.mark.parametrize(
    ("states", "error", "said"),
    [
        (("running", "cancelled"), None, r"was cancelled.*strong\.replace=\[ftjob-"),
        (
            ("running", "failed"),
            {"code": "server_error", "message": "A node broke.", "param": None},
            "A node broke.*replace",
        ),
        (
            ("validating_files", "failed"),
            {"code": "unsafe_file", "message": "This training file was blocked by our moderation system.", "param": None},
            "moderation blocked.*ETHICS.*lora",
        ),
        (("running", "failed"), {"code": "exceeded_quota", "message": "Quota.", "param": None}, "quota.*Add credit"),
    ],
)
def test_a_bad_end_is_one_sentence_and_costs_no_second_job(service: Service, folder: Path, states, error, said):
    service.part(Jobs).states, service.part(Jobs).error = states, error
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            follow(service, folder)
    one_job(service)


def test_a_failed_job_is_replaced_only_where_it_is_named(service: Service, folder: Path):
    jobs = service.part(Jobs)
    jobs.states = ("running", "failed")
    with pytest.raises(UserError):
        follow(service, folder)
    jobs.states = ("running", "succeeded")
    failed = next(iter(jobs.all))
    second = submission(service, folder, ignore=[failed]).submit()
    assert second != failed
    assert submission(service, folder, ignore=[failed]).submit() == second
    assert len(jobs.all) == 2
    (folder / "state.json").unlink()
    assert submission(service, folder).submit() in (failed, second)
    assert len(jobs.all) == 2


def test_the_service_checks_the_file_too(service: Service, folder: Path):
    (folder / "train.jsonl").write_text("\n".join((folder / "train.jsonl").read_text().splitlines()[:9]) + "\n")
    with pytest.raises(UserError, match="at least 10 examples"):
        follow(service, folder)


def test_an_outage_while_a_job_runs_is_waited_out(service: Service, folder: Path):
    service.faults.add(REQUESTS["poll"], "status", times=14, status=503)
    assert follow(service, folder).status == "succeeded"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "invalid_api_key", "the key in .OPENAI_API_KEY was not accepted"),
        (403, "model_not_available", "not permitted.*trainer: lora.*Azure"),
        (429, "insufficient_quota", "quota is used up.*Add credit"),
        (400, "billing_hard_limit_reached", "quota is used up"),
        (400, "invalid_request", "refused with 400"),
        (404, "not_found", "not found"),
    ],
)
@pytest.mark.parametrize("request_name", ["create", "upload"])
def test_a_refusal_is_one_sentence_and_no_job(service: Service, folder: Path, status, code, said, request_name: str):
    message = f"Incorrect API key provided: {KEY}."
    service.faults.add(REQUESTS[request_name], "status", status=status, code=code, message=message)
    with pytest.raises(UserError, match=said) as caught:
        submission(service, folder).submit()
    assert KEY not in str(caught.value)
    assert not service.part(Jobs).all
    assert service.count(*REQUESTS["create"].split(" ")) <= 1
    submission(service, folder).submit()
    one_job(service)


def test_a_retired_model_stops_before_anything_is_sent(service: Service, folder: Path):
    service.models["base"].shutdown_date = "2025-01-14"
    with pytest.raises(UserError, match=r"was retired on 2025-01-14.*nothing was sent"):
        submission(service, folder).submit()
    assert not service.part(Files).stored
    service.models["base"].shutdown_date = "2999-01-14"
    notes: list[str] = []
    submission(service, folder, note=notes.append).submit()
    assert any("2999-01-14" in n for n in notes)


def test_an_unknown_model_stops_before_anything_is_sent(service: Service, folder: Path):
    del service.models["base"]
    with pytest.raises(UserError, match="no model 'base'"):
        submission(service, folder).submit()
    assert not service.part(Files).stored


def test_a_budget_stops_before_anything_is_sent(service: Service, folder: Path):
    def refuse() -> None:
        raise UserError("too dear")

    with pytest.raises(UserError, match="too dear"):
        submission(service, folder, approve=refuse).submit()
    assert not service.part(Files).stored
    submission(service, folder).submit()
    submission(service, folder, approve=refuse).submit()  # the job is there: nothing new is spent
    one_job(service)


def test_no_key_names_the_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        reading_client(Access())


def test_the_closing_dates_are_told_to_openais_customers_only():
    assert "2027-01-06" in str(ft_service.closing_note(Access()))
    assert "trainer: lora" in str(ft_service.closing_note(Access()))
    for other in ("https://api.together.xyz/v1", "https://notopenai.com/v1", "https://api.openai.com.evil.org/v1"):
        assert ft_service.closing_note(Access(other)) is None
        assert not wire.Endpoint(other, "m").is_openai
    assert Access("https://eu.api.openai.com/v1").is_openai
    assert wire.Endpoint("https://me.openai.azure.com", "m").is_openai


def test_a_create_that_the_service_forbids_says_so(service: Service, folder: Path):
    service.part(Jobs).refusal = ApiError(403, "Fine-tuning is closed for your organization.", "training_not_available")
    with pytest.raises(UserError, match=r"closed for your organization.*lora"):
        submission(service, folder).submit()


# ---- curves -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("setting", "value"), [("base64_results", True), ("no_results", True), ("base64_results", False)])
def test_results_in_any_form_become_a_curve(service: Service, folder: Path, setting: str, value: bool):
    setattr(service.part(Jobs), setting, value)
    submit(service.base_url, folder)
    curve = json.loads((folder / "curves.json").read_text())
    assert [p["step"] for p in curve] == list(range(1, 11))
    assert curve[0]["loss"] == pytest.approx(1.0)
    assert curve[-1]["epoch"] == 2


def test_a_csv_with_holes_and_nan_is_read():
    text = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,0.5,,,\n2,nan,0.5,0.25,0.75\n,1,1,1,1\n"
    assert ft_follow.curve_of_csv(text) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "accuracy": 0.5, "eval_loss": 0.25, "eval_token_accuracy": 0.75},
    ]
    assert ft_follow.curve_of_csv("") == []
