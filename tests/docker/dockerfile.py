"""Reads a Dockerfile and a .dockerignore as far as we use them, so that tests can ask what an engine would do.

Comments, continued lines, ARG with a default, several stages, the exec form (a JSON list) and the shell form. Anything
else is an error rather than a guess.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_KNOWN = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN"}
_KNOWN |= {"STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}


@dataclass(frozen=True)
class Instruction:
    """One instruction: `RUN`, and all that follows it, continued lines joined."""

    name: str
    text: str

    @property
    def exec_form(self) -> list[str] | None:
        """The words of a JSON list, or None in the shell form."""
        return json.loads(self.text) if self.text.startswith("[") else None


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str | None
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """The instructions of one kind, in order."""
        return [instruction for instruction in self.instructions if instruction.name == name]

    def last(self, name: str) -> Instruction:
        """The one that counts where several stand."""
        return self.all(name)[-1]

    @property
    def environment(self) -> dict[str, str]:
        """ENV, as KEY=value words."""
        words = [word for instruction in self.all("ENV") for word in instruction.text.split()]
        return dict(word.split("=", 1) for word in words)

    @property
    def labels(self) -> dict[str, str]:
        """LABEL, key="value"."""
        text = " ".join(instruction.text for instruction in self.all("LABEL"))
        return dict(re.findall(r'([\w.]+)="([^"]*)"', text))

    def copies(self) -> list[tuple[list[str], str]]:
        """(sources, destination) of each COPY from the build context."""
        found = []
        for instruction in self.all("COPY"):
            words = instruction.text.split()
            if not words[0].startswith("--from="):
                found.append((words[:-1], words[-1]))
        return found


@dataclass(frozen=True)
class Dockerfile:
    """Its stages in order; the last is the image."""

    stages: list[Stage]
    arguments: dict[str, str]
    """ARG before the first FROM, with defaults."""

    @property
    def image(self) -> Stage:
        return self.stages[-1]


def read_dockerfile(path: Path) -> Dockerfile:
    """The file's instructions; `ValueError` for what this reader does not know."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name not in _KNOWN:
            raise ValueError(f"{path.name}: expected an instruction, got {name!r}")
        if name == "FROM":
            words = rest.split()
            base = words[0]
            for argument, default in arguments.items():
                base = base.replace(f"${{{argument}}}", default)
            stages.append(Stage(base, words[2] if len(words) == 3 else None))
        elif not stages:
            key, _, default = rest.partition("=")
            arguments[key] = default
        else:
            stages[-1].instructions.append(Instruction(name, rest.strip()))
    return Dockerfile(stages, arguments)


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore keeps `path` out of the build context: the last pattern that fits decides, and a pattern
    that fits a folder fits what lies in it."""
    ignored = False
    for pattern in patterns:
        excluded = not pattern.startswith("!")
        expression = re.compile(_as_expression(pattern.removeprefix("!").strip("/")))
        parents = [str(parent) for parent in (PurePosixPath(path), *PurePosixPath(path).parents) if str(parent) != "."]
        if any(expression.fullmatch(parent) for parent in parents):
            ignored = excluded
    return ignored


def _as_expression(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(piece, re.escape(piece)) for piece in pieces)


def read_dockerignore(path: Path) -> list[str]:
    """Its patterns in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def context_files(root: Path, source: str, patterns: list[str]) -> list[str]:
    """The files that COPY `source` takes from the context at `root`, as paths relative to it."""
    start = root / source
    found = [start] if start.is_file() else sorted(path for path in start.rglob("*") if path.is_file())
    names = [path.relative_to(root).as_posix() for path in found]
    return [name for name in names if not is_ignored(name, patterns)]
