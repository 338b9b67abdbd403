"""Calls into the loaders of other libraries: silent, and whatever they raise becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from relaxprune.problems.errors import RelaxPruneError
from relaxprune.support.sentences import first_line

_CRITICAL = 50  # of the levels of logging
_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers, inside, from logging: what matters of it is checked, and told in sentences of ours."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(_CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


@contextmanager
def loader(what: str, remote_code: bool, done: str = "loaded") -> Iterator[None]:
    """Have transformers do something, inside, quietly.

    Args:
        what: names it in sentences.
        remote_code: whether code that comes with a model may run.
        done: what is done with it.

    Raises:
        RelaxPruneError: for whatever transformers, a model's own code or its files raise.
    """
    try:
        with quiet():
            yield
    except _ENDS:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        raise RelaxPruneError(f"{what} could not be {done}: {_reason(error, remote_code)}") from error


def _reason(error: BaseException, remote_code: bool) -> str:
    """Return the reason that an error states, in one line."""
    if "trust_remote_code" in str(error) and not remote_code:
        return "it needs Python code of its own, which runs only with trust_remote_code, if you trust its authors"
    return first_line(error)
