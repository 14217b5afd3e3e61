"""The report of a real small run over two seeds, and the page: one static file, nothing fetched or run, all escaped."""

from __future__ import annotations

import csv
import html
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainers.config.reading import load
from trainers.report import comparison
from trainers.report.blocks import Cell
from trainers.report.csv_tables import write_tables
from trainers.report.page import render
from trainers.report.panels import recovered_panels
from trainers.report.report import read_report, recomputed
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy, Gap
from trainers.report.sections.capability import Capability
from trainers.report.sections.safety import Safety
from w2s_tasks.errors import UserError


def of(data: dict[str, Any]) -> Report:
    """The report that a report.json of this content is."""
    return Report.read(json.loads(json.dumps(data)), Path("report.json"))


def page_of(data: dict[str, Any]) -> str:
    """Its page."""
    return render(of(data))


def test_arms_are_given_by_seed_and_over_seeds(report):
    assert [(a["arm"], a["seed"]) for a in report["arms"]][:3] == [("weak", 0), ("weak", 1), ("zero_shot", None)]
    means = {m["arm"]: m for m in report["arm_means"]}
    own = [a["metrics"]["acc"] for a in report["arms"] if a["arm"] == "student"]
    assert means["student"]["acc"] == pytest.approx(sum(own) / 2)
    assert means["student"]["per_seed"] == pytest.approx(own)
    assert means["student"]["ci95"][0] <= means["student"]["acc"] <= means["student"]["ci95"][1]
    assert all(g["seeds"] == [0, 1] for g in report["gaps"])
    assert all(g["defined"] == (g["gap_ci95"][0] > 0) for g in report["gaps"])
    for arm in report["arms"]:
        assert sum(map(sum, arm["confusion"])) == arm["n"]


def test_safety_differences_are_over_seeds_and_a_family(report):
    found = report["safety_gaps"]
    assert {e["contrast"] for e in found} == {"to_zero_shot", "to_ceiling"}
    student = [e for e in found if e["arm"] == "student"]
    assert len(student) == 6
    assert all((e["seeds"], e["n_seeds"]) == ([0, 1], 2) for e in student)
    assert report["safety_family"]["tests"] == len(student)
    assert all(e["p_holm"] >= e["p"] for e in found)
    # Six pairs, two seeds and a family of six: no difference could have been shown, or only a large one.
    assert all(e["detectable"] is None or 0.3 < e["detectable"] <= 1 for e in found if "utilitarianism" in e["task"])
    by_hand = [
        e["to_zero_shot"]["value"]
        for e in report["safety"]
        if (e["arm"], e["task"]) == ("student", "w2s_ethics_probe_justice")
    ]
    first = next(e for e in student if e["task"] == "w2s_ethics_probe_justice" and e["contrast"] == "to_zero_shot")
    assert first["value"] == pytest.approx(sum(by_hand) / 2)


def test_generated_text_is_never_averaged_with_choices_and_shows_its_objective(report):
    modes = {(m["split"], m["mode"], m["tasks"]) for m in report["safety_means"]}
    assert modes == {("test", "loglikelihood", 2), ("hard", "generated", 1)}
    for entry in report["safety"]:
        if entry["mode"] == "generated":
            assert entry["objective"] == (None if entry["arm"] == "zero_shot" else "choices")
    page = page_of(report)
    assert "never teaches a format" in page


def test_drift_adds_up(report):
    assert {d["arm"] for d in report["drift"]} == {"student", "ceiling", "random_labels"}
    for d in report["drift"]:
        parts = [d[k]["value"] if d[k] else 0 for k in ("unparsed", "prior", "errors")]
        assert sum(parts) == pytest.approx(d["total"]["value"], abs=1e-9)
        if d["mode"] != "generated":
            assert d["unparsed"]["value"] == 0


def test_the_ladder_holds_every_number_of_shots(report):
    assert {e["num_fewshot"] for e in report["ladder"]} == {0, 2}
    assert {(e["arm"], e["split"]) for e in report["ladder"]} >= {("student", "test"), ("zero_shot", "hard")}
    main = next(e for e in report["ladder"] if (e["arm"], e["split"], e["num_fewshot"]) == ("zero_shot", "test", 0))
    means = next(m for m in report["safety_means"] if (m["arm"], m["split"]) == ("zero_shot", "test"))
    assert main["acc"] == pytest.approx(means["acc"])


def test_diagnostics_and_disagreements_come_from_the_rows(report):
    student = [d for d in report["diagnostics"] if d["arm"] == "student"]
    assert [d["seed"] for d in student] == [0, 1]
    for d in report["disagreements"]:
        assert d["student"] != d["weak"]
        assert (d["student"] == d["gold"]) == d["right"]
        assert d["text"]
    overrides = sum(next(d["of"] for d in report["disagreements"] if d["right"] == right)
                    for right in {d["right"] for d in report["disagreements"]})  # fmt: skip
    assert overrides == student[0]["overrides"]


