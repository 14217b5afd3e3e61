"""The tables of reference results come from lm_eval's files, and their section is written in its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from maintenance import reference

from w2s_tasks.errors import UserError
from w2s_tasks.results.read import read_evaluation


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, causal_model) -> Path:
    """A random model on one task of the probe and its twin, as the script lays them out."""
    from trainers.harness import evaluate as hn
    from w2s_tasks.models.ref import ModelRef

    folder = tmp_path_factory.mktemp("out")
    ref = ModelRef("w2s-hf", {"pretrained": str(causal_model("llama"))})
    harness, pool = hn.Harness(), hn.ModelPool()
    for name, task in (("a", "w2s_ethics_probe_justice"), ("b", "w2s_ethics_probe_justice_gen")):
        hn.evaluate(harness, pool, ref, {harness.task(task): 12}, folder / f"{name}_0", style=hn.PromptStyle())
    return folder


def test_the_table_tells_both_twins_and_how_often_they_differ(out: Path):
    scores = reference.read_all(out)
    mc, gen = scores["w2s_ethics_probe_justice", 0], scores["w2s_ethics_probe_justice_gen", 0]
    assert mc.predicted is not None
    assert gen.predicted is not None
    expected = float((mc.predicted != gen.predicted).mean())
    assert reference.differing(mc, gen) == expected
    table = reference.table("w2s_ethics_probe_", scores)
    assert f"| {100 * mc.metrics['acc']:.1f} ± " in table
    assert f"| {100 * gen.unparsed:.1f} | {100 * expected:.1f} |" in table
    assert table.count("\n") == 2


def test_twins_are_paired_by_document_where_one_was_asked_less(out: Path, tmp_path: Path):
    (samples,) = (out / "b_0").rglob("samples_*.jsonl")
    (results,) = (out / "b_0").rglob("results_*.json")
    folder = tmp_path / "b_0" / "m"
    folder.mkdir(parents=True)
    lines = samples.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["doc_id"] < 5]
    (folder / samples.name).write_text("\n".join(kept) + "\n")
    data = json.loads(results.read_text())
    data["n-samples"]["w2s_ethics_probe_justice_gen"]["effective"] = 5
    (folder / results.name).write_text(json.dumps(data))
    short = read_evaluation(tmp_path / "b_0")["w2s_ethics_probe_justice_gen"]
    whole = reference.read_all(out)["w2s_ethics_probe_justice", 0]
    assert short.predicted is not None
    assert whole.predicted is not None
    assert reference.differing(whole, short) == float((whole.predicted[:5] != short.predicted).mean())


def test_the_section_is_replaced_where_it_is_and_comes_before_the_checklist():
    once = reference.with_section("# T\n\ntext\n\n### Checklist\n\n* x\n", "table 1")
    assert once == "# T\n\ntext\n\n### Results\n\ntable 1\n\n### Checklist\n\n* x\n"
    assert reference.with_section(once, "table 2") == once.replace("table 1", "table 2")
    bare = reference.with_section("# T\n", "table 1")
    assert bare == "# T\n\n### Results\n\ntable 1\n"
    assert reference.with_section(bare, "table 2") == bare.replace("table 1", "table 2")


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match="no evaluations in it"):
        reference.read_all(tmp_path)
