"""Where a system prompt and a task's description stand in prompts: stamped on results and trainings, compared by reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEY = "system_prompt"
"""Where a model of ours says it in ``config`` of lm_eval's result file."""
MESSAGE = "in a system message"
FOLDED = "in the first user turn"
"""Where the chat template has no system role."""
PLAIN = "at the beginning of a plain prompt"


def of_results(data: Mapping[str, Any], task: str) -> str | None:
    """How one task of a result file was asked; None where it has neither system prompt nor description."""
    if not (data.get("system_instruction") or data["configs"][task].get("description")):
        return None
    stamped = (data.get("config") or {}).get(KEY)
    return str(stamped) if stamped else MESSAGE if data.get("chat_template") else PLAIN