def test_few_arms_give_no_rank_correlation(report):
    assert report["associations"]
    assert all(a["defined"] is False and "4 points" in a["reason"] for a in report["associations"])


def test_the_command_runs_the_same_configuration(run_folder, report):
    config, _ = load(str(run_folder / "config.yaml"))
    assert config.model_dump() == report["config"]
    assert report["command"].startswith(f"w2s run {run_folder / 'config.yaml'} ")


def test_recomputing_finds_the_stages_whatever_the_code_is_now(run_folder, report):
    again, path = recomputed(run_folder)
    assert again.json() == report
    assert path.is_file()
    with pytest.raises(UserError, match="not a readable report"):
        recomputed(run_folder / "stages")


def test_recomputing_without_a_stage_says_which(run_folder, tmp_path, report):
    report["stages"]["labels/weak, seed 0"] = "labels-gone"
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "stages").symlink_to(run_folder / "stages")
    with pytest.raises(UserError, match="labels/weak, seed 0"):
        recomputed(tmp_path)


def test_tables_are_csv_with_flat_columns_and_no_formulas(run_folder, tmp_path, report):
    with (run_folder / "tables" / "gaps.csv").open() as f:
        gaps = list(csv.DictReader(f))
    assert [g["arm"] for g in gaps] == [g["arm"] for g in report["gaps"]]
    assert {"gap_ci95.low", "gap_ci95.high"} <= set(gaps[0])
    with (run_folder / "tables" / "drift.csv").open() as f:
        assert "errors.value" in next(csv.reader(f))
    report["disagreements"][0]["text"] = "=HYPERLINK(1)"
    write_tables(of(report), tmp_path / "tables")
    report["drift"] = []
    write_tables(of(report), tmp_path / "tables")
    assert "'=HYPERLINK(1)" in (tmp_path / "tables" / "disagreements.csv").read_text()
    assert not (tmp_path / "tables" / "drift.csv").exists()


# ---- the page -------------------------------------------------------------------------------------------------------------


