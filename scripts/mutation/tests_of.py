"""What is mutated, and by which tests each module is held.

Tests without a model first: a mutant should cost a second. `-k` leaves out what takes long and says nothing of the module.
"""

PACKING = (
    *("tests/test_packing.py", "tests/test_branches.py", "-k"),
    "row_holds or plan_runs or common_is or share_one or token_budget or own_trunk or "
    "outputs_and or every_token or chains or long_branches",
)

TESTS: dict[str, tuple[str, ...]] = {
    "trainers/training/losses.py": ("tests/test_losses.py", "-k", "not of_a_step"),
    "trainers/training/course.py": ("tests/test_tune.py", "-k", "kept or ended or course"),
    "trainers/labels/operations.py": ("tests/test_label_ops.py",),
    "trainers/labels/arms.py": ("tests/test_label_ops.py",),
    "trainers/labels/label_set.py": ("tests/test_data.py", "-k", "label or row_ids or parquet"),
    "trainers/labels/splits.py": ("tests/test_splits.py",),
    "trainers/store/stages.py": ("tests/test_store.py", "-k", "not hashes_of_tasks and not two_processes"),
    "w2s_tasks/scoring/metrics.py": ("tests/test_metrics.py",),
    "w2s_tasks/scoring/answers.py": ("tests/test_answers.py",),
    "w2s_tasks/results/stats.py": ("tests/test_stats.py", "tests/test_clusters.py", "tests/test_association.py"),
    "w2s_tasks/results/components.py": ("tests/test_components.py",),
    "w2s_tasks/results/clusters.py": ("tests/test_clusters.py",),
    "w2s_tasks/results/over_tasks.py": ("tests/test_over_tasks.py",),
    "w2s_tasks/results/gap.py": ("tests/test_gap.py",),
    "w2s_tasks/results/power.py": ("tests/test_power.py", "-k", "not by_the_test_in_use and not as_wholes and not spread"),
    "w2s_tasks/results/safety.py": ("tests/test_safety.py",),
    "w2s_tasks/results/drift.py": ("tests/test_drift.py", "-k", "not cover and not seldom"),
    "w2s_tasks/results/association.py": ("tests/test_association.py",),
    "w2s_tasks/results/diagnostics.py": ("tests/test_diagnostics.py",),
    "w2s_tasks/results/read.py": ("tests/test_read.py",),
    "w2s_tasks/results/gold.py": ("tests/test_read.py",),
    "w2s_tasks/packing/tree.py": ("tests/test_tree.py", *PACKING),
    "w2s_tasks/packing/plan.py": ("tests/test_plan.py",),
    "w2s_tasks/packing/cuts.py": ("tests/test_cuts.py",),
}
