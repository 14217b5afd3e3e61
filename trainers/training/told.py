"""training.json of a trained model: what its recipe can't know before the training, for its card and the report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trainers.store.stages import Stage, write_atomic

FILE = "training.json"


@dataclass(frozen=True)
class Told:
    """How the rows of a training were prompted, and what it warned of."""

    system_prompt: str | None = None
    """Where system prompt and description stood (`w2s_tasks.scoring.system_place`); None where there was neither."""
    warnings: tuple[str, ...] = ()
    """Sentences."""

    def save(self, folder: Path) -> None:
        """Write training.json."""
        write_atomic(folder / FILE, json.dumps(asdict(self), indent=2))

    @classmethod
    def load(cls, stage: Stage) -> Told:
        """Read training.json of a stage; one without it has nothing to tell."""
        path = stage.file(FILE)
        data = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return cls(data.get("system_prompt"), tuple(data.get("warnings", ())))
