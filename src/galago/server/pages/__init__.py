"""The HTML pages, which need nothing from elsewhere: the page to see with, in app/, and the documentation, which is
rendered on the server and needs no script."""

import io
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

from galago.errors import InvalidImage, quoted
from galago.media.containers import is_video
from galago.media.formats import format_of
from galago.server.bodies import Json
from galago.server.errors import Refused

# Pictures that a page made itself, such as a preview of what a person picked, are data: or blob:.
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
KINDS = {"js": "text/javascript", "css": "text/css", "png": "image/png", "svg": "image/svg+xml"}
"""Types of the page's files, by how their names end"""
_SECURITY_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def html_response(page: str, headers: Mapping[str, str] = {}) -> HTMLResponse:
    """The reply with a page, which may load nothing from elsewhere and not be framed. `headers` go before our own."""
    return HTMLResponse(page, headers={**_SECURITY_HEADERS, **headers})


def start_page() -> HTMLResponse:
    """The page to see with, which asks the server for all else by its public routes."""
    return html_response(_app_file("index.html").decode())


def app_file(name: str) -> Response:
    """A file of that page. Raises Refused for all others."""
    kind = KINDS.get(name.rpartition(".")[2])
    if kind is None or name not in _app_files():
        raise Refused("not_found", f"the page has no file {quoted(name)}")
    # Asked for anew each time, so that no page is half of an older version.
    return Response(_app_file(name), media_type=kind, headers={**_SECURITY_HEADERS, "Cache-Control": "no-cache"})


def picture_response(data: bytes) -> Response:
    """A picture or a video from elsewhere, for the page to show. Raises InvalidImage for whatever else it is."""
    format = format_of(io.BytesIO(data))
    if format is None and not is_video(data[:64]):
        raise InvalidImage("what is at this address is neither a picture nor a video that is known here", "url")
    kind = f"image/{format.lower()}" if format else "video/mp4" if data[4:8] == b"ftyp" else "video/webm"
    return Response(data, media_type=kind, headers={**_SECURITY_HEADERS, "Content-Disposition": "attachment"})


@cache
def _app_files() -> frozenset[str]:
    return frozenset(file.name for file in files(__package__).joinpath("app").iterdir())


@cache
def _app_file(name: str) -> bytes:
    return files(__package__).joinpath("app", name).read_bytes()


def docs_page(document: Json) -> str:
    """An OpenAPI document as tables."""
    tags: dict[str, list[Json]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for tag in operation["tags"]:
                tags.setdefault(tag, []).append({**operation, "method": method.upper(), "path": path})
    fields = {name: _rows(schema) for name, schema in document["components"]["schemas"].items()}
    return _render("docs.html", info=document["info"], tags=tags, schemas=fields)


def style() -> str:
    return files(__package__).joinpath("style.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("galago.server", "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    made.filters["words"] = _words
    return made


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


# --- schemas in words ------------------------------------------------------------------------


def _rows(schema: Json) -> list[Json]:
    """The rows of a schema: of an object, or of all the objects that it may be."""
    return list(_fields(schema)) if "properties" in schema else _inside(schema, "")


def _inside(schema: Json, path: str) -> list[Json]:
    """The rows of the objects that a field may hold. A field of several objects is listed once, as in the first."""
    rows: dict[str, Json] = {}
    for found in _objects(schema):
        for row in _fields(found, path):
            rows.setdefault(row["name"], row)
    return list(rows.values())


def _fields(schema: Json, path: str = "") -> Iterator[Json]:
    """A row for each field of an object, those of objects inside it after it."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        at = f"{path}{name}"
        about = field.get("description", "")
        yield {"name": at, "type": _words(field), "required": name in required, "about": about}
        yield from _inside(field, f"{at}.")


def _objects(schema: Json) -> Iterator[Json]:
    """The objects that a field may hold, alone or in an array."""
    if "properties" in schema:
        yield schema
    for other in schema.get("anyOf", ()):
        yield from _objects(other)
    if isinstance(schema.get("items"), dict):
        yield from _objects(schema["items"])


def _words(schema: Json) -> str:
    """What a value may be."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema and "type" not in schema:
        return " or ".join(dict.fromkeys(map(_words, schema["anyOf"])))
    kinds = schema.get("type", "anything")
    return " or ".join(_kind(kind, schema) for kind in (kinds if isinstance(kinds, list) else [kinds]))


def _kind(kind: str, schema: Json) -> str:
    if kind == "array":
        return f"array of ({_words(schema['items'])})"
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if kind in ("number", "integer") and (low is not None or high is not None):
        above = "above " if "exclusiveMinimum" in schema else ""
        return f"{kind} {above}{'' if low is None else low}..{'' if high is None else high}"
    return kind
