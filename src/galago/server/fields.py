"""Fields that the bodies of several dialects have: their types, their ranges, and what is made of them.

Each is of its JSON type alone ("3" is no number), null counts as absent, and what nobody reads is let go.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from galago.errors import InvalidRequest
from galago.request import Detail, Sampling
from galago.values import is_text

MAX_BIASES = 300
MAX_SCHEMA = 256 << 10
"""characters of a JSON Schema"""
DETAILS: dict[str, Detail] = {"auto": "high", "low": "low", "high": "high", "original": "high"}


class Fields(BaseModel):
    """An object of a body."""

    model_config = ConfigDict(extra="ignore", strict=True)


def whole_number(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def some_of(names: Iterable[str], *types: str) -> dict[str, Any]:
    """What a JSON Schema says of an object that has one of these members, not null and no empty array."""
    ways = [{"required": [name], "properties": {name: {"type": list(types), "minItems": 1}}} for name in names]
    return ways[0] if len(ways) == 1 else {"anyOf": ways}


def no_more(name: str) -> dict[str, Any]:
    """What a JSON Schema says of an object where this member is absent or empty."""
    return {"properties": {name: {"enum": [None, []]}}}


def check_text(text: str) -> str:
    if not is_text(text):
        raise ValueError("holds half of a surrogate pair")
    return text


def few_enough(biases: Any) -> Any:
    """Before each is looked at, since all that are wrong would be told."""
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise ValueError(f"must have {MAX_BIASES} items at the most")
    return biases


def schema_text(schema: Any) -> str:
    """A JSON Schema that the text must fit, as text. Whether all of it can be enforced, the model tells."""
    if not isinstance(schema, dict):
        raise ValueError("must be an object")
    try:
        text = json.dumps(schema)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if len(text) > MAX_SCHEMA:
        raise ValueError(f"is longer than {MAX_SCHEMA} characters")
    return text


@dataclass(frozen=True)
class Unsupported:
    """Marks a field that asks for what cannot be had. Values that ask for no more than what happens anyway are let be.

    `instead` says in the error what there is in its place.
    """

    neutral: tuple[Any, ...] = ("", [], {})
    instead: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: Any) -> Any:
            # The types are compared too, since True == 1.
            if value is None or any(type(value) is type(one) and value == one for one in self.neutral):
                return None
            told = f"is not supported by this server{self.instead and '; '}{self.instead}"
            raise PydanticCustomError("unsupported_parameter", "{told}", {"told": told})

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.neutral], "description": self.instead or "not supported"}


T = TypeVar("T")
Items = Annotated[list[T], Field(fail_fast=True)]
"""An array, of whose items the first that is wrong is told."""
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, Field(pattern=r"\S")]
"""A text that is not blank."""
WHOLE = BeforeValidator(whole_number)
"""Of a field of type int; behind its range, since /openapi.json else lacks that."""
Count = Annotated[int, Field(ge=1), WHOLE]
Share = Annotated[float, Field(ge=0, le=1)]
Stop = Annotated[str, Field(min_length=1)]
JsonSchema = Annotated[str, BeforeValidator(schema_text), WithJsonSchema({"type": "object"})]
"""A JSON Schema, as text once it is read."""

# How text is drawn. OpenAI's and Moondream's clients have the same names for it.
Temperature = Annotated[float, Field(ge=0, le=2, description="0, the default, takes the likeliest token")]
TopP = Annotated[Share, Field(description="draw from the likeliest tokens of this probability together; 1 by default")]
Limit = Annotated[
    Literal[-1] | Annotated[int, Field(ge=1)],
    BeforeValidator(whole_number),
    Field(description="tokens of text at most; by default, and with -1, the model's own limit"),
]
Penalty = Annotated[float, Field(ge=-2, le=2, description="taken from the logits of tokens that the text has")]
TokenId = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


class SamplingFields(Fields):
    """How text is drawn."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    min_p: Annotated[Share, Field(description="leave out tokens below this share of the likeliest")] | None = None
    top_k: Annotated[int, Field(ge=-1, description="draw from so many tokens; 0 and -1 are all"), WHOLE] | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Annotated[Limit, Field(description="goes before max_tokens")] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1, description="makes what is drawn repeat"), WHOLE] | None = (
        None
    )
    stop: (
        Annotated[
            Stop | Annotated[Items[Stop], Field(max_length=4)],
            Field(description="text ends before the first of these, which is not given out"),
        ]
        | None
    ) = None
    repetition_penalty: (
        Annotated[float, Field(gt=0, allow_inf_nan=False, description="above 1 makes used tokens less likely")] | None
    ) = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[TokenId, Bias],
            Field(max_length=MAX_BIASES, description="added to the logits of tokens, by id"),
            BeforeValidator(few_enough),
        ]
        | None
    ) = None

    def sampling(self, json_schema: str | None = None) -> Sampling:
        limits = (limit for limit in (self.max_completion_tokens, self.max_tokens) if limit not in (None, -1))
        given: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "top_k": self.top_k if self.top_k and self.top_k > 0 else None,
            "max_tokens": next(limits, None),
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias and {int(token): by for token, by in self.logit_bias.items()},
            "json_schema": json_schema,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})


# What the text must fit, as OpenAI's clients and those of llama.cpp and Together say it.


class TextForm(Fields):
    type: Literal["text"]

    @property
    def schema_text(self) -> str | None:
        return None


class ObjectForm(Fields):
    type: Literal["json_object"]
    schema_: JsonSchema | None = Field(None, alias="schema")

    @property
    def schema_text(self) -> str | None:
        return self.schema_ or '{"type": "object"}'


class SchemaHolder(Fields):
    schema_: JsonSchema = Field(alias="schema")


class SchemaForm(Fields):
    """The schema stands in `json_schema` or beside the type."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [some_of(("json_schema",), "object"), some_of(("schema",), "object")]}
    )
    type: Literal["json_schema"]
    json_schema: SchemaHolder | None = None
    schema_: JsonSchema | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schema_text is None:
            raise PydanticCustomError("member_missing", "", {"at": "json_schema"})
        return self

    @property
    def schema_text(self) -> str | None:
        return self.json_schema.schema_ if self.json_schema else self.schema_


ResponseFormat = Annotated[TextForm | ObjectForm | SchemaForm, Field(discriminator="type")]


def schema_of(form: ResponseFormat | None) -> str | None:
    return form.schema_text if form else None


def detail_of(given: str | None) -> Detail | None:
    """How closely an image is looked at; None where that is not said. Any detail but low is high."""
    return None if not given else "low" if given == "low" else "high"


def required(path: str, what: str = "") -> InvalidRequest:
    return InvalidRequest(f"{path} is required{what}", path)
