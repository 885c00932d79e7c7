"""`python -m training results`: reports of runs and tables of `ablate` side by side as Markdown, docs/results.md.

A document names the files that its blocks are made of, and is written again from them:

    <!-- results: results/synthetic/controls.json results/synthetic/stopping.json -->
    ...
    <!-- results end -->

Every number is taken from the files as runs wrote them; nothing is computed but means, spreads and paired differences
over seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.ablate import markdown as of_ablate
from training.errors import DataError
from training.report import markdown as of_runs
from training.whole import write_whole

_BLOCK = re.compile(r"(<!-- results: (?P<files>[^>]*?) -->\n).*?(<!-- results end -->)", re.DOTALL)


def markdown(paths: Sequence[Path]) -> str:
    """A section a file, in the order given; before the first of several tables, what they say of each claim."""
    return "\n".join(_lines([_read(path) for path in paths]))


def write_into(document: Path) -> None:
    """Every block of a document, from the files that it names: paths from the document's folder, parted by spaces."""
    try:
        before = document.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{document}: expected a document to write into: {error.strerror or error}") from None
    if not _BLOCK.search(before):
        raise DataError(
            f"{document}: expected a block to write, '<!-- results: FILE ... -->' and below it '<!-- results end -->', "
            "got none"
        )

    def made(block: re.Match[str]) -> str:
        files = [document.parent / name for name in block["files"].split()]
        return f"{block[1]}\n{markdown(files).strip()}\n\n{block[3]}"

    write_whole(document, _BLOCK.sub(made, before))


def _lines(trees: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    tables = [tree for tree in trees if "table" in tree]
    for tree in trees:
        if len(tables) > 1 and tree is tables[0]:
            yield from of_ablate.overview(tables)
        yield from of_ablate.section(tree) if "table" in tree else of_runs.section(tree)


# Other files that runs leave have some of these keys: what each alone has all of.
_OF_TABLE = {"table", "recipe", "seeds", "rows", "claims", "metric"}
_OF_REPORT = {"name", "recipe", "seeds", "test", "headline", "targets"}


def _read(path: Path) -> dict[str, Any]:
    expected = f"{path}: expected the report.json of a run or a table of ablate"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{expected}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{expected}: {error}") from None
    if not isinstance(tree, dict) or not (tree.keys() >= _OF_TABLE or tree.keys() >= _OF_REPORT):
        raise DataError(f"{expected}, got JSON that is neither")
    return tree
