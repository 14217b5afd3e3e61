"""A run whose stages stand in an object store, over HTTP against real servers: races, kills, faults, hostile content."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import s3_servers
from typer.testing import CliRunner

from trainers import cli
from trainers.report.report import here, read_report
from trainers.store import claims, objects, remote, snapshots
from trainers.store.objects import S3, open_objects
from trainers.store.remote import Remote, Stored, open_remote
from trainers.store.stages import CHECKPOINTS, MANIFEST, Store
from w2s_tasks.errors import UserError

pytest.importorskip("boto3", reason="needs boto3: pip install '.[s3]'")

RECIPE = {"kind": "x", "a": 1}
ARMS = "arms=[student, ceiling]"


@pytest.fixture(scope="module", params=["moto", pytest.param("seaweed", marks=pytest.mark.slow)])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a bucket."""
    folder = tmp_path_factory.mktemp("server")
    with s3_servers.moto() if request.param == "moto" else s3_servers.seaweed(folder) as address:
        with s3_servers.environment(address):
            s3_servers.make_bucket()
        yield address


@pytest.fixture
def url(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store of the test's own."""
    monkeypatch.setattr(remote, "_opened", {})
    monkeypatch.setattr(remote, "POLL", 0.1)
    with s3_servers.environment(endpoint):
        yield f"s3://{s3_servers.BUCKET}/{tmp_path.name}"


def store_of(url: str, machine: Path) -> Store:
    """The store as a machine with its own disk sees it."""
    return Store(machine, remote=Remote(open_objects(url).writable(), "exp"))


def writer(text: str, built: list[str] | None = None) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        (out / "deep").mkdir()
        (out / "deep" / "data.txt").write_text(text)
        (out / "other.txt").write_text("other")
        if built is not None:
            built.append(text)

    return build


def names(url: str) -> list[str]:
    return [one.name for one in open_objects(url).listed("")]


# ---- stages -------------------------------------------------------------------------------------------------------------


def test_what_one_machine_built_another_one_reads(url: str, tmp_path: Path):
    first = store_of(url, tmp_path / "a").build("x", RECIPE, writer("one"))
    second = store_of(url, tmp_path / "b").build("x", RECIPE, writer("two"))
    assert (first.reused, second.reused) == (False, True)
    assert not second.folder.exists()  # nothing comes down that nobody reads
    assert second.file("other.txt").read_text() == "other"  # type: ignore[union-attr]
    assert not second.folder.exists()
    assert second.file("none.txt") is None
    assert (second.path / "deep" / "data.txt").read_text() == "one"
    assert json.loads((second.path / MANIFEST).read_text()) == json.loads((first.path / MANIFEST).read_text())
    left = [n for n in names(url) if "claims" in n or "checkpoints" in n]
    assert left == []


def test_a_stage_that_is_only_here_goes_up(url: str, tmp_path: Path):
    key = Store(tmp_path / "a").build("x", RECIPE, writer("one")).key  # without a store
    assert store_of(url, tmp_path / "b").find("x", key) is None
    assert store_of(url, tmp_path / "a").find("x", key) is not None
    assert (store_of(url, tmp_path / "b").find("x", key).path / "deep/data.txt").read_text() == "one"  # type: ignore[union-attr]


def test_a_half_written_stage_is_not_there_and_is_finished_by_the_next_machine(url: str, tmp_path: Path):
    store = store_of(url, tmp_path / "a")
    stage = store.build("x", RECIPE, writer("one"))
    S3(url).delete([f"exp/stages/x-{stage.key}.json", next(n for n in names(url) if n.endswith("other.txt"))])
    other = store_of(url, tmp_path / "b")
    assert other.find("x", stage.key) is None
    again = other.build("x", RECIPE, writer("one"))
    assert not again.reused
    assert (store_of(url, tmp_path / "c").find("x", stage.key).path / "other.txt").read_text() == "other"  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["altered", "truncated", "removed"])
