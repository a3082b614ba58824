"""How each kind of model is asked, and so which skills it has."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedConfig
from transformers.processing_utils import ProcessorMixin

from galago.backends.conversation import CAPTION, messages_of
from galago.errors import InvalidRequest, TooManyImages, UnsupportedTask
from galago.media.clip import Clip
from galago.media.load import ONE_BY_ONE
from galago.request import Caption, Chat, Encoding, Media, Message, Query, Request, Skill

CAPTIONS_ONLY = {"blip", "git", "vision-encoder-decoder"}
"""model_types whose models write a caption of an image and read no prompt."""
ANSWERS_ONLY = {"BlipForQuestionAnswering"}
"""Classes of models that answer a question about an image and write no captions."""
PLAIN = {
    "paligemma": ("caption en", "answer en {}"),
    "blip-2": ("", "Question: {} Answer:"),
    "kosmos-2": ("An image of", "Question: {} Answer:"),
    "llava": ("USER: <image>\nDescribe this image. ASSISTANT:", "USER: <image>\n{} ASSISTANT:"),
}
"""Prompts for a caption and for a question, as models without a chat template were trained with them."""


@dataclass(frozen=True)
class Prompt:
    """What a model reads: images, and a text or the messages of a conversation."""

    images: tuple[Media, ...]
    text: str | None = None
    """in which {} stands for the question"""
    question: str = ""
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Kind:
    """How a model is asked."""

    skills: frozenset[type[Skill]]
    plain: tuple[str, str] | None = None
    """prompts for a caption and for a question, of a model that reads text and has no chat template"""
    note: str | None = None
    """what of the checkpoint is not used, a sentence"""

    @property
    def converses(self) -> bool:
        """Whether it reads conversations, by a chat template."""
        return Chat in self.skills and self.plain is None

    def prompt(self, request: Request) -> Prompt:
        """The prompt of a request. Raises InvalidRequest or UnsupportedTask for what such a model cannot be asked."""
        check_request(request)
        request = request if self.converses else as_question(request)
        skill, image = request.skill, request.image
        if image is None and (isinstance(skill, Caption) or not self.converses):
            raise InvalidRequest("this model needs an image", "image")
        if self.converses:
            messages = messages_of(skill, image)
            return Prompt(tuple(shown for m in messages for shown in m.shown), messages=messages)
        assert image is not None
        match skill:
            case Query(question):
                return Prompt((image,), self.plain[1] if self.plain else "{}", question.strip())
            case _:
                return Prompt((image,), self.plain[0] if self.plain else None)


def kind_of(config: PreTrainedConfig, processor: ProcessorMixin) -> Kind:
    """How a model with this config and processor is asked."""
    if ANSWERS_ONLY & {*(config.architectures or ())}:
        return Kind(frozenset({Query, Chat}), ("", "{}"))
    if config.model_type in CAPTIONS_ONLY:
        return Kind(frozenset({Caption}))
    if _shows_images(processor):
        return Kind(frozenset({Caption, Query, Chat}))
    mark = getattr(processor, "image_token", None)
    default = (f"{mark}\n{CAPTION['normal']}", f"{mark}\n{{}}") if isinstance(mark, str) else (CAPTION["normal"], "{}")
    unused = "its chat template shows no images: it takes one question at a time, without the template"
    note = unused if getattr(processor, "chat_template", None) else None
    return Kind(frozenset({Caption, Query, Chat}), PLAIN.get(config.model_type, default), note)


def read(processor: ProcessorMixin, prompt: Prompt, images: Sequence[Any]) -> Any:
    """The tensors of a prompt whose images are decoded. Raises InvalidRequest where a chat template takes no such
    conversation."""
    if prompt.messages:
        left = iter(images)
        conversation = [_as_dict(processor, message, left) for message in prompt.messages]
        try:
            return processor.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"this model's chat template takes no such conversation: {error}", "messages"
            ) from None
    if prompt.text is None:
        return processor(images=list(images), return_tensors="pt")
    text = prompt.text.format(without_control(processor, prompt.question))
    return processor(images=list(images), text=text, return_tensors="pt")


def check_request(request: Request) -> None:
    """Raise UnsupportedTask for what no model of the library is asked for here."""
    if request.variant is not None:
        raise UnsupportedTask("this model has no LoRA variants")
    if isinstance(skill := request.skill, Query) and (skill.reasoning or skill.spatial_refs):
        raise UnsupportedTask(f"this model has no {'reasoning' if skill.reasoning else 'spatial references'}")
    for media in request.shown:
        _check_image(media)


def as_question(request: Request) -> Request:
    """A conversation of one user turn as a question about its image; any other request stays as it is.

    Raises UnsupportedTask for longer ones, and TooManyImages.
    """
    if not isinstance(request.skill, Chat):
        return request
    [*before, last] = request.skill.messages
    if before:
        raise UnsupportedTask("this model takes one question, without other turns or a system prompt before it")
    if len(request.shown) > 1:
        raise TooManyImages("this model takes one image", "messages")
    return replace(request, skill=Query(last.text), image=next(iter(request.shown), None), detail="high")


def without_control(processor: ProcessorMixin, text: str) -> str:
    """A user's text, in which nothing is read as a control token: a blank stands in those that it spells."""
    for token in processor.tokenizer.all_special_tokens + list(processor.tokenizer.get_added_vocab()):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def _as_dict(processor: ProcessorMixin, message: Message, images: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": without_control(processor, part)}
        if isinstance(part, str)
        else {"type": "image", "image": next(images)}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _check_image(media: Media) -> None:
    if isinstance(media, Clip):
        raise UnsupportedTask(f"this model looks at images only here; {ONE_BY_ONE}")
    if isinstance(media, Encoding):
        raise UnsupportedTask("this model does not encode images ahead of questions")


def _shows_images(processor: ProcessorMixin) -> bool:
    """Whether there is a chat template that writes the token of an image."""
    if not getattr(processor, "chat_template", None):
        return False
    parts = [{"type": "image"}, {"type": "text", "text": "x"}]
    conversation = [{"role": "user", "content": parts}]
    without = [{"role": "user", "content": parts[1:]}]
    try:
        one, other = (
            processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            for turns in (conversation, without)
        )
    except (TemplateError, TypeError):  # one that is made for texts alone takes no parts
        return False
    return bool(one != other)
