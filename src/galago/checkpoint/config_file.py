"""Reading the JSON files of checkpoints and checking their fields.

A family declares a frozen dataclass whose fields say, by `member`, what a file may hold for each, under which name,
and what it is where the file says nothing; `read` makes one of a file's members. Every fault is a CheckpointError
that names the file and the field, and says what it holds and what is allowed.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from galago.checkpoint.tensors import unreadable_file
from galago.errors import CheckpointError, shortened

T = TypeVar("T")
MOST_BYTES = 64 << 20
"""Of a file that is read as JSON."""


@dataclass(frozen=True)
class FieldRule:
    """The values that a field may hold, in words; `convert` raises ValueError for any other."""

    allowed: str
    convert: Callable[[Any], Any]


class Members(Mapping[str, Any]):
    """The members of a JSON object, with the file that it is of and its place there. JSON null counts as absent."""

    def __init__(self, members: Mapping[str, Any], file: str, place: str = "") -> None:
        self._members, self.file, self._path = members, file, place

    def __getitem__(self, name: str) -> Any:
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        return f"Members({dict(self._members)!r}, {self.file!r})"

    def take(self, name: str, rule: FieldRule, default: Any) -> Any:
        """The value of a field, or the default. Raises CheckpointError for what the rule does not allow."""
        value = self.get(name)
        if value is None:
            return default
        try:
            return rule.convert(value)
        except ValueError:
            raise self._refused(name, rule.allowed) from None

    def needed(self, name: str, rule: FieldRule) -> Any:
        """The value of a field that must be there. Raises CheckpointError."""
        value = self.take(name, rule, None)
        if value is None:
            raise CheckpointError(f"{self.file}: {self._path}{name} is missing; allowed is {rule.allowed}")
        return value

    def part(self, name: str) -> "Members":
        """The object in a field, empty where there is none. Raises CheckpointError for anything else."""
        given = self.take(name, OBJECT, {})
        return Members(given, self.file, f"{self._path}{name}.")

    def only(self, *known: str, ignored: Collection[str] = ()) -> None:
        """Raise CheckpointError for a field that is not among the known ones."""
        for name in sorted(set(self) - set(known) - set(ignored)):
            raise CheckpointError(
                f"{self.file}: unknown field {self._path}{shortened(name)}; known are {', '.join(known)}"
            )

    def require(self, name: str, value: Any, holds: bool, allowed: str) -> None:
        """Raise CheckpointError unless it holds; `value` is what stands for a field of which the file says nothing."""
        if not holds:
            raise self._refused(name, allowed, value)

    def _refused(self, name: str, allowed: str, value: Any = None) -> CheckpointError:
        given = self.get(name)
        holds = _as_json(given) if given is not None else f"{_as_json(value)}, by default"
        return CheckpointError(f"{self.file}: {self._path}{name} is {holds}; allowed is {allowed}")


def members_of(given: Mapping[str, Any], file: str) -> Members:
    """The Members of an object in a file of this name; what is Members already stays as it is."""
    return given if isinstance(given, Members) else Members(given, file)


def read_json(file: Path) -> Members:
    """The object in a JSON file, empty where there is no file. Raises CheckpointError for anything else."""
    try:
        if file.is_file() and file.stat().st_size > MOST_BYTES:
            raise unreadable_file(file, f"is larger than {MOST_BYTES >> 20} MiB, which no config is")
        # Windows' PowerShell puts a byte-order mark before what it writes.
        text = file.read_bytes().decode("utf-8-sig") if file.is_file() else "{}"
        found = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise unreadable_file(file, f"is not JSON: {shortened(str(error))}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} must hold a JSON object, not {_as_json(found)}")
    return Members(found, str(file))


# --- what is declared --------------------------------------------------------------------------


def member(rule: FieldRule, default: Any = None, name: str | None = None) -> Any:
    """A dataclass's field that a file may give, under `name` unless it is the field's own.

    A default of None is one that `read` is told.
    """
    return field(default=default, metadata={"rule": rule, "name": name})


def read(kind: type[T], given: Members, **defaults: Any) -> T:
    """A dataclass of `member` fields from a file's members, which may have others too.

    `defaults` go before the declared ones. Raises CheckpointError for a field that holds what is not allowed, and for
    one that is missing and has no default.
    """
    made = {}
    for declared in fields(kind):  # type: ignore[arg-type]
        if "rule" not in declared.metadata:
            continue
        name = declared.metadata["name"] or declared.name
        rule, default = declared.metadata["rule"], defaults.get(declared.name, declared.default)
        made[declared.name] = given.needed(name, rule) if default is None else given.take(name, rule, default)
    return kind(**made)


def whole(least: int, most: int) -> FieldRule:
    """A whole number in this range. JSON has one kind of number: 3.0 is 3."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise ValueError
        if not least <= value <= most:
            raise ValueError
        return int(value)

    return FieldRule(f"a whole number from {least} to {most}", convert)


def number(above: float, most: float) -> FieldRule:
    """A number in this range, which NaN and Infinity are not."""

    def convert(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            raise ValueError
        return float(value)

    return FieldRule(f"a number above {above:g}, at most {most:g}", convert)


def one_of(*values: Any) -> FieldRule:
    def convert(value: Any) -> Any:
        # 1 and 1.0 are true to Python.
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            raise ValueError
        return value

    words = [json.dumps(value) for value in values]
    return FieldRule(words[0] if len(words) == 1 else f"one of {', '.join(words)}", convert)


def none(why: str) -> FieldRule:
    """A field that must not be there."""

    def convert(value: Any) -> Any:
        raise ValueError

    return FieldRule(f"none: {why}", convert)


def list_of(rule: FieldRule, most: int) -> FieldRule:
    """A list of up to so many, as a tuple."""

    def convert(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ValueError
        return tuple(rule.convert(one) for one in value)

    return FieldRule(f"a list of at most {most}, each {rule.allowed}", convert)


def _as_json(value: Any) -> str:
    """A value as JSON, cut."""
    try:
        return shortened(json.dumps(value, default=str))
    except (ValueError, RecursionError):  # what is deep, or has very many digits
        return f"a value of type {type(value).__name__}"


def _instance(kind: type, allowed: str) -> FieldRule:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return FieldRule(allowed, convert)


def close_to(wanted: float) -> FieldRule:
    """A number that is this one but for rounding, or a list of such."""

    def convert(value: Any) -> float:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, int | float) or not math.isclose(one, wanted, rel_tol=1e-5):
                raise ValueError
        return wanted

    return FieldRule(f"{wanted:g}", convert)


OBJECT = _instance(Mapping, "an object")
TEXT = _instance(str, "a text")
FLAG = _instance(bool, "true or false")
