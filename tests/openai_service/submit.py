"""A process that submits and follows one job, light enough to be killed many times: `submit.py URL FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from trainers.services.follow import as_lines, collect, follow
from trainers.services.job import JobSpec, Submission
from trainers.services.service import reading_client
from w2s_tasks.errors import UserError
from w2s_tasks.models.service import Access

SETTLE = (0.0, 0.05, 0.1, 0.2)


def submit(url: str, folder: Path) -> str:
    """The trainer's own steps, without a task: find or create, follow, collect. Returns the fine-tuned model's name."""
    endpoint = Access(url)
    client = reading_client(endpoint)
    spec = JobSpec("base", folder / "train.jsonl", hyperparameters={"n_epochs": 2}, seed=1)
    note = sys.stderr.write
    job_id = Submission(client, endpoint, spec, folder / "state.json", note=note, settle=SETTLE).submit()
    job = follow(client, endpoint, job_id, interval=0.01, title="train", note=note)
    outcome = collect(client, job, note=note)
    (folder / "events.jsonl").write_text(as_lines(outcome.events))
    (folder / "curves.json").write_text(json.dumps(outcome.curve))
    return str(job.fine_tuned_model)


if __name__ == "__main__":
    try:
        print(submit(sys.argv[1], Path(sys.argv[2])))  # noqa: T201
    except UserError as error:
        sys.exit(f"error: {error}")