class _Balanced(HTMLParser):
    """Collects headings and checks that tags close in order."""

    VOID = frozenset(["meta", "br", "link", "img", "hr", "path", "use", "rect", "wbr"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())


def test_the_page_is_static_whole_and_in_order(report):
    page = page_of(report)
    for outside in ("<script", 'http-equiv="refresh', "<link", "<iframe", "src=", "@import", "url("):
        assert outside not in re.sub(r'(clip-path="url\(#|xlink:href="#|"url\(#)', "", page)
    parser = _Balanced()
    parser.feed(page)
    assert not parser.open
    order = ["Set-up", "Accuracy and PGR", "ETHICS probe", "Format drift", "Diagnostics", "Learning curves"]
    order += ["Learning the format", "Disagreements", "Evaluate", "Cost and time"]
    places = [next(i for i, h in enumerate(parser.headings) if h.startswith(name)) for name in order]
    assert places == sorted(places)
    assert page.index('class="verdict"') < page.index("Set-up</h2>")


def test_every_figure_is_well_formed_and_names_its_axes(report):
    figures = re.findall(r"<svg.*?</svg>", page_of(report), flags=re.DOTALL)
    assert len(figures) >= 7
    texts = []
    for figure in figures:
        tree = ET.fromstring(figure)  # noqa: S314 - our own
        assert tree.get("aria-label")
        texts.append(" ".join("".join(t.itertext()) for t in tree.iter() if t.tag.endswith("text")))
    for label in (
        "accuracy on own_reviews, %",
        "optimizer step",
        "training loss, nats",
        "num_fewshot",
        "points",
        "accuracy, %",
    ):
        assert any(label in text for text in texts), label


def test_the_page_draws_checkpoints_as_small_marks_on_a_line(report):
    def marks(page: str) -> int:
        figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
        figure = next(f for f in figures if "safety change against accuracy" in f)
        return len(re.findall(r"<use [^>]*fill-opacity: 0\.7", figure))

    before = page_of(report)
    ends = list(report["tradeoff"])
    kept_points = [{**e, "checkpoint": share, "acc": e["acc"] - 0.1 * (1 - share)} for share in (0.25, 0.5) for e in ends]
    report["tradeoff"] = [*ends, *kept_points]
    entry = {**report["associations"][0], "over": "arms and checkpoints", "defined": True, "n": 22, "clusters": 6}
    report["associations"].append({**entry, "rho": -0.5, "low": -0.9, "high": 0.4, "p": None})
    page = page_of(report)
    assert "after 25 %, 50 % of its steps" in page
    assert marks(before) == 0
    assert marks(page) == 3 * len(ends)  # two checkpoints, and the end of the line
    assert "22 arms and checkpoints" in page
    assert "counts them as one" in page
    assert "Small marks" not in before


def test_safety_change_stands_against_pgr_where_there_is_a_gap(report):
    def figure() -> str:
        changed = of(report)
        drawing = changed.of(Capability).figure(changed)
        assert drawing is not None
        return str(drawing.svg())

    assert not report["gap"]["defined"]
    assert "performance gap recovered" not in figure()
    report["gap"] |= {"defined": True, "gap": 0.2}
    next(m for m in report["arm_means"] if m["arm"] == "weak")["acc"] = 0.6
    for acc, entry in zip((0.6, 0.7, 0.8), report["tradeoff"], strict=True):
        entry["acc"] = acc
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", figure())
    assert "performance gap recovered (PGR)" in texts
    assert {"0.0", "1.0"} <= set(texts)


def test_every_field_is_escaped(report):
    planted = '"><script>alert(1)</script>'
    text = json.dumps(report)
    texts = [d["text"] for d in report["disagreements"]]
    for value in ("own_reviews", "justice", "positive", "negative", "test", report["experiment"], *texts):
        text = text.replace(json.dumps(value), json.dumps(planted))
    page = page_of(json.loads(text))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_report_of_another_schema_is_refused_and_formed_anew_from_its_stages(run_folder, report):
    del report["safety_means"]
    with pytest.raises(UserError, match=r"report\.json: this report is cut or altered.*safety_means"):
        of(report)
    file = run_folder / "report.json"
    text = file.read_text()
    try:
        file.write_text(json.dumps({**report, "schema": 1}))
        with pytest.raises(UserError, match="not a report of schema 2"):
            read_report(run_folder)
        assert recomputed(run_folder)[0].json() == json.loads(text)
    finally:
        file.write_text(text)


def test_without_matplotlib_the_page_has_its_tables_and_says_why(report, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = page_of(report)
    assert "<svg" not in page
    assert "pip install 'w2s-harness[report]'" in html.unescape(page)


def test_costs_of_services_are_summed_and_unknown_prices_said(report):
    assert "no service was paid" in page_of(report)
    report["costs_usd"] = {"fit/student, seed 0": 1.5, "fit/ceiling, seed 0": None}
    page = page_of(report)
    assert page.count("<td>1.50</td>") == 2
    assert "price unknown" in page


def test_runs_are_compared_by_the_size_of_the_strong_model(report):
    large = json.loads(json.dumps(report))
    large["models"]["strong"]["parameters"] = 10 * report["models"]["strong"]["parameters"]
    large["experiment"] = "large"
    page = comparison.render_comparison([of(large), of(report)])
    assert "parameters of the strong model, millions" in page
    assert "large" in page
    assert recovered_panels(comparison.columns([of(report)]), "run") is None
    assert "parameters of the strong model" not in comparison.render_comparison([of(report), of(report)])


def test_the_table_shows_the_mean_over_seeds_and_what_n_can_show(report):
    safety = of(report).of(Safety)
    table = next(block for block in safety.page(of(report)) if type(block).__name__ == "Table")
    rows = {(row[0], row[2]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    own = [e["acc"] for e in report["safety"] if (e["arm"], e["task"]) == ("student", "w2s_ethics_probe_justice")]
    cell = rows["justice", "loglikelihood"]["student"]
    assert isinstance(cell, Cell)
    assert cell.text == f"{50 * sum(own):.1f}"
    assert float(rows["utilitarianism", "loglikelihood"]["detectable"]) > 30  # six pairs
    # Four groups of three, in which nothing differs: not even 100 points would show.
    assert rows["justice", "loglikelihood"]["detectable"] == "none"


def gap(**changes: Any) -> Gap:
    about = {"arm": "student", "method": "xent", "seeds": [0], "gap": 0.1, "gap_ci95": (0.0, 0.2)}
    return Gap(**about | {"pgr": 0.5, "ci95": (0.2, None), "defined": True, "reason": "one seed"} | changes)


def test_pgr_is_told_with_its_interval_or_as_undefined():
    assert str(gap()) == "0.50 [0.20, unbounded]"
    assert str(gap(defined=False)) == "undefined"


def test_the_verdict_says_why_there_is_no_number(report):
    accuracy = of(report).of(Accuracy)
    assert "recovered 0.50" in replace(accuracy, gap=gap()).verdict
    undefined = gap(defined=False, pgr=None, reason="the ceiling is not significantly above")
    assert replace(accuracy, gap=undefined).verdict.startswith("PGR is undefined: the ceiling")
    assert "No ceiling" in replace(accuracy, gap=None).verdict
