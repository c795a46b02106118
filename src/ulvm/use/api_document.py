"""What ``ulvm serve --api`` says of itself: OpenAPI 3.1, and the same as a page without scripts.

``openapi.json`` is the document, with places for the version and for a server's limits.
"""

import html
import json
from importlib import resources
from string import Template
from typing import Any

from ulvm.version import __version__


def describe(*, bytes_at_most: int, pixels_at_most: int, seconds_at_most: float) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits."""
    text = resources.files(__package__).joinpath("openapi.json").read_text(encoding="utf-8")
    filled = Template(text).safe_substitute(  # `$ref` stays
        version=__version__,
        bytes=f"{bytes_at_most:,}",
        pixels=f"{pixels_at_most:,}",
        seconds=f"{seconds_at_most:g}",
    )
    document: dict[str, Any] = json.loads(filled)
    return document


def write_page(document: dict[str, Any], address: object) -> str:
    """The document as plain HTML, with the lines to try it at the server's address."""
    parts = []
    segment = html.escape(f"{address}segment")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {path}</code></h2>")
            parts.append(_paragraph(operation["summary"] + "."))
            parts.append(_paragraph(operation.get("description", "")))
            rows = [
                (f"?{each['name']}=", each["description"])
                for each in operation.get("parameters", [])
            ]
            rows += [(code, each["description"]) for code, each in operation["responses"].items()]
            parts.append(_table(rows))
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"<h2>{name}</h2>")
        rows = [(key, each["description"]) for key, each in schema["properties"].items()]
        parts.append(_table(rows))
    info = document["info"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>ulvm, the API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"></head><body>'
        f"<h1>ulvm {html.escape(info['version'])}, the API</h1>{_paragraph(info['description'])}"
        f"<pre>curl --data-binary @photo.jpg {segment}\n"
        f"curl --data-binary @photo.jpg {segment}?format=png -o mask.png\n"
        f"curl --form picture=@photo.jpg {segment}</pre>"
        + "".join(parts)
        + '<p><a href="openapi.json">openapi.json</a></p></body></html>\n'
    )


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (
        f"<dt><code>{html.escape(name)}</code></dt><dd>{html.escape(words)}</dd>"
        for name, words in rows
    )
    return f"<dl>{''.join(cells)}</dl>"
