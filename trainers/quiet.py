"""Libraries that keep their bars, notes and warnings to themselves; importing this loads none of them."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from w2s_tasks import notebook
from w2s_tasks.rows import hub


def quiet_libraries() -> None:
    """Keep what libraries tell off the terminal, and ask once whether the hub is there."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hub.knock()
    import transformers

    hub.settle()

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"torch|transformers|peft|accelerate|lm_eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


@contextlib.contextmanager
def quieted() -> Iterator[None]:
    """`quiet_libraries` for a while; in a notebook without the bars of `datasets` too, a line in red for each step."""
    import datasets
    import transformers

    logger, told = logging.getLogger("lm_eval"), transformers.logging
    level, verbosity, bars = logger.level, told.get_verbosity(), told.is_progress_bar_enabled()
    data_bars = notebook.inside() and not datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        quiet_libraries()
        if data_bars:
            datasets.disable_progress_bars()
        try:
            yield
        finally:
            logger.setLevel(level)
            told.set_verbosity(verbosity)
            if bars:
                told.enable_progress_bar()
            if data_bars:
                datasets.enable_progress_bars()
