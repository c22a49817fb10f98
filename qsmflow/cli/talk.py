"""Where lines go: progress to stdout, mistakes and failures to stderr, everything (Nipype's lines, too) to the run's log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: The logger of the command line; its messages are for people.
logger = logging.getLogger("qsmflow")

#: Loggers whose lines belong in the log file.
_ALL = ("qsmflow", "nipype", "py.warnings")


class _Terminal(logging.StreamHandler):
    """A handler that does not hide a closed pipe."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


@contextmanager
def console() -> Iterator[None]:
    """Set logging up for the length of a command; other libraries keep quiet, their warnings included."""
    before = [(logging.getLogger(name), logging.getLogger(name).handlers[:]) for name in _ALL]
    settings = logger.level, logger.propagate
    out, err = _Terminal(sys.stdout), _Terminal(sys.stderr)
    out.addFilter(lambda record: record.levelno < logging.WARNING)
    err.setLevel(logging.WARNING)
    logger.handlers[:] = [out, err]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Nipype puts its own handler on its logger only where there is none.
    logging.getLogger("nipype").handlers[:] = [logging.NullHandler()]
    logging.getLogger("py.warnings").handlers[:] = [logging.NullHandler()]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for one in {handler for name in _ALL for handler in logging.getLogger(name).handlers}:
            if isinstance(one, logging.FileHandler):
                one.close()
        for one, handlers in before:
            one.handlers[:] = handlers
        logger.level, logger.propagate = settings


def show_all() -> None:
    """Show Nipype's lines on the terminal as well."""
    logging.getLogger("nipype").addHandler(logging.StreamHandler(sys.stdout))


def log_to(path: Path) -> None:
    """Write everything to a file as well."""
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in _ALL:
        logging.getLogger(name).addHandler(file)
