"""What is found wrong, or worth telling, while a dataset is read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """Something that keeps an acquisition from being processed: the file, what is wrong with it and what to do."""

    path: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


class Unusable(Exception):
    """Raised where a file cannot be used at all; carries the :class:`Problem`."""

    def __init__(self, path: str, what: str, remedy: str):
        super().__init__(path, what, remedy)
        self.problem = Problem(path, what, remedy)


@dataclass
class Findings:
    """Problems and notices, collected so that all of them can be told at once."""

    problems: list[Problem] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def problem(self, path: str, what: str, remedy: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(path, what, remedy))

    def notice(self, text: str) -> None:
        """Note something once."""
        if text not in self.notices:
            self.notices.append(text)