def test_an_altered_file_is_never_read_and_can_be_dropped(url: str, tmp_path: Path, damage: str):
    stage = store_of(url, tmp_path / "a").build("x", RECIPE, writer("one"))
    name = next(n for n in names(url) if n.endswith("data.txt"))
    if damage == "removed":
        S3(url).delete([name])
    else:
        S3(url).write(name, {"altered": b"onE", "truncated": b""}[damage])
    there = store_of(url, tmp_path / "b").find("x", stage.key)
    assert there is not None
    with pytest.raises(UserError, match=r"deep/data.txt is missing or altered.*store verify .* --drop"):
        _ = there.path
    assert not there.folder.exists()
    told = CliRunner().invoke(cli.app, ["store", "verify", f"{url}/exp", "--drop"])
    assert told.exit_code == 1
    assert "0 of 1 stages are whole; the others are removed" in told.output
    assert not store_of(url, tmp_path / "b").build("x", RECIPE, writer("one")).reused


@pytest.mark.parametrize("name", ["../../outside.txt", "/outside.txt", "a/../../outside.txt"])
def test_a_manifest_that_leads_out_of_its_folder_writes_nothing(url: str, tmp_path: Path, name: str):
    key = "0123456789abcdef"
    body = {"kind": "x", "key": key, "seconds": 1, "files": {name: "0" * 64}}
    S3(url).write(f"exp/stages/x-{key}.json", json.dumps(body).encode())
    store = store_of(url, tmp_path / "deep" / "a")
    with pytest.raises(UserError, match="leads out of its folder"):
        _ = store.find("x", key).path  # type: ignore[union-attr]
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_report_that_names_a_stage_outside_of_its_folder_writes_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "deep" / "cache"))
    outside = "../../../outside"
    S3(url).write("exp/report.json", json.dumps({"stages": {"fit": outside}}).encode())
    body = {"kind": "x", "key": "k", "seconds": 1, "files": {}}
    S3(url).write(f"exp/stages/{outside}.json", json.dumps(body).encode())
    with pytest.raises(UserError, match="leads out of its folder"):
        here(f"{url}/exp", stages=True)
    assert not list(tmp_path.rglob("outside*"))


def test_what_was_written_over_is_read_anew_and_what_is_the_same_stays(url: str, tmp_path: Path):
    stored = Stored(open_objects(url), "exp")
    for name, text in (("a.json", b"old"), ("b.json", b"same")):
        S3(url).write(f"exp/cells/{name}", text)
    stored.pull(tmp_path, "cells/")
    stamp = (tmp_path / "cells" / "b.json").stat().st_mtime_ns
    S3(url).write("exp/cells/a.json", b"new")  # as long as it was
    stored.pull(tmp_path, "cells/")
    assert (tmp_path / "cells" / "a.json").read_bytes() == b"new"
    assert (tmp_path / "cells" / "b.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"kind": "x"}', '{"kind": 1, "key": "k", "seconds": 1, "files": {}}'])
def test_what_is_no_manifest_is_one_clear_error(url: str, tmp_path: Path, text: str):
    S3(url).write("exp/stages/x-0.json", text.encode())
    with pytest.raises(UserError, match="not a stage's manifest"):
        store_of(url, tmp_path).find("x", "0")


# ---- claims -------------------------------------------------------------------------------------------------------------


def test_of_many_claimants_one_wins(url: str):
    machines = [S3(url) for _ in range(12)]
    for turn in range(10):
        with ThreadPoolExecutor(12) as pool:
            taken = list(pool.map(lambda one, name=f"c/{turn}": claims.take(one, name), machines))
        assert sum(not isinstance(one, str) for one in taken) == 1
        holder = f"{os.uname().nodename}:{os.getpid()}"
        assert {one for one in taken if isinstance(one, str)} == {holder}


def test_of_many_that_take_over_a_stale_claim_one_wins(url: str, monkeypatch: pytest.MonkeyPatch):
    claims.take(S3(url), "c")  # its owner never writes again
    assert isinstance(claims.take(S3(url), "c"), str)
    monkeypatch.setattr(claims, "STALE", 4.0)
    machines = [S3(url) for _ in range(12)]
    time.sleep(5.1)  # the server's clock has whole seconds
    with ThreadPoolExecutor(12) as pool:
        taken = list(pool.map(lambda one: claims.take(one, "c"), machines))
    assert sum(not isinstance(one, str) for one in taken) == 1


def test_a_claim_lives_as_long_as_its_owner_and_knows_when_it_is_lost(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claims, "STALE", 2.0)
    monkeypatch.setattr(claims, "BEAT", 0.3)
    mine = claims.take(S3(url), "c")
    assert not isinstance(mine, str)
    with mine:
        time.sleep(3.5)
        assert isinstance(claims.take(S3(url), "c"), str)
        S3(url).write("c", b'{"by": "somebody else"}')  # took it over while this machine was asleep
        time.sleep(1)
        assert mine.lost
    assert S3(url).read("c") is not None  # another machine's is not given back
    S3(url).delete(["c"])
    again = claims.take(S3(url), "c")
    assert not isinstance(again, str)
    with again:
        pass
    assert S3(url).read("c") is None


def test_a_stage_is_built_once_by_machines_that_start_at_once(url: str, tmp_path: Path):
    built: list[str] = []

    def slow(out: Path) -> None:
        writer("one", built)(out)
        time.sleep(0.5)

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: store_of(url, tmp_path / str(n)).build("x", RECIPE, slow), range(6)))
    assert len(built) == 1
    assert sorted(stage.reused for stage in made) == [False, *[True] * 5]
    assert {(stage.path / "deep/data.txt").read_text() for stage in made} == {"one"}


