"""Calls of tools that a request demands: the text is held to the JSON Schema of the tool's parameters, and is the call.

Without a demand no model here calls a tool: the answer is text.
"""

import json
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from galago.errors import InvalidRequest
from galago.server.bodies import Json, validate
from galago.server.fields import Fields, Items, JsonSchema, Name

FunctionCall = TypedDict("FunctionCall", {"name": str, "arguments": str})
ToolCall = TypedDict("ToolCall", {"id": str, "type": Literal["function"], "function": FunctionCall})


class ToolFunction(Fields):
    name: Name
    parameters: JsonSchema = '{"type": "object"}'


class Tool(Fields):
    type: Literal["function"]
    function: ToolFunction


class ToolList(Fields):
    tools: Items[Tool]


class ToolName(Fields):
    name: Name


class ToolChoice(Fields):
    """A tool that must be called."""

    type: Literal["function"]
    function: ToolName


class Demand:
    """The tools of which one must be called."""

    def __init__(self, choice: Literal["required"] | ToolChoice, tools: Sequence[Any]) -> None:
        """Raises InvalidRequest for tools that are no functions, and where the one that is named is none of them."""
        if not tools:
            raise InvalidRequest("tools must have one or more tools, since tool_choice demands a call", "tools")
        functions = [tool.function for tool in validate(ToolList, {"tools": tools}).tools]
        known = {function.name: function for function in functions}
        if isinstance(choice, ToolChoice):
            if choice.function.name not in known:
                at = "tool_choice.function.name"
                raise InvalidRequest(f"{at} must be the name of a tool: {', '.join(known)}", at)
            known = {choice.function.name: known[choice.function.name]}
        self._parameters = {name: function.parameters for name, function in known.items()}
        places = [f"tools.{i}.function.parameters" for i, one in enumerate(functions) if one is known.get(one.name)]
        self.schema_path = places[0] if len(places) == 1 else "tools"

    @property
    def schema(self) -> str:
        """Of one tool the arguments alone; of several the name before them."""
        if len(self._parameters) == 1:
            return next(iter(self._parameters.values()))
        ways = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": json.loads(parameters)},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, parameters in self._parameters.items()
        ]
        return json.dumps({"anyOf": ways})

    def call(self, text: str) -> ToolCall:
        """The call that a text of the schema is; one that was cut before it named a tool is of the first."""
        name, arguments = next(iter(self._parameters)), text
        if len(self._parameters) > 1:
            try:
                told: Json = json.loads(text)
                name, arguments = told["name"], json.dumps(told["arguments"], ensure_ascii=False)
            except (ValueError, KeyError):
                pass
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
