"""``--option KEY=VALUE``: words from the command line become a solver's options, typed by the solver's dataclass."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from relaxprune import RelaxPruneError
from relaxprune.solvers import make_solver

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True)
class OptionType:
    """What one option accepts.

    Attributes:
        alternatives: the accepted types, of ``bool``, ``int``, ``float``, ``str`` and ``None``'s.
        choices: the accepted words, if the solver lists them.
    """

    alternatives: tuple[type, ...]
    choices: tuple[Any, ...] = ()

    @property
    def label(self) -> str:
        """The accepted values in words."""
        words = [str(choice) for choice in self.choices]
        words += ["none" if kind is types.NoneType else kind.__name__ for kind in self.alternatives]
        return " or ".join(words)


def parse_options(solver: str, words: Sequence[str]) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` words into the options of a solver, as ``parse_words`` does."""
    return parse_words("solver", solver, words, make_solver)


def parse_words(
    kind: str, name: str, words: Sequence[str], make: Callable[..., Any], flag: str = "--option"
) -> dict[str, Any]:
    """Turn ``KEY=VALUE`` words into the options of something that has a name, and check that it takes them.

    Args:
        kind: what it is, for messages.
        name: of a solver, say, that ``relaxprune solvers`` lists.
        make: makes it of its name and options.
        flag: the command's option that takes the words.
        words: such as ``["anneal=false", "refresh=16"]``.

    Returns:
        Option name to value, of the type that the solver's dataclass declares.

    Raises:
        RelaxPruneError: for an unknown solver or option (with a suggestion), a word without ``=``, an option given
            twice, or a value of another type.
    """
    known = option_types(make(name))
    options: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise RelaxPruneError(f"{flag} {word!r} must have the form KEY=VALUE")
        if key not in known:
            make(name, **{key: text})  # names the options there are
            raise RelaxPruneError(f"option {key!r} of {kind} {name!r} cannot be given on the command line")
        if key in options:
            raise RelaxPruneError(f"{flag} {key!r} is given twice; give it once")
        options[key] = _parse(f"{flag} {key}", text, known[key])
    make(name, **options)
    return options


def option_types(solver: Any) -> dict[str, OptionType]:
    """Return what each option of a solver accepts; options that no word can express are left out."""
    hints = get_type_hints(type(solver))
    found = {}
    for field in fields(solver):
        accepted = _option_type(hints[field.name])
        if field.init and (accepted.alternatives or accepted.choices):
            found[field.name] = accepted
    return found


def _option_type(hint: Any) -> OptionType:
    """Read a type annotation: plain types, unions of them, and ``Literal``."""
    if get_origin(hint) is Literal:
        return OptionType((), get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        parts = [_option_type(part) for part in get_args(hint)]
        choices = tuple(choice for part in parts for choice in part.choices)
        return OptionType(tuple(kind for part in parts for kind in part.alternatives), choices)
    return OptionType((hint,)) if hint in (bool, int, float, str, types.NoneType) else OptionType(())


def _parse(what: str, text: str, accepted: OptionType) -> Any:
    """Return the value that ``text`` stands for, trying the narrowest type first."""
    for choice in accepted.choices:
        if text == str(choice):
            return choice
    word = text.lower()
    if types.NoneType in accepted.alternatives and word == "none":
        return None
    if bool in accepted.alternatives and word in _TRUE | _FALSE:
        return word in _TRUE
    for kind in (int, float):
        if kind in accepted.alternatives:
            try:
                return kind(text)
            except ValueError:
                continue
    if str in accepted.alternatives:
        return text
    raise RelaxPruneError(f"{what}={text!r} must be {accepted.label}")