def test_two_builders_of_one_stage_damage_nothing(url: str, tmp_path: Path):
    """One that was taken for dead ends later: what the first one wrote counts."""
    late = store_of(url, tmp_path / "late")
    late.build("x", RECIPE | {"a": 2}, writer("warm"))

    def overtaken(out: Path) -> None:
        S3(url).delete([n for n in names(url) if "claims/x-" in n])
        assert not store_of(url, tmp_path / "other").build("x", RECIPE, writer("first")).reused
        writer("second")(out)

    key = late.build("x", RECIPE, overtaken).key
    third = store_of(url, tmp_path / "third").find("x", key)
    assert third is not None
    assert (third.path / "deep/data.txt").read_text() == "first"


# ---- faults of a server -------------------------------------------------------------------------------------------------


def failing(endpoint: str, status: int, code: str, *, first: int = 10**9, method: str = "PUT") -> s3_servers.Faulty:
    """A server whose first answers to such requests are errors."""
    left = [first]

    def fault(request: object) -> tuple[int, str] | None:
        if getattr(request, "command", "") != method or "files/" not in getattr(request, "path", "") or left[0] <= 0:
            return None
        left[0] -= 1
        return status, code

    return s3_servers.Faulty(endpoint, fault)


def test_a_server_that_fails_for_a_moment_is_asked_again(url: str, endpoint: str, tmp_path: Path):
    with failing(endpoint, 500, "InternalError", first=2) as server, s3_servers.environment(server.url):
        store_of(url, tmp_path / "a").build("x", RECIPE, writer("one"))
    assert (store_of(url, tmp_path / "b").build("x", RECIPE, writer("two")).path / "deep/data.txt").read_text() == "one"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (500, "InternalError", "the server failed"),
        (403, "QuotaExceeded", "the store is full"),
        (507, "InsufficientStorage", "the store is full"),
        (403, "AccessDenied", "access was refused"),
    ],
)
def test_a_failed_upload_loses_nothing(
    url: str, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
):
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    failure = pytest.raises(UserError, match=f"{message}.*What was finished is kept in the run folder")
    with failing(endpoint, status, code) as server, s3_servers.environment(server.url), failure:
        store_of(url, tmp_path / "a").build("x", RECIPE, writer("one"))
    assert not [n for n in names(url) if "/stages/" in n]
    built: list[str] = []
    stage = store_of(url, tmp_path / "a").build("x", RECIPE, writer("two", built))  # goes up without being built again
    assert (built, stage.reused) == ([], True)
    assert (store_of(url, tmp_path / "b").find("x", stage.key).path / "deep/data.txt").read_text() == "one"  # type: ignore[union-attr]


