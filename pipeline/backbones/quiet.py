"""Keeps transformers from drawing progress bars and load reports while it reads or writes weights.

Costs nothing. Bars of downloads from a hub stay: they take minutes, and belong to another package.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOADER = "transformers.modeling_utils"
_REPORT = "LOAD REPORT"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide the progress bars of transformers and its table of missing and unexpected weights.

    Who loads checks the missing weights itself (`output_loading_info=True`). Where the body
    raises, the table is logged after all, because errors of transformers refer to it. Every other
    warning passes. Hook and filter are taken back on leaving; not for several threads at a time.
    """
    from transformers.utils import logging as hf_logging  # noqa: PLC0415 - heavy to import

    logger, reports = logging.getLogger(_LOADER), _LoadReports()
    logger.addFilter(reports)
    previous = hf_logging.set_tqdm_hook(_no_bar)
    try:
        yield
    except BaseException:
        logger.removeFilter(reports)
        for record in reports.held:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(reports)
        hf_logging.set_tqdm_hook(previous)


class _LoadReports(logging.Filter):
    """Holds load reports back."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if _REPORT not in record.getMessage():
            return True
        self.held.append(record)
        return False


def _no_bar(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return make(*args, **{**options, "disable": True})
