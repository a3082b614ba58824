"""A request as the conversation in which a chat model is asked."""

from galago.errors import UnsupportedTask
from galago.request import Caption, Chat, Length, Media, Message, Query, Skill

CAPTION: dict[Length, str] = {
    "short": "Describe this image in one sentence.",
    "normal": "Describe this image.",
    "long": "Describe this image in detail.",
}


def messages_of(skill: Skill, image: Media | None) -> tuple[Message, ...]:
    """The messages, in the first of which, that is the user's, the image stands before the text.

    Raises UnsupportedTask for a skill that is not put in words.
    """
    match skill:
        case Caption(length):
            messages: tuple[Message, ...] = (Message("user", (CAPTION[length],)),)
        case Query(question):
            messages = (Message("user", (question.strip(),)),)
        case Chat(given):
            messages = given
        case _:
            raise UnsupportedTask("this model writes text; it does not detect, point or follow a gaze")
    if image is None:
        return messages
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    return tuple(Message(m.role, (image, *m.parts)) if i == first else m for i, m in enumerate(messages))
