"""What is mutated, and by which tests each module is held.

Tests without a model first: a mutant should cost a second. `-k` leaves out what takes long and says nothing of the module.
"""

TESTS: dict[str, tuple[str, ...]] = {
    "trainers/losses.py": ("tests/test_losses.py", "-k", "not of_a_step"),
    "trainers/label_ops.py": ("tests/test_label_ops.py",),
    "trainers/labels.py": ("tests/test_data.py", "-k", "label or row_ids or parquet"),
    "trainers/splits.py": ("tests/test_splits.py",),
    "trainers/store.py": ("tests/test_store.py", "-k", "not hashes_of_tasks and not two_processes"),
    "w2s_tasks/metrics.py": ("tests/test_metrics.py",),
}
