"""What JSON Schemas are put together of. Optional fields may be null; fields that nobody knows are ignored."""

from typing import Any

from galago.server.bodies import Json

NULL: Json = {"type": "null"}
TEXT: Json = {"type": "string"}
FILLED: Json = {"type": "string", "pattern": r"\S"}
SHARE: Json = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Json = {"type": "integer", "minimum": 0}
SECONDS: Json = {"type": "number", "minimum": 0}
FLAG: Json = {"type": "boolean"}
WARNINGS: Json = {
    "type": "array",
    "items": TEXT,
    "description": "what of the images and videos could not be read; absent where all was",
}
IMAGE: Json = {
    "type": "string",
    "format": "image-url",
    "description": "the image itself: a data: URL in base64, or the bare base64; JPEG, PNG, WebP, GIF, BMP and others",
}
VIDEO: Json = {
    "type": "string",
    "format": "video-url",
    "description": "the video itself: a data: URL in base64, or the bare base64; MP4, WebM, GIF and others",
}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Json, optional: Json | None = None, description: str = "") -> Json:
    """An object with these fields, and perhaps others."""
    made: Json = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        made["required"] = list(required)
    return made | ({"description": description} if description else {})


def array(items: Json, least: int = 0, most: int | None = None) -> Json:
    made: Json = {"type": "array", "items": items}
    return made | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})


def may(schema: Json, description: str = "") -> Json:
    """The same, or null, which counts as absent."""
    made: Json
    if "enum" in schema:
        made = {**schema, "enum": [*schema["enum"], None]}
        made.pop("type", None)
    elif isinstance(schema.get("type"), str) and "format" not in schema:
        made = {**schema, "type": [schema["type"], "null"]}
    else:
        made = {"anyOf": [schema, NULL]}
    return made | ({"description": description} if description else {})


def choice(*values: Any) -> Json:
    return {"enum": list(values)}
