"""Prompts as SmolVLM was trained with them: its chat template, and the tokens that stand for images and videos.

A prompt is put together of control tokens and of texts, and only then becomes ids: so nothing in a user's text can be
taken for a control token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import repeat

from PIL import Image

from galago.engine.encoded_image import EncodedImage
from galago.engine.step import ImageInput, Prefix
from galago.errors import InvalidRequest, UnsupportedTask
from galago.families.smolvlm.config import SmolVLMConfig
from galago.families.smolvlm.image import tiling_of
from galago.families.tokenizer import Tokenizer
from galago.media.clip import Clip
from galago.media.image import to_rgb
from galago.media.load import ONE_BY_ONE
from galago.media.picture import Picture
from galago.request import Detail, Length, Message

START, END = "<|im_start|>", "<end_of_utterance>"
IMAGE, AROUND, WHOLE = "<image>", "<fake_token_around_image>", "<global-img>"

CAPTION: dict[Length, str] = {
    "short": "Can you describe this {} in one sentence?",
    "normal": "Can you describe this {}?",
    "long": "Can you describe this {} in detail?",
}


@dataclass(frozen=True)
class Control:
    """A control token by its name. What a tokenizer does not have as one is text there."""

    name: str


Item = Control | str


@dataclass(frozen=True)
class Prompt:
    """The token ids of a conversation, and the prefix up to its last image."""

    prefix: Prefix | EncodedImage | None
    ids: tuple[int, ...]
    """after the prefix"""


def caption(length: Length, media: object) -> str:
    """The question that asks for a caption of an image or clip."""
    clip = isinstance(media, Clip) or (isinstance(media, EncodedImage) and media.clip)
    return CAPTION[length].format("video" if clip else "image")


def chat(c: SmolVLMConfig, t: Tokenizer, messages: Sequence[Message], detail: Detail | tuple[Detail, ...]) -> Prompt:
    """The prompt of a conversation. `detail` is that of all its images, or of each.

    Raises InvalidRequest where an encoded image does not stand before all else, and UnsupportedTask for clips where
    the model was not trained with videos.
    """
    items, images = conversation_items(c, messages, detail)
    first = next((part for m in messages for part in m.parts), None)
    if isinstance(first, EncodedImage):
        if images:
            raise InvalidRequest("an encoded image cannot stand beside others in a conversation", "messages")
        # What stands before it is in there, as far as the token that closes it.
        return Prompt(first, ids_of(t, items))
    ids = ids_of(t, items)
    end = _prefix_end(ids, c.image_id)
    prefix = Prefix(tuple(images), end, ids[:end]) if images else None
    return Prompt(prefix, ids[end:])


def image_prefix(c: SmolVLMConfig, t: Tokenizer, media: object, detail: Detail) -> Prefix:
    """The prefix of a conversation that begins with this image or clip."""
    items, images = conversation_items(c, [Message("user", (media,))], detail)  # type: ignore[arg-type]
    ids = ids_of(t, items)
    end = _prefix_end(ids, c.image_id)
    return Prefix(tuple(images), end, ids[:end])


def ids_of(t: Tokenizer, items: Sequence[Item]) -> tuple[int, ...]:
    """Token ids. Texts that follow each other are one text, as the tokens may lie across their border."""
    ids: list[int] = []
    text = ""
    for item in items:
        known = t.backend.token_to_id(item.name) if isinstance(item, Control) else None
        if known is None:
            text += item.name if isinstance(item, Control) else item
            continue
        ids += t.encode(text) if text else []
        ids.append(known)
        text = ""
    return (*ids, *(t.encode(text) if text else ()))


def _prefix_end(ids: Sequence[int], image_id: int) -> int:
    """The index after the token that closes the last image; 0 without any."""
    return next((i + 2 for i in range(len(ids) - 1, -1, -1) if ids[i] == image_id), 0)


def with_media_first(message: Message) -> Message:
    """The message with its images and clips before its text, as in training; clients often put the question first.

    An image between texts, which speak of it, stays there; a clip never does.
    """
    parts, media = message.parts, message.shown
    texts = [i for i, part in enumerate(parts) if isinstance(part, str) and part.strip()]
    if not media or not texts:
        return message
    first = next(i for i, part in enumerate(parts) if not isinstance(part, str))
    clips = any(isinstance(part, Clip) or (isinstance(part, EncodedImage) and part.clip) for part in media)
    if not clips and texts[-1] > first:
        return message
    return replace(message, content=(*media, *(part for part in parts if isinstance(part, str))))


def conversation_items(
    c: SmolVLMConfig, messages: Sequence[Message], detail: Detail | tuple[Detail, ...]
) -> tuple[list[Item], list[ImageInput]]:
    """The items of a conversation and its images; where it begins with an encoded image, those after it."""
    items: list[Item] = [Control(START)]
    images: list[ImageInput] = []
    details = repeat(detail) if isinstance(detail, str) else iter(detail)
    for i, message in enumerate(messages):
        parts = message.parts or ("",)
        colon = ": " if isinstance(parts[0], str | Clip) else ":"
        items.append(message.role.capitalize() + colon)
        for j, part in enumerate(parts):
            if isinstance(part, str):
                items.append(part)
                continue
            own = next(details)
            if isinstance(part, Clip):
                _check_clip(part, c)
                items += clip_items(part.times, part.duration, c.vision.n_tokens)
                images += [ImageInput(_rgb(frame), "low") for frame in part.frames]
            elif isinstance(part, EncodedImage):
                if (i, j) != (0, 0) or message.role != "user":
                    raise InvalidRequest("an encoded image can only stand first in a conversation", "messages")
                items = ["\n\n"] if part.clip else []
            else:
                image = part if isinstance(part, Picture) else _rgb(part)  # type: ignore[arg-type]
                split = c.image.split and own == "high"
                items += image_items(tiling_of(image.size, c.image, split), c.vision.n_tokens)
                images.append(ImageInput(image, own))
        items += [Control(END), "\n"]
    return [*items, "Assistant:"], images


def image_items(tiling: tuple[int, int], n_tokens: int) -> list[Item]:
    """The items that stand for an image of so many rows and columns of tiles, (0, 0) for one without."""
    rows, columns = tiling
    image: list[Item] = [Control(IMAGE)] * n_tokens
    items: list[Item] = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            items += [Control(AROUND), Control(f"<row_{row}_col_{column}>"), *image]
        items.append("\n")
    if rows:
        items.append("\n")
    return [*items, Control(AROUND), Control(WHOLE), *image, Control(AROUND)]


def clip_items(times: Sequence[float], duration: float, n_tokens: int) -> list[Item]:
    """The items that stand for a clip whose frames are shown at these seconds."""
    length = timedelta(seconds=int(duration))
    items: list[Item] = [
        f"You are provided the following series of {in_words(len(times))} frames from a {length} [H:MM:SS] video.\n"
    ]
    for time in times:
        items.append(f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:")
        items += image_items((0, 0), n_tokens)
    return [*items, "\n\n"]


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" and not image.has_transparency_data else to_rgb(image)


def _check_clip(clip: Clip, c: SmolVLMConfig) -> None:
    if c.image.video is None:
        raise UnsupportedTask(f"this model was not trained with videos; SmolVLM2 was; {ONE_BY_ONE}")
    if not clip.frames or len(clip.frames) != len(clip.times):
        raise InvalidRequest("a clip must have frames, and a time for each", "image")
    most = c.image.video.max_frames
    if len(clip.frames) > most:
        raise InvalidRequest(f"the clip has {len(clip.frames)} frames; this model takes {most} at most", "image")


_ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(n: int) -> str:
    """A number from 0 to 999 in English."""
    if n >= 100:
        rest = f" and {in_words(n % 100)}" if n % 100 else ""
        return f"{_ONES[n // 100]} hundred{rest}"
    if n < 20:
        return _ONES[n]
    return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