def test_a_server_without_conditional_writes_is_refused(url: str, endpoint: str):
    server = s3_servers.Faulty(endpoint, lambda _: None, drop_conditions=True)
    with server, s3_servers.environment(server.url), pytest.raises(UserError, match="If-None-Match is ignored"):
        open_objects(url).writable()


def test_a_retried_write_that_had_succeeded_is_ones_own(url: str, endpoint: str):
    answered: list[str] = []

    def lost(request: object) -> tuple[int, str] | None:
        """The write happens, and its answer is lost once."""
        if getattr(request, "command", "") == "PUT" and not answered:
            answered.append("lost")
            S3(url).write("c", body[0])
            return 500, "InternalError"
        return None

    body: list[bytes] = []
    direct = S3(url)
    with s3_servers.Faulty(endpoint, lost) as server:
        with s3_servers.environment(server.url):
            through = S3(url)
        body.append(b"mine")
        assert through.create("c", b"mine") is not None
        answered.clear()
        body[0] = b"newer"
        found = direct.read("c")
        assert found is not None
        assert through.replace("c", b"newer", found.version) is not None
    assert direct.create("c", b"another's") is None


def test_wrong_keys_no_keys_and_no_bucket_are_one_clear_error_each(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    refused = s3_servers.Faulty(endpoint, lambda _: (403, "InvalidAccessKeyId"))
    with s3_servers.environment(endpoint):
        with pytest.raises(UserError, match=r"there is no bucket 'nobody-has-this'|access was refused"):  # SeaweedFS' answer
            open_objects("s3://nobody-has-this/p").writable()
        with refused:
            os.environ["AWS_ENDPOINT_URL"] = refused.url
            with pytest.raises(UserError, match="access was refused") as told:
                open_objects("s3://bucket/p").writable()
            assert s3_servers.KEYS["AWS_SECRET_ACCESS_KEY"] not in str(told.value)
        os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:1"
        monkeypatch.setattr(objects, "ATTEMPTS", 1)
        with pytest.raises(UserError, match="no answer"):
            open_objects("s3://bucket/p").writable()
        del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        with pytest.raises(UserError, match="no credentials"):
            open_objects("s3://bucket/p").writable()
    with pytest.raises(UserError, match="no bucket"):
        open_objects("s3://")
    with pytest.raises(UserError, match="a store's URL holds no keys") as told:
        open_objects("s3://AKIA123:topsecret@bucket/p")
    assert "topsecret" not in str(told.value)


def test_what_cannot_be_shared_is_read_only(tmp_path: Path, experiment_file: Path):
    stage = Store(tmp_path / "a").build("x", RECIPE, writer("one"))
    place = tmp_path / "elsewhere" / "exp"
    (place / "stages").mkdir(parents=True)
    (place / "stages" / f"x-{stage.key}.json").write_text((stage.path / MANIFEST).read_text())
    for name, digest in stage.manifest["files"].items():
        target = place / "files" / f"x-{stage.key}" / digest[:16] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((stage.path / name).read_bytes())
    url = f"file://{tmp_path}/elsewhere"
    there = Stored(open_objects(url), "exp")
    manifest = there.manifest(f"x-{stage.key}")
    assert manifest == stage.manifest
    assert there.manifest("x-none") is None
    there.fetch(f"x-{stage.key}", manifest, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "deep" / "data.txt").read_text() == "one"
    for command, told in (("ls", "1 stages"), ("verify", "1 of 1 stages are whole")):
        assert told in CliRunner().invoke(cli.app, ["store", command, f"{url}/exp"]).output
    done = CliRunner().invoke(cli.app, ["run", str(experiment_file), "--runs-dir", str(tmp_path / "r"), "--store", url])
    assert isinstance(done.exception, UserError)
    assert "If-None-Match" in str(done.exception)
    with pytest.raises(UserError, match="nosuch"):
        open_objects("nosuch://x/y")


# ---- checkpoints --------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int, text: str, *, whole: bool = True) -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / "adapter.safetensors").write_text(text)
    if whole:
        (folder / f"checkpoint-{step}" / snapshots.WHOLE).write_text("{}")


def test_the_newest_whole_checkpoint_is_what_another_machine_goes_on_from(url: str, tmp_path: Path):
    here_, there = tmp_path / "a" / CHECKPOINTS, tmp_path / "b" / CHECKPOINTS
    for folder in (here_, there):
        folder.mkdir(parents=True)
    sender = snapshots.Snapshots(S3(url), "exp/fit-1", here_)
    checkpoint(here_, 10, "ten")
    sender.send(large=True)
    checkpoint(here_, 20, "twenty")
    checkpoint(here_, 30, "half", whole=False)
    (here_ / "job.json").write_text("job")
    sender.send(large=False)  # a service's job goes up at once, beside the checkpoint that is there
    receiver = snapshots.Snapshots(S3(url), "exp/fit-1", there)
    receiver.restore()
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("[!.]*") if p.is_file()) == [
        "checkpoint-10/adapter.safetensors",
        f"checkpoint-10/{snapshots.WHOLE}",
        "job.json",
    ]
    sender.send(large=True)
    assert sum("checkpoint-" in n for n in names(url)) == 2  # older ones are gone
    receiver.restore()
    assert (there / "checkpoint-20" / "adapter.safetensors").read_text() == "twenty"
    checkpoint(there, 25, "ours")
    receiver.restore()  # what came after the store's stays
    assert (there / "checkpoint-25").is_dir()
    receiver.forget()
    assert names(url) == []


