"""Expressions of masking methods: ``(template | robust) & quality``.

``&`` is the intersection, ``|`` the union, ``-`` the difference and ``!`` the complement; ``!`` binds closest, then ``&`` and
``-`` from left to right, then ``|``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qsmflow import registry
from qsmflow.errors import UsageError

_TOKEN = re.compile(r"\s*([\w.]+|[&|()!-]|\S)")
_RANK = {"|": 0, "&": 1, "-": 1, "!": 2, "": 3}


@dataclass(frozen=True)
class Expression:
    """A method (``operator`` empty, ``parts`` its name) or an operator over one or two expressions."""

    operator: str
    parts: tuple

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods, each once, in the order of their first appearance."""
        if not self.operator:
            return self.parts
        return tuple(dict.fromkeys(name for part in self.parts for name in part.names))

    @property
    def is_intersection(self) -> bool:
        """Whether methods are only intersected (or there is one)."""
        return not self.operator or (self.operator == "&" and all(part.is_intersection for part in self.parts))

    def evaluate(self, masks: Mapping):
        """The expression over boolean arrays by name."""
        if not self.operator:
            return masks[self.parts[0]]
        values = [part.evaluate(masks) for part in self.parts]
        if self.operator == "!":
            return ~values[0]
        first, second = values
        return first | second if self.operator == "|" else first & (~second if self.operator == "-" else second)

    def without(self, name: str) -> Expression | None:
        """The expression as if a method were not there; None when nothing is left.

        Examples
        --------
        >>> str(parse("(template | robust) & quality").without("template"))
        'robust & quality'
        >>> str(parse("template - quality").without("quality"))
        'template'
        """
        if not self.operator:
            return None if self.parts == (name,) else self
        parts = [part.without(name) for part in self.parts]
        if self.operator == "-" and parts[0] is None:
            return None
        kept = tuple(part for part in parts if part is not None)
        if len(kept) == len(self.parts):
            return Expression(self.operator, kept)
        return kept[0] if kept else None

    def renamed(self, old: str, new: str) -> Expression:
        """The expression with one method in place of another; two equal sides of ``&`` or ``|`` become one."""
        if not self.operator:
            return Expression("", (new,)) if self.parts == (old,) else self
        parts = tuple(part.renamed(old, new) for part in self.parts)
        return parts[0] if self.operator in "&|" and parts[0] == parts[1] else Expression(self.operator, parts)

    def text(self, label: Callable[[str], str] = str) -> str:
        """The expression in words, with ``label`` of every method."""
        if not self.operator:
            return label(self.parts[0])
        rank, inner = _RANK[self.operator], []
        for place, part in enumerate(self.parts):
            loose = _RANK[part.operator] < rank or (place == 1 and _RANK[part.operator] == rank)
            inner.append(f"({part.text(label)})" if loose else part.text(label))
        return f"!{inner[0]}" if self.operator == "!" else f" {self.operator} ".join(inner)

    def __str__(self) -> str:
        return self.text()


def parse(text: str) -> Expression:
    """Read an expression.

    Raises
    ------
    UsageError
        If it cannot be read, or names a method that does not exist; the message gives the nearest.

    Examples
    --------
    >>> str(parse("(template|robust)&quality")), parse("template - !quality").names
    ('(template | robust) & quality', ('template', 'quality'))
    """
    tokens = _TOKEN.findall(text)
    result = _union(tokens, text)
    if tokens:
        raise UsageError(f"mask '{text}': '{tokens[0]}' was not expected there")
    return result


def _union(tokens: list[str], text: str) -> Expression:
    result = _intersection(tokens, text)
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        result = Expression("|", (result, _intersection(tokens, text)))
    return result


def _intersection(tokens: list[str], text: str) -> Expression:
    result = _term(tokens, text)
    while tokens and tokens[0] in "&-":
        result = Expression(tokens.pop(0), (result, _term(tokens, text)))
    return result


def _term(tokens: list[str], text: str) -> Expression:
    if not tokens:
        raise UsageError(f"mask '{text}': a method is missing at the end")
    token = tokens.pop(0)
    if token == "!":
        return Expression("!", (_term(tokens, text),))
    if token == "(":
        result = _union(tokens, text)
        if not tokens or tokens.pop(0) != ")":
            raise UsageError(f"mask '{text}': a parenthesis is not closed")
        return result
    if not re.fullmatch(r"[\w.]+", token):
        raise UsageError(f"mask '{text}': a method is missing before '{token}'")
    registry.find("mask", token)
    return Expression("", (token,))
