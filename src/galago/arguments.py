"""Reading what the methods of a Model are given. All raise InvalidRequest, naming the argument."""

from collections.abc import Mapping
from typing import Any, cast

from galago.errors import InvalidRequest
from galago.request import Detail

Settings = Mapping[str, Any]
BOX = ("x_min", "y_min", "x_max", "y_max")


def variant_of(settings: Settings | None) -> str | None:
    variant = (settings or {}).get("variant")
    if variant is not None and not isinstance(variant, str):
        raise InvalidRequest("variant must be a text", "variant")
    return variant


def detail_of(settings: Settings | None) -> Detail:
    detail = (settings or {}).get("detail") or "high"
    if detail not in ("low", "high"):
        raise InvalidRequest("detail must be low or high", "detail")
    return cast(Detail, detail)


def limit_of(settings: Settings | None) -> dict[str, int]:
    most = (settings or {}).get("max_objects")
    return {} if most is None else {"max_objects": most}


def spot(point: tuple[float, float]) -> dict[str, float]:
    return {"x": point[0], "y": point[1]}


def as_tuple(value: Any) -> Any:
    """A list as the tuple that requests hold; what is neither is refused there."""
    return tuple(value) if isinstance(value, list) else value


def numbers_of(value: Any, keys: tuple[str, ...], param: str) -> Any:
    if isinstance(value, Mapping):
        if set(value) != set(keys):
            raise InvalidRequest(f"{param} must have {', '.join(keys)}", param)
        return tuple(value[k] for k in keys)
    return as_tuple(value)
