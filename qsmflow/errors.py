"""Exit codes and the errors that carry them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

#: Exit codes of the command line.
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_DATASET = 0, 1, 2, 3


class QsmflowError(Exception):
    """An error whose message is meant for the user; ``exit_code`` is what the command returns."""

    exit_code = EXIT_FAILED


class UsageError(QsmflowError):
    """Something typed or configured cannot be used."""

    exit_code = EXIT_USAGE


class DatasetError(QsmflowError):
    """The dataset cannot be processed as it is; the message lists every problem with file and remedy."""

    exit_code = EXIT_DATASET


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an 'unknown name' message: the nearest known name, or all of them.

    Examples
    --------
    >>> nearest("rseharp", ["vsharp", "resharp"])
    "; did you mean 'resharp'?"
    """
    known = sorted(known)
    lowered = {other.lower(): other for other in known}
    close = get_close_matches(name.lower(), lowered, n=1)
    return f"; did you mean '{lowered[close[0]]}'?" if close else f"; known: {', '.join(known)}"
