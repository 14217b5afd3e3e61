"""A grid of settings for every arm, chosen by the rows of its own labels that its trainings held back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_experiment

from trainers.config.reading import load
from trainers.config.unused import unused
from trainers.flow.layout import Layout
from trainers.flow.plan import planned_steps
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.report.report import write_report
from trainers.report.sections.curves import ending
from trainers.report.sections.tuned import edges_of
from trainers.steps.fit import Fit
from trainers.steps.tuned import Choice, Tried, Tuned, best
from trainers.store.costs import COST_FILE
from trainers.training.course import Checkpoint, HeldBack, held_back_points, kept, late_change
from w2s_tasks.errors import UserError

SETS = ("strong.holdout=0.25", "arms=[student, ceiling]", "evaluate.limit=12", "weak.epochs=1", "seeds=[0, 1]")
GRID = "tune={strong.lr: [0.001, 0.01], seeds: 1}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Path:
    return write_experiment(tmp_path_factory.mktemp("tune"), encoder_folder, causal_model("llama"))


def laid_out(config: Path, *sets: str) -> Layout:
    return Layout.load(load(str(config), [*SETS, *sets])[0])


class Folders:
    """A ground whose trainings left the curves that a test writes."""

    pool: Any = None

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder_of(self, step: Any) -> Path:
        return self.root / step.name.replace("/", "-")

    def write(self, fit: Fit, loss: float, agreement: float = 0.5, gold: float = 0.5) -> None:
        self.folder_of(fit).mkdir()
        held = {"step": 3, "eval_loss": loss, "eval_agreement": agreement, "eval_accuracy": gold, "eval_rows": 16}
        (self.folder_of(fit) / "curves.json").write_text(json.dumps([{"step": 3, "loss": 1.0}, held]))


def tuned_of(layout: Layout, name: str) -> Tuned:
    step = layout.steps[f"fit/{name}"]
    assert isinstance(step, Tuned)
    return step


# ---- what is chosen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "chosen"), [("loss", 1), ("agreement", 0)])
def test_the_held_back_labels_of_the_arm_itself_choose_and_gold_does_not(
    config: Path, tmp_path: Path, by: str, chosen: int
) -> None:
    layout, ground = laid_out(config, f"tune={{strong.lr: [0.1, 0.2, 0.3], by: {by}}}"), Folders(tmp_path)
    student, ceiling = (tuned_of(layout, f"{arm}, seed 1") for arm in ("student", "ceiling"))
    for fit, loss, agreement, gold in zip(student.own, (0.6, 0.5, 0.7), (0.9, 0.7, 0.8), (0.1, 0.2, 1.0), strict=True):
        ground.write(fit, loss, agreement, gold)
    choice = student._choice(ground)
    assert (choice.chosen, choice.seeds, choice.rows) == (chosen, [1], 16)
    assert [fit.settings.lr for fit in ceiling.own] == [0.1, 0.2, 0.3]
    assert [{fit.source.recipe()["rows"] for fit in step.own} for step in (student, ceiling)] == [{"made"}, {("transfer",)}]


def test_the_first_seeds_decide_by_their_mean_and_the_others_train_once(config: Path, tmp_path: Path) -> None:
    layout = laid_out(config, "seeds=[4, 5, 6]", "tune={grid: {strong.lr: [0.1, 0.2], strong.r: [2, 4]}, seeds: 2}")
    trained = [name for name, step in layout.steps.items() if name.startswith("fit/student") and type(step) is Fit]
    assert len(trained) == 2 * 4
    order = list(layout.steps)
    assert max(map(order.index, trained)) < min(order.index(f"fit/student, seed {seed}") for seed in (4, 5, 6))
    steps, ground = [tuned_of(layout, f"student, seed {seed}") for seed in (4, 5, 6)], Folders(tmp_path)
    for fits, losses in zip(steps[0].deciding, ((0.1, 0.5, 0.4, 0.9), (0.9, 0.5, 0.4, 0.9)), strict=True):
        for fit, loss in zip(fits, losses, strict=True):
            ground.write(fit, loss)
    assert {step._choice(ground).chosen for step in steps} == {2}
    assert steps[2]._choice(ground).values == {"lr": 0.2, "r": 2}
    assert [step.decides for step in steps] == [True, True, False]
    assert [step.rows() for step in steps] == [0, 0, 64]
    assert not {fit.name for fit in steps[2].own} & set(layout.steps)


def test_of_equals_the_lower_loss_and_then_the_first() -> None:
    tried = [Tried({}, 0.5, 0.9), Tried({}, 0.4, 0.9), Tried({}, None, 0.95), Tried({}, 0.4, 0.8)]
    assert best(tried, "loss") == 1
    assert best(tried, "agreement") == 2
    assert best(tried[:2], "agreement") == 1
    assert best([Tried({}, None, None), Tried({}, 3.0, None)], "loss") == 1


def test_the_point_of_the_model_that_is_kept() -> None:
    found = ((1, 3.0, 0.9), (2, 1.0, 0.5), (3, 2.0, 0.7), (4, 2.5, None))
    points = [HeldBack(step, 9, loss, agreement) for step, loss, agreement in found]
    ways: tuple[Checkpoint, ...] = ("last", "holdout_loss", "holdout_agreement")
    assert [point.step for way in ways if (point := kept(points, way))] == [4, 2, 1]
    scored = {"step": 3, "eval_loss": 0.0, "eval_agreement": 0.5, "eval_rows": 9}
    shown = [{"step": 1, "loss": 2.0}, {"step": None, "eval_loss": 1.0}, {"step": 3, "eval_loss": 9.0}, scored]
    assert held_back_points(shown) == [HeldBack(0, 0, 1.0, None), HeldBack(3, 9, 0.0, 0.5)]
    assert kept(held_back_points([{"step": 1, "loss": 2.0}])) is None


# ---- what the report says -----------------------------------------------------------------------------------------------


def test_a_choice_at_an_end_of_the_grid_is_told() -> None:
    def edges(chosen: int, *settings: dict[str, Any]) -> dict[str, str]:
        return edges_of(Choice("loss", [0], 20, [Tried(values, 0.5, None) for values in settings], chosen))  # type: ignore[return-value]

    assert edges(1, {"lr": 1e-4}, {"lr": 2e-4}, {"lr": 3e-4}) == {}
    assert edges(2, {"lr": 3e-4}, {"lr": 1e-4}, {"lr": 4e-4}) == {"lr": "highest"}
    assert edges(0, {"epochs": 1, "schedule": "linear"}, {"epochs": 2, "schedule": "cosine"}) == {"epochs": "lowest"}
    assert edges(0, {"alpha": None}, {"alpha": 8.0}) == {}


@pytest.mark.parametrize(
    ("course", "change"),
    [
        ({20: 9.0, 60: 9.0, 75: 1.0, 80: 0.8, 100: 0.6}, -5 / 350 * 25),  # by hand: around step 85 and loss .8
        ({10: 2.0, 40: 1.0}, -1 / 30 * 10),
        ({1: 5.0, 10: 2.0, 40: 1.0}, -1 / 30 * 10),
        ({80: 1.0, 100: 1.5}, 0.5 / 20 * 25),
        ({3: 1.0}, None),
    ],
)
def test_the_last_quarter_of_a_course(course: dict[int, float], change: float | None) -> None:
    found = late_change([HeldBack(step, 40, loss, None) for step, loss in course.items()])
    assert found == (None if change is None else pytest.approx(change))


def test_how_a_training_ended() -> None:
    def course(*losses: float) -> list[HeldBack]:
        return [HeldBack(20 * place, 40, loss, None) for place, loss in enumerate(losses, start=1)]

    falling, flat, rising = course(1.0, 0.9, 0.8, 0.7, 0.6), course(1.0, 0.6, 0.6, 0.6, 0.6), course(1.0, 0.5, 0.5, 0.5, 0.7)
    for points, trend in ((falling, "falling"), (flat, "level"), (rising, "rising")):
        found = ending(("ceiling", "xent"), {0: points})
        assert found is not None
        assert (found.trend, found.error, found.rows) == (trend, None, 40)
    torn = ending(("ceiling", "xent"), {0: course(1, 1, 1, 0.7, 0.6), 1: course(1, 1, 1, 0.6, 0.7), 2: []})
    assert torn is not None
    assert (torn.trend, torn.seeds) == ("level", [0, 1])
    assert ending(("ceiling", "xent"), {0: course(1.0)}) is None


# ---- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["tune={weak.lr: [1e-3, 1e-2]}"], "says nothing of how the strong model is trained"),
        (["tune={strong.model: [a, b]}"], "'strong.model' says nothing"),
        (["tune={strong.holdout: [0.2, 0.3]}"], "'strong.holdout' says nothing"),
        (["tune={strong.checkpoint: [last, holdout_loss]}"], "'strong.checkpoint' says nothing"),
        (["tune={strong.learning_rate: [1, 2]}"], "Known: strong.lr, strong.epochs"),
        (["tune={lr: [1e-3, 1e-2]}"], "lr: unknown key"),
        (["tune={grid: {}}"], "tune.grid"),
        (["tune={}"], "tune.grid"),
        (["tune={strong.lr: [0.01]}"], "at least 2 items"),
        (["tune={strong.lr: [0.01, '1e-2']}"], "is the same training as another setting"),
        (["tune={strong.r: [8, 4], strong.alpha: [8, 8.0]}"], "is the same training as another setting"),
        (["tune={strong.lr: [0.01, -1]}"], "tune.grid: lr: Input should be greater than 0"),
        (["tune={strong.r: [1,2,3,4,5,6,7,8,9], strong.lr: [1,2,3,4,5,6,7,8]}"], "72 settings"),
        ([GRID, "strong.holdout=0"], "set strong.holdout above 0"),
        ([GRID, "strong.holdout=0.1"], "learns about 64 rows and holds 6 back"),
        (["tune={strong.lr: [1e-3, 1e-2], seeds: 3}"], "3 are to decide, and the experiment has 2"),
        (["tune={strong.epochs: [1, 2]}", "equal_steps=true"], "equal_steps gives every arm the same steps"),
        ([GRID, "strong={trainer: openai, model: gpt-4o-mini-2024-07-18}"], "it needs strong.trainer: full, lora"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(config: Path, sets: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        laid_out(config, *sets)


def test_a_grid_that_no_arm_is_trained_with_is_told(config: Path) -> None:
    untaught = load(str(config), ["strong.holdout=0.25", "tune={strong.lr: [0.001, 0.01]}", "arms=[zero_shot]"])[0]
    assert unused(untaught) == ["tune changes nothing here: it is for an arm that is trained"]


# ---- a run --------------------------------------------------------------------------------------------------------------


def built(config: Path, *sets: str) -> Run:
    flow = open_run(load(str(config), [*SETS, *sets])[0], config.parent / "runs")
    flow.build(Progress(quiet=True))
    return flow


def test_a_run_trains_each_setting_once_and_its_report_says_what_was_chosen(config: Path) -> None:
    flow = built(config, GRID)
    report = write_report(flow)[0].json()
    for arm in ("student", "ceiling"):
        first, second = (flow.stages[f"fit/{arm}, seed {seed}"].path for seed in (0, 1))
        choice = Choice.load(first / "tuned.json")
        curves = [flow.stages[f"fit/{arm}, lr {lr}, seed 0"].path / "curves.json" for lr in ("0.001", "0.01")]
        losses = [[p["eval_loss"] for p in json.loads(path.read_text()) if "eval_loss" in p][-1] for path in curves]
        assert [one.loss for one in choice.tried] == pytest.approx(losses)
        assert choice.chosen == losses.index(min(losses))
        taken = flow.stages[f"fit/{arm}, lr {choice.values['lr']}, seed 0"].path
        files = [path.relative_to(taken) for path in taken.rglob("*") if path.is_file() and path.name != "manifest.json"]
        assert Path("adapter/adapter_model.safetensors") in files
        assert all((first / name).read_bytes() == (taken / name).read_bytes() for name in files if name.name != COST_FILE)
        assert Choice.load(second / "tuned.json") == choice
        rates = [point["learning_rate"] for point in json.loads((second / "curves.json").read_text()) if "loss" in point]
        assert max(rates) == pytest.approx(choice.values["lr"])
        (entry,) = [one for one in report["tuned"] if one["arm"] == arm]
        assert (entry["seeds"], entry["decided_by"], entry["chosen"]) == ([0, 1], [0], choice.values)
        card = (flow.folder / "model_cards" / f"{arm}-seed1.md").read_text()
        assert f"| lr | {choice.values['lr']} |" in card
    page = (flow.folder / "report.html").read_text()
    assert "Settings chosen" in page
    assert "The grid should be wider" in page  # of two numbers each is an end
    assert "lr chosen of 0.001, 0.01" in page
    assert {one["arm"] for one in report["endings"]} == {"weak", "student", "ceiling"}
    assert all(stage.reused for stage in built(config, GRID).stages.values())


def test_a_setting_that_was_trained_without_a_grid_is_found_again(config: Path) -> None:
    plain, grid = (Run(laid_out(config, *sets), config.parent / "none") for sets in ((), (GRID,)))
    alone, tried = plain.layout.steps["fit/student, seed 0"], grid.layout.steps["fit/student, lr 0.01, seed 0"]
    assert plain.key(alone) == grid.key(tried)
    other = Run(laid_out(config, GRID, "strong.lr=0.5"), config.parent / "none")
    step = "fit/student, seed 1"
    assert other.key(other.layout.steps[step]) == grid.key(grid.layout.steps[step])
    assert grid.key(grid.layout.steps[step]) != plain.key(plain.layout.steps[step])


def test_the_plan_counts_the_grid(config: Path) -> None:
    steps, _ = planned_steps(load(str(config), [*SETS, GRID])[0])
    rows = {step.title: step.rows for step in steps if step.kind == "fit"}
    assert rows["train student, lr 0.001, seed 0"] == 64
    assert rows["choose student, seed 0, of 2 settings"] == 0
    assert rows["train student, seed 1, as chosen"] == 64
    assert "train student, lr 0.001, seed 1" not in rows
