"""Where a job or a batch stands, whatever words its service has for it.

OpenAI says ``succeeded`` and ``cancelled``; Azure, Together, Fireworks, Nebius and gateways in between also say
``completed``, ``canceled``, ``error``, ``JOB_STATE_FAILED`` or ``Success``. A word that is not here is `UNKNOWN`: neither a
success nor an end, to be told by its own name and not to be waited on for ever.
"""

from __future__ import annotations

import enum


class Standing(enum.Enum):
    """What a state means for whoever waits."""

    GOING = "going"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self not in (Standing.GOING, Standing.UNKNOWN)


_WORDS = {
    Standing.GOING: """accepted awaiting cancel_requested cancelling canceling compressing created creating deploying
        finalizing in_progress inprogress in_queue initializing new not_started notstarted paused pausing pending
        preprocessing processing queued queueing re_queueing resuming running scheduled started starting submitted training
        uploading validated validating validating_files""",
    Standing.SUCCEEDED: "complete completed done finished succeeded success successful",
    Standing.FAILED: """blocked crashed errored error failed failed_validation failure invalid rejected system_error
        unsuccessful user_error validation_failed""",
    Standing.CANCELLED: "aborted cancelled canceled deleted killed revoked stopped terminated",
    Standing.EXPIRED: "expired timed_out timedout timeout",
}
_STANDINGS = {word: standing for standing, words in _WORDS.items() for word in words.split()}


def standing(state: object) -> Standing:
    """The meaning of a state's name; case, hyphens and a prefix as in JOB_STATE_RUNNING don't matter."""
    word = "_".join(str(state).casefold().replace("-", " ").replace("_", " ").split())
    for prefix in ("job_state_", "state_", "status_"):
        word = word.removeprefix(prefix)
    return _STANDINGS.get(word, Standing.UNKNOWN)
