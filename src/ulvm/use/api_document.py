"""What ``ulvm serve --api`` says of itself: OpenAPI 3.1, and the same as a page without scripts."""

import html
from typing import Any

from ulvm.version import __version__

_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_ERROR = {"$ref": "#/components/schemas/Error"}


def describe(*, bytes_at_most: int, pixels_at_most: int, seconds_at_most: float) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits."""
    picture = {
        "description": "The picture's file: PNG, JPEG, TIFF, BMP, WebP or GIF.",
        "required": True,
        "content": {
            "application/octet-stream": {},
            "image/*": {},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["picture"],
                    "properties": {"picture": _FILE},
                }
            },
        },
    }
    refused = {
        "400": "It is no picture that can be read, or an option is wrong.",
        "408": f"It took more than {seconds_at_most:g} s to arrive.",
        "413": f"It has more than {bytes_at_most:,} bytes or {pixels_at_most:,} pixels.",
        "504": f"Its result took more than {seconds_at_most:g} s.",
    }
    segment = {
        "operationId": "segment",
        "summary": "Outline the lesion in a picture",
        "description": "Answers with figures and polygons as JSON, with the mask as PNG where the "
        "first type of the Accept header is image/png, or with what `format` asks for.",
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "description": "json: figures and polygons; png: the mask, 0 and 255, at the "
                "picture's size; overlay: the picture with the outline.",
                "schema": {"type": "string", "enum": ["json", "png", "overlay"]},
            },
            {
                "name": "threshold",
                "in": "query",
                "description": "Probability from which a pixel is lesion; else the model's own.",
                "schema": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            },
        ],
        "requestBody": picture,
        "responses": {
            "200": {
                "description": "What was found.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Result"}},
                    "image/png": {},
                },
            },
            **{code: _refusal(words) for code, words in refused.items()},
            "503": {
                **_refusal("Too many pictures are waiting already."),
                "headers": {
                    "Retry-After": {
                        "description": "Seconds to wait.",
                        "schema": {"type": "integer"},
                    }
                },
            },
        },
    }
    health = {
        "operationId": "health",
        "summary": "Whether the server runs, and how busy it is",
        "responses": {
            "200": {
                "description": "It runs.",
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/Health"}}
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ulvm",
            "version": __version__,
            "summary": "Outlines skin lesions in pictures.",
            "description": "Not a medical device: for research and education, not for diagnosis. "
            "It draws an outline into any picture, even one without a lesion. Pictures are "
            "neither written nor kept.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {"/segment": {"post": segment}, "/health": {"get": health}},
        "components": {"schemas": _SCHEMAS},
    }


def write_page(document: dict[str, Any]) -> str:
    """The document as plain HTML, with the lines to try it."""
    parts = []
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
        "<pre>curl --data-binary @photo.jpg http://127.0.0.1:8765/segment\n"
        "curl --data-binary @photo.jpg http://127.0.0.1:8765/segment?format=png -o mask.png\n"
        "curl --form picture=@photo.jpg http://127.0.0.1:8765/segment</pre>"
        + "".join(parts)
        + '<p><a href="openapi.json">openapi.json</a></p></body></html>\n'
    )


def _refusal(words: str) -> dict[str, Any]:
    return {"description": words, "content": {"application/json": {"schema": _ERROR}}}


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _table(rows: list[tuple[str, str]]) -> str:
    cells = (
        f"<dt><code>{html.escape(name)}</code></dt><dd>{html.escape(words)}</dd>"
        for name, words in rows
    )
    return f"<dl>{''.join(cells)}</dl>"


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_SCHEMAS = {
    "Result": _object(
        size_hw={
            "description": "Height and width of the picture in pixels.",
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 2,
            "maxItems": 2,
        },
        threshold={
            "description": "Probability from which a pixel is lesion; null for several classes.",
            "type": ["number", "null"],
        },
        area_pixels={"description": "Pixels in the mask.", "type": "integer"},
        area_fraction={
            "description": "Share of the picture that the mask covers.",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        area_mm2={
            "description": "Area in mm², where the file says how large its pixels are; else null.",
            "type": ["number", "null"],
        },
        bounding_box_xyxy={
            "description": "Left, top, right, bottom; the last two exclusive. Null if empty.",
            "type": ["array", "null"],
            "items": {"type": "integer"},
        },
        mean_probability_inside={
            "description": "Mean probability within the mask; null if empty.",
            "type": ["number", "null"],
        },
        quality={
            "description": "An estimate of the mask's Dice; 0 for an empty mask.",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        warnings={
            "description": "Reasons not to trust the mask, the weightiest first.",
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"code": {"type": "string"}, "text": {"type": "string"}},
                "required": ["code", "text"],
            },
        },
        latency_ms={"description": "Time of resizing and inference.", "type": "number"},
        polygons={
            "description": "Outlines within a pixel of the mask, holes filled, largest first: "
            "x, y, x, y … in pixels from the top left corner.",
            "type": "array",
            "items": {"type": "array", "items": {"type": "number"}},
        },
        notice={"description": "What it must not be used for.", "type": "string"},
    ),
    "Health": _object(
        status={"description": "ok.", "type": "string"},
        version={"description": "Of ulvm.", "type": "string"},
        busy={"description": "Requests that wait or are worked on.", "type": "integer"},
        capacity={"description": "How many it takes before it answers 503.", "type": "integer"},
    ),
    "Error": _object(
        error={"description": "What happened and what to do, in sentences.", "type": "string"}
    ),
}