def test_a_checkpoint_that_is_not_whole_in_the_store_is_left(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder, other = tmp_path / "a" / CHECKPOINTS, tmp_path / "b" / CHECKPOINTS
    checkpoint(folder, 10, "ten")
    snapshots.Snapshots(S3(url), "exp/fit-1", folder).send(large=True)
    S3(url).write(next(n for n in names(url) if n.endswith("adapter.safetensors")), b"other")
    other.mkdir(parents=True)
    snapshots.Snapshots(S3(url), "exp/fit-1", other).restore()
    assert list(other.iterdir()) == []
    assert "no checkpoint could be taken" in caplog.text


def test_a_failed_build_sends_its_last_checkpoint(url: str, tmp_path: Path):
    def interrupted(out: Path) -> None:
        checkpoint(out / CHECKPOINTS, 5, "five")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_of(url, tmp_path / "a").build("fit", RECIPE, interrupted)
    seen: list[str] = []

    def goes_on(out: Path) -> None:
        seen.append((out / CHECKPOINTS / "checkpoint-5" / "adapter.safetensors").read_text())
        writer("one")(out)

    store_of(url, tmp_path / "b").build("fit", RECIPE, goes_on)
    assert seen == ["five"]
    assert not [n for n in names(url) if "checkpoints" in n or "claims" in n]


# ---- the commands -------------------------------------------------------------------------------------------------------


QUICK = (
    "import sys; from trainers.store import claims, remote, snapshots; claims.BEAT, claims.STALE = 0.5, 3.0; "
    "remote.POLL = 0.3; snapshots.LOOK, snapshots.EVERY = 0.2, 0.0; sys.argv[0] = 'w2s'; "
    "from trainers.cli import main; main()"
)
"""`w2s` on a machine with less patience."""


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", QUICK, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(*arguments: object) -> str:
    """The command in this process."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def finish(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out + errors


@pytest.mark.slow
def test_another_machine_goes_on_and_the_report_is_read_from_the_store(url: str, experiment_file: Path, tmp_path: Path):
    """One is killed in a training; another one, with an empty disk, takes its claim over and goes on from its checkpoint."""
    run = ["run", experiment_file, "--store", url, "--set", ARMS, "--set", "strong.epochs=12", "--runs-dir"]
    first = start(*run, tmp_path / "a")
    stored = Stored(open_objects(url), "small")
    while not any("checkpoint-" in one.name for one in stored.objects.listed("small/checkpoints/fit-")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    told = finish(start(*run, tmp_path / "b"))
    assert "taken over" in told
    third = command(*run, tmp_path / "c")
    assert third.count("there already") == 8
    alone = command(*run[:2], *run[4:], tmp_path / "alone")
    assert f"also: w2s report {url}/small" in told
    assert "also:" not in alone
    mine, theirs, local = (read_report(tmp_path / m / "small").json() for m in ("b", "c", "alone"))
    for key in ("arms", "gaps", "weak_labels", "curves"):
        assert mine[key] == theirs[key] == local[key]
    command("report", f"{url}/small")
    assert read_report(here(f"{url}/small")).json()["arms"] == mine["arms"]
    command("report", f"{url}/small", "--recompute")
    for name, line in (("ls", "8 stages"), ("verify", "8 of 8 stages are whole"), ("gc", "nothing to remove")):
        assert line in command("store", name, f"{url}/small")
        if name != "gc":
            assert line in command("store", name, tmp_path / "b" / "small")


@pytest.mark.slow
def test_shards_on_machines_without_a_common_disk_are_one_sweep(url: str, experiment_file: Path, tmp_path: Path):
    sweep = ["sweep", experiment_file, "--store", url, "--set", ARMS, "--grid", "method=xent,logconf"]
    shards = [start(*sweep, "--shard", f"{n}/2", "--runs-dir", tmp_path / str(n)) for n in (1, 2)]
    for shard in shards:
        finish(shard)
    whole = command(*sweep, "--runs-dir", tmp_path / "3")
    assert whole.count("there already") == 2
    cells = json.loads((tmp_path / "3" / "small" / "sweep.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["done", "done"]
    stages = [json.loads(p.read_text())["stages"].values() for p in (tmp_path / "3").glob("small/cells/*/report.json")]
    assert sorted({name for names in stages for name in names}) == Stored(open_objects(url), "small").stages()
    assert "logconf" in command("report", f"{url}/small")


def test_gc_shows_then_removes_what_no_report_stands_on(url: str, tmp_path: Path):
    store = store_of(url, tmp_path / "run" / "exp")
    used, unused = (store.build("x", RECIPE | {"a": a}, writer("one")) for a in (1, 2))
    checkpoint(tmp_path / "c", 1, "left")
    snapshots.Snapshots(S3(url), "exp/fit-9", tmp_path / "c").send(large=True)
    report = json.dumps({"stages": {"the step": used.folder.name}})
    places = [f"{url}/exp", str(tmp_path / "run" / "exp")]

    def gc(place: str, *more: str) -> str:
        done = CliRunner().invoke(cli.app, ["store", "gc", place, *more])
        return done.output + str(done.exception or "")

    assert all("no report there" in gc(place, "--delete") for place in places)
    S3(url).write("exp/report.json", report.encode())
    (tmp_path / "run" / "exp" / "report.json").write_text(report)
    (tmp_path / "run" / "exp" / "stages" / ".work-fit-1").mkdir()
    held = claims.take(S3(url), "exp/claims/x-1")
    assert not isinstance(held, str)
    with held:
        assert "x-1 is being built now" in gc(places[0], "--delete")
    for place, count in zip(places, (2, 2), strict=True):
        for more in ((), ("--delete",)):
            told = gc(place, *more)
            assert unused.folder.name in told
            assert f"{count} of no use" in told
            assert used.folder.name not in told
        assert "nothing to remove" in gc(place)
    assert Stored(open_objects(url), "exp").stages() == [used.folder.name]
    assert used.folder.is_dir()
    assert not unused.folder.exists()
    S3(url).write("exp/report.json", b"{")
    assert "can't be read" in gc(places[0])
    assert "no stages there" in gc(str(tmp_path / "none"))


def test_threads_of_one_process_share_a_store(url: str):
    opened: list[Remote | None] = []
    threads = [threading.Thread(target=lambda: opened.append(open_remote(url, "exp"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in opened}) == 1
    assert open_remote(None, "exp") is None
