"""The description of the interface as one page for people, made from the OpenAPI; it works without a network.

FastAPI's own pages load their script from a CDN, and an ad server's network may have no way there. This one is
HTML and nothing else: no script, no style sheet, no font from anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import orjson

HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h2 { margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; font-family: monospace }
table { border-collapse: collapse } td { border-top: 1px solid #ddd; padding: .3rem .8rem .3rem 0; vertical-align: top }
pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: 14px } summary { cursor: pointer }
"""


def render(openapi: dict[str, Any]) -> str:
    """The page: every route with its members, an example of each request and of each answer."""
    info = openapi["info"]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>{_text(info['title'])}</title><style>{_STYLE}</style>",
        f"<h1>{_text(info['title'])}</h1><p>{_text(info['summary'])}</p>",
        '<p>For machines: <a href="openapi.json">openapi.json</a>. Every code, metric and option: docs/api.md.</p>',
    ]
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            parts += _operation(method, path, operation)
    return "\n".join(parts) + "\n</html>\n"


def _text(value: object) -> str:
    return html.escape(str(value))


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2>{method.upper()} {_text(path)}</h2><p>{_text(operation['summary'])}</p>"
    if "requestBody" in operation:
        for media in operation["requestBody"]["content"].values():
            yield "<table>"
            for name, schema in media["schema"]["properties"].items():
                kind, description = _kind(schema), schema.get("description", "")
                yield f"<tr><td><code>{_text(name)}</code><td>{_text(kind)}<td>{_text(description)}"
            yield "</table>"
            yield from _examples(media["examples"])
    for status, response in operation["responses"].items():
        yield f"<h3>{_text(status)}</h3>"
        for kind, media in response["content"].items():
            yield f"<p>{_text(kind)}"
            yield from _examples(media["examples"])


def _kind(schema: dict[str, Any]) -> str:
    kinds = schema["type"] if "type" in schema else [part["type"] for part in schema["oneOf"]]
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _examples(examples: dict[str, Any]) -> Iterator[str]:
    for name, example in examples.items():
        value = example["value"]
        shown = value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
        title = f"{_text(name)}: {_text(example['summary'])}"
        yield f"<details><summary>{title}</summary><pre>{_text(shown)}</pre></details>"
