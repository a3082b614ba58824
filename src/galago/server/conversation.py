"""Conversations in bodies: from messages to turns, with what they show where it is to stand."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from galago.errors import InvalidRequest, quoted
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import ROLES, TOOL_ROLES, with_tools
from galago.request import Chat, Detail, Message, Role, merge_turns
from galago.server.bodies import Json
from galago.server.dialect import Body, Defaults
from galago.server.errors import Refused
from galago.server.fields import Fields, Items, Text, Unsupported
from galago.server.shown import Attached, File, ImagePart, MediaRef, VideoPart, detail_of

DESCRIBE, DESCRIBE_VIDEO = "Describe what you see in this image.", "Describe what happens in this video."
MAX_IMAGES = 64
Parts = tuple[str | MediaRef, ...]
Turn = tuple[Role, Parts]
"""A turn whose images are still to be opened."""


# --- messages as OpenAI's clients write them -----------------------------------------------------


class TextPart(Attached):
    type: Literal["text", "input_text"]
    text: Text


class RefusalPart(Fields):
    """What the assistant would not do."""

    type: Literal["refusal"]
    refusal: Text


class FileObject(Fields):
    file_data: File
    detail: str | None = None


class FilePart(Fields):
    """A file, which must hold an image."""

    type: Literal["file"]
    file: FileObject

    def ref(self, path: str) -> MediaRef:
        return MediaRef(self.file.file_data.strip(), f"{path}file.file_data", False, detail_of(self.file.detail))


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]


class Function(Fields):
    name: Text
    arguments: Text | dict[str, Any] | None = None


class Call(Fields):
    """A call of a tool, which becomes text of the conversation."""

    function: Function


_ONLY_ASSISTANT: Json = {
    "if": {"properties": {"role": {"const": "assistant"}}},
    "else": {"properties": {"tool_calls": {"enum": [None, []]}, "function_call": {"type": "null"}}},
}


class MessageBody(Attached):
    """A message; `images` and their like beside its content are shown before it."""

    model_config = ConfigDict(json_schema_extra=_ONLY_ASSISTANT)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Items[Text | Part] | None = None
    tool_calls: Items[Call] | None = None
    function_call: Function | None = None
    audio: Annotated[Any, Unsupported()] = None

    def turn(self, path: str) -> Turn:
        """`path` is where the message stands, with its dot."""
        role = ROLES[self.role]
        for name in () if role == "assistant" else ("tool_calls", "function_call"):
            if getattr(self, name):
                raise Refused("unsupported_parameter", f"{path}{name} is not supported by this server", path + name)
        content = [self.content] if isinstance(self.content, str) else self.content or []
        parts = (*self.attached(path), *(p for i, one in enumerate(content) for p in self._parts(one, path, i)))
        if role != "user" and (shown := next((part for part in parts if isinstance(part, MediaRef)), None)):
            raise InvalidRequest(
                f"only a message of the user shows something, not {shown.path} of the {role}", shown.path
            )
        if self.tool_calls or self.function_call or self.role in TOOL_ROLES:
            return role, with_tools(self.model_dump(include={"role", "tool_calls", "function_call"}), parts, path)
        return role, parts

    def _parts(self, part: Any, path: str, i: int) -> Iterator[str | MediaRef]:
        at = f"{path}content.{i}."
        match part:
            case str(text):
                yield text
            case TextPart():
                yield from part.attached(at)
                yield part.text
            case RefusalPart(refusal=text) if self.role == "assistant":
                yield text
            case ImagePart() | VideoPart() | FilePart() if ROLES[self.role] == "user":
                yield part.ref(at)
            case _:
                told = f"a part of type {quoted(part.type)} cannot stand in a turn of the {self.role}"
                raise InvalidRequest(told, f"{at}type")


Messages = Annotated[Items[MessageBody], Field(min_length=1, description="ends with a turn of the user")]


# --- conversations of every dialect ----------------------------------------------------------------


class ConversationBody(Body):
    """A body that holds a conversation, of which `turns` says where it stands in it."""

    kind = Chat
    _turns: list[Turn] = PrivateAttr()

    @abstractmethod
    def turns(self) -> list[Turn]:
        """The messages in their order. Raises InvalidRequest with the path of what is wrong."""

    @model_validator(mode="after")
    def _read(self) -> Self:
        merged = merge_turns(self.turns())
        self._turns = [(role, _with_question(parts)) for role, parts in merged]
        self._media = [part for _, parts in self._turns for part in parts if isinstance(part, MediaRef)]
        if len(self._media) > MAX_IMAGES:
            at = self._media[MAX_IMAGES].path
            raise Refused("too_many_images", f"a request holds {MAX_IMAGES} images at most", at)
        return self

    def forget_media(self) -> None:
        super().forget_media()
        self._turns = []

    def conversation(self, opened: Sequence[Picture | Clip]) -> Chat:
        """The conversation with its images and videos where they stood; where there are fewer, as of a sheet of all,
        in the first places."""
        left = iter(opened)
        placed = ((role, tuple(p if isinstance(p, str) else next(left, None) for p in ps)) for role, ps in self._turns)
        return Chat(tuple(Message(role, tuple(part for part in parts if part is not None)) for role, parts in placed))

    def details(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> tuple[Detail, ...]:
        """How closely each of what is shown is looked at."""
        return tuple(ref.detail or defaults.detail for ref in self.media)[: len(opened)]


def show_beside(turns: list[Turn], beside: Sequence[MediaRef]) -> list[Turn]:
    """What stands beside all messages is shown with the last one of the user, as Ollama's clients mean it."""
    if beside:
        last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=None)
        if last is None:
            raise InvalidRequest("what is shown needs a message of the user", beside[0].path)
        turns[last] = ("user", (*beside, *turns[last][1]))
    return turns


def _with_question(parts: Parts) -> Parts:
    """The same, with a question where images or videos stand alone."""
    shown = tuple(part for part in parts if isinstance(part, MediaRef))
    if not shown or any(isinstance(part, str) and part.strip() for part in parts):
        return parts
    return (*cast(Parts, shown), DESCRIBE_VIDEO if any(one.is_video for one in shown) else DESCRIBE)
