"""Text that a person wrote, JSON or YAML, as plain values: schemas and recipes are read by this.

Stricter than the libraries: a key written twice in one mapping is refused, not quietly halved, and YAML runs nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

MAX_YAML_DEPTH = 100
"""More takes the YAML reader seconds to refuse: its time grows with the square of the depth."""


class DocumentError(ValueError):
    """Text that is neither JSON nor YAML, or says a key twice; the message says where and what."""


def parse_document(text: str) -> object:
    """The value that the text says: of JSON, or of YAML where the package `yaml` is installed.

    Raises `DocumentError`.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as not_json:
        try:
            import yaml
        except ImportError:
            raise DocumentError(f"not JSON ({not_json}); YAML needs the package pyyaml") from None
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists within lists
        raise DocumentError(f"cannot be read: {error}") from None

    class Loader(yaml.SafeLoader):
        """yaml's safe loader, which would otherwise keep the last of two equal keys without a word."""

        depth = 0

        def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
            if self.flow_level >= MAX_YAML_DEPTH:  # before the parser comes to it: the scanner looks ahead
                raise DocumentError(f"nested more than {MAX_YAML_DEPTH} deep")
            super().fetch_flow_collection_start(token)

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.depth > MAX_YAML_DEPTH:
                raise DocumentError(f"nested more than {MAX_YAML_DEPTH} deep")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        _refuse_doubles((loader.construct_object(key, deep=True) for key in own), f" ({_place(node.start_mark)})")
        loader.flatten_mapping(node)  # `<<` brings defaults, which own keys override
        return dict(loader.construct_pairs(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DocumentError(f"neither JSON nor YAML: {error.problem}{f' ({_place(mark)})' if mark else ''}") from None
    except yaml.YAMLError as error:
        raise DocumentError(f"neither JSON nor YAML: {error}") from None
    except DocumentError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # A date that is none, a list for a key; PyYAML also fails in many ways where a tag and its value do not fit.
        raise DocumentError(f"cannot be read: {error}") from None


def _place(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_doubles((key for key, _ in pairs), "")
    return dict(pairs)


def _refuse_doubles(keys: Iterable[Any], place: str) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DocumentError(f"key {twice[0]!r} is written twice{place}")
