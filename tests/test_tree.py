"""The prefix tree's passes by hand: what a window keeps, and which requests are one pass."""

from __future__ import annotations

import pytest

from w2s_tasks.packing.tree import plan_passes


def test_a_window_keeps_the_last_tokens_before_the_one_that_is_predicted():
    """A continuation of c tokens is scored from the c + 1 last: the window holds all but the last of them."""
    requests = [((1, 2, 3, 4), (5,)), ((1, 2, 3, 4), (6,)), ((9, 2, 3, 4), (5,)), ((1, 2, 3), (4, 5, 6))]
    assert [(p.tokens, p.scores) for p in plan_passes(requests, 5)] == [
        ((1, 2, 3, 4), ((0, (5,)), (1, (6,)))),
        ((9, 2, 3, 4), ((2, (5,)),)),
        ((1, 2, 3, 4, 5), ((3, (4, 5, 6)),)),
    ]
    assert [(p.tokens, len(p.scores)) for p in plan_passes(requests, 3)] == [((2, 3, 4), 3), ((3, 4, 5), 1)]


@pytest.mark.parametrize(
    ("context", "continuation", "fits"),
    [((1,), (2, 3, 4), True), ((1,), (2, 3, 4, 5), False), ((1,), (), False), ((), (2,), False), ((), (), False)],
)
def test_a_request_has_a_context_and_a_continuation_that_fits(context, continuation, fits):
    if fits:
        assert len(plan_passes([(context, continuation)], 3)) == 1
        return
    with pytest.raises(ValueError, match="request 0"):
        plan_passes([(context, continuation)], 3)
