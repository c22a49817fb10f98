"""How many threads a node's libraries use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import scipy.fft


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that libraries read when they are loaded.

    BLAS gets one thread whatever ``threads`` is: the sums of a matrix product depend on how it is cut up, and results must
    not depend on the number of cores.

    Examples
    --------
    >>> thread_environment(2)["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"]
    '2'
    """
    counts = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(threads))
    return counts | dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the length of a block (for the processes that it starts)."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Give this process ``threads`` threads in FFTs, Numba, OpenMP and ITK for the length of a block.

    Libraries that are loaded later read the environment. SciPy and Numba are told directly: Numba's pool cannot change its size
    once it exists, and compiling fails where the environment asks for another one.
    """
    import numba

    values = thread_environment(threads)
    del values["NUMBA_NUM_THREADS"]
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        with environment(values), scipy.fft.set_workers(threads):
            yield
    finally:
        numba.set_num_threads(before)
