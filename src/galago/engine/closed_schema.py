"""JSON Schemas whose objects have the members that they list, and no others.

A schema that does not speak of additional members allows any. Nobody who lists members means that, and a small model
makes up one after another.
"""

import json
from collections.abc import Iterator
from typing import Any

# Where a text must fit several parts at once, or must not fit one, no part can be closed by itself.
_COMBINING = {"allOf", "oneOf", "not", "if", "dependentSchemas", "$dynamicRef"}
_ELSEWHERE = {"$ref", "anyOf"}
_OF_OTHERS = {"additionalProperties", "patternProperties", "minProperties", "propertyNames", "unevaluatedProperties"}
_OF_OBJECTS = {"properties", "required", *_OF_OTHERS}
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("prefixItems", "anyOf", "items")
_SINGLE = ("items", "additionalProperties", "contains")


def close_schema(json_schema: str) -> str:
    """The schema with `additionalProperties: false` wherever members are listed and nothing is said of others.

    What fits it fits the given schema too. A schema that combines others stays as it is, and so does what is none.
    """
    try:
        schema = json.loads(json_schema)
    except ValueError:
        return json_schema
    parts = list(_parts(schema))
    if any(_is_combined(part) for part in parts):
        return json_schema
    for part in parts:
        listed = part.get("properties")
        if isinstance(listed, dict) and not _OF_OTHERS & part.keys():
            wanted = part.get("required", [])
            if isinstance(wanted, list) and all(isinstance(name, str) and name in listed for name in wanted):
                part["additionalProperties"] = False
    return json.dumps(schema)


def _is_combined(part: dict[str, Any]) -> bool:
    elsewhere = _ELSEWHERE & part.keys()
    return bool(_COMBINING & part.keys()) or len(elsewhere) + bool(elsewhere and _OF_OBJECTS & part.keys()) > 1


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and those within it; what stands in enum, const or default is none."""
    if not isinstance(schema, dict):
        return
    yield schema
    inner = [schema.get(name) for name in _SINGLE]
    inner += [one for name in _BY_NAME if isinstance(named := schema.get(name), dict) for one in named.values()]
    inner += [one for name in _LISTS if isinstance(listed := schema.get(name), list) for one in listed]
    for one in inner:
        yield from _parts(one)
