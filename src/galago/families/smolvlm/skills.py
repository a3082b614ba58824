"""SmolVLM's skills, all of which write text, as generators of steps (see engine/step.py)."""

from dataclasses import replace

from galago.engine.step import Steps
from galago.errors import ContextLengthExceeded, InvalidRequest, UnsupportedTask
from galago.families.smolvlm import prompts
from galago.families.smolvlm.common import SmolVLMModel
from galago.families.text_generation import text_steps
from galago.request import Caption, Chat, Message, Query, Request

MAX_TOKENS = 512
"""Of an answer whose request has no limit."""


def skill_steps(m: SmolVLMModel, request: Request) -> Steps:
    """The steps of a request.

    Raises, before the first step, InvalidRequest, ContextLengthExceeded for a prompt that does not fit, and
    UnsupportedTask for what these models cannot do.
    """
    if request.variant is not None:
        raise UnsupportedTask("this model has no LoRA variants")
    messages = _messages(request)
    for message in messages:
        for media in message.shown:
            m.check_media(media)
    prompt = prompts.chat(m.config, m.tokenizer, messages, request.detail)
    taken = 0 if prompt.prefix is None else prompt.prefix.positions
    room = m.config.text.max_context - taken
    if len(prompt.ids) > room:
        raise ContextLengthExceeded(f"the prompt has {taken + len(prompt.ids)} tokens, {room + taken} fit")
    # The prompt ends without a blank, so that answers begin with one.
    limit = min(request.sampling.max_tokens or MAX_TOKENS, room)
    return text_steps(m, request, prompt.prefix, prompt.ids, limit, room)


def _messages(request: Request) -> tuple[Message, ...]:
    """The conversation that a request of any skill is put to the model as."""
    skill, image = request.skill, request.image
    match skill:
        case Caption(length):
            if image is None:
                raise InvalidRequest("this skill needs an image", "image")
            conversation: tuple[Message, ...] = (Message("user", prompts.caption(length, image)),)
        case Query(question, reasoning, refs):
            if reasoning or refs:
                raise UnsupportedTask(f"this model has no {'reasoning' if reasoning else 'spatial references'}")
            conversation = (Message("user", question.strip()),)
        case Chat(messages):
            conversation = messages
        case _:
            raise UnsupportedTask("this model writes text; it does not detect, point or follow a gaze")
    if image is not None:
        first = next(i for i, message in enumerate(conversation) if message.role == "user")
        with_image = replace(conversation[first], content=(image, *conversation[first].parts))
        conversation = (*conversation[:first], with_image, *conversation[first + 1 :])
    return tuple(map(prompts.with_media_first, conversation))
