"""Moondream2's skills, each a generator of steps (see engine/step.py)."""

import random
import statistics
from collections.abc import Generator, Sequence
from dataclasses import replace
from math import dist

from PIL import Image, ImageOps

from galago.engine.encoded_image import EncodedImage
from galago.engine.sampling import Sampler, finite_logits
from galago.engine.step import End, Feed, Prefix, Start, StepOutput, StepResult, Steps
from galago.errors import ContextLengthExceeded, InvalidRequest, TooManyImages, UnsupportedTask
from galago.families.moondream import prompts
from galago.families.moondream.bins import coordinate_of_bin, size_of_bin
from galago.families.moondream.common import MoondreamModel
from galago.families.moondream.prompts import Coordinate, Prompt, Size
from galago.families.text_generation import FeedSteps, TextWriter, generate_text, logits_without, writer_for
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import (
    Caption,
    Chat,
    Detail,
    Detect,
    DetectGaze,
    Encode,
    Event,
    GazeFound,
    Grounding,
    Media,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Request,
)
from galago.values import Box, Spot

Pixels = Media | None

GAZE_SAMPLES = 10
BOX_STEPS, POINT_STEPS, GAZE_STEPS = 3, 2, 2
"""Positions that one of them takes."""
TOKEN, PLACE, SIZE = ("logits",), ("coordinate",), ("size",)
TOKEN_OR_PLACE = (*TOKEN, *PLACE)
"""Heads where a token says whether a coordinate follows: the state that chose the token also gives x."""


def skill_steps(m: MoondreamModel, request: Request) -> Steps:
    """The steps of a request.

    Raises, before the first step, InvalidRequest, ContextLengthExceeded for a prompt that does not
    fit, and UnsupportedTask for what the model's revision lacks.
    """
    request = _with_chat_image(request)
    c, t, skill = m.config, m.tokenizer, request.skill
    image, sampling = request.image, request.sampling
    variant = None if isinstance(skill, DetectGaze) else request.variant
    _check_supported(m, request)
    m.check_media(image, variant)
    if isinstance(skill, DetectGaze):
        if skill.accurate:
            return accurate_gaze(m, image, skill, sampling.seed, request.detail_of(0))
        assert skill.eye is not None  # check_skill
        prompt = _checked_prompt(m, image, prompts.gaze(t, skill.eye))
        return gaze(m, _start(m, request, prompt, GAZE_STEPS), prompt, skill.force)
    limit = sampling.max_tokens or c.revision.max_tokens
    match skill:
        case Caption(length):
            prompt = _checked_prompt(m, image, prompts.caption(c, length))
            return _text_steps(m, request, prompt, limit)
        case Query(question, reasoning, refs):
            prompt = _checked_prompt(m, image, prompts.query(c, t, question.strip(), reasoning, refs))
            return _text_steps(m, request, prompt, limit, reasoning)
        case Chat(messages):
            prompt = _checked_prompt(m, image, prompts.query(c, t, prompts.conversation(c, messages)))
            return _text_steps(m, request, prompt, limit)
        case Detect(name, most):
            prompt = _checked_prompt(m, image, prompts.detect(c, t, name))
            return objects(m, _start(m, request, prompt, most * BOX_STEPS), prompt, most, boxes=True)
        case Point(name, most):
            prompt = _checked_prompt(m, image, prompts.point(c, t, name))
            return objects(m, _start(m, request, prompt, most * POINT_STEPS), prompt, most, boxes=False)
        case Encode():
            raise AssertionError("the engine does that itself")


def _text_steps(m: MoondreamModel, request: Request, prompt: Prompt, limit: int, reasoning: bool = False) -> Steps:
    start = _start(m, request, prompt, 2 * limit + 1 if reasoning else limit)
    return text(m, start, prompt, writer_for(m, request), limit, reasoning)


def _start(m: MoondreamModel, request: Request, prompt: Prompt, steps: int) -> Start:
    """Start a sequence with room for the prompt and so many steps, or for what fits of them."""
    room = m.config.text.max_context - (0 if request.image is None else m.config.prefix_len)
    variant = None if isinstance(request.skill, DetectGaze) else request.variant
    image = request.image
    prefix = m.image_prefix(image, request.detail_of(0)) if isinstance(image, Image.Image | Picture | Clip) else image
    return Start(prefix, min(len(prompt) + steps, room), variant)


def _with_chat_image(request: Request) -> Request:
    """The request with the one image of its conversation, if it is one, as the image of the request."""
    if not isinstance(request.skill, Chat):
        return request
    shown = request.shown
    if len(shown) > 1:
        raise TooManyImages("this model takes one image in a conversation", "messages")
    return replace(request, image=shown[0], detail=request.detail_of(0)) if shown else request


def _check_supported(m: MoondreamModel, request: Request) -> None:
    skill, revision = request.skill, m.config.revision
    asks_text = isinstance(skill, Query | Chat)
    if request.image is None and not asks_text:
        raise InvalidRequest("this skill needs an image", "image")
    if isinstance(skill, Query) and skill.spatial_refs and request.image is None:
        raise InvalidRequest("spatial_refs need an image to refer to", "spatial_refs")
    if revision.extended:
        return
    lacking = {
        "reasoning": isinstance(skill, Query) and skill.reasoning,
        "spatial references": isinstance(skill, Query) and bool(skill.spatial_refs),
        "questions without an image": asks_text and request.image is None,
        "LoRA variants": request.variant is not None,
    }
    for what, is_asked in lacking.items():
        if is_asked:
            raise UnsupportedTask(f"revision {revision.name} has no {what}; 2025-06-21 has")


def _checked_prompt(m: MoondreamModel, image: Pixels, prompt: Prompt) -> Prompt:
    """The prompt, after BOS where there is no image (whose prefix has it). Raises ContextLengthExceeded."""
    if image is None:
        prompt = (m.config.tokens.bos_id, *prompt)
    room = m.config.text.max_context - (0 if image is None else m.config.prefix_len)
    if len(prompt) > room:
        raise ContextLengthExceeded(f"the prompt has {len(prompt)} tokens, {room} fit")
    return prompt


# --- one step ----------------------------------------------------------------------------------


def _feed(m: MoondreamModel, prompt: Prompt, heads: tuple[str, ...] = TOKEN) -> FeedSteps:
    out = yield Feed(m.embed(prompt), heads)
    assert isinstance(out, StepOutput)
    return out


def _coordinate(out: StepOutput) -> float:
    logits = finite_logits(out.heads["coordinate"], "a coordinate")
    return coordinate_of_bin(int(logits.argmax()), len(logits))


def _size(m: MoondreamModel, out: StepOutput) -> Size:
    logits = finite_logits(out.heads["size"], "a size")
    sizes = size_of_bin(logits.argmax(-1), logits.shape[-1], m.config.revision.log_sizes)
    return Size(*sizes.tolist())


# --- text --------------------------------------------------------------------------------------


def text(m: MoondreamModel, start: Start, prompt: Prompt, writer: TextWriter, limit: int, reasoning: bool) -> Steps:
    """Generate text; with reasoning a first text, with the places that it speaks of, comes before."""
    tokens = m.config.tokens
    yield start
    out = yield from _feed(m, prompt, TOKEN_OR_PLACE if reasoning else TOKEN)
    reasoned = 0
    if reasoning:
        out, found, reasoned = yield from _reason(m, out, writer.sampler, limit)
        yield found
        if out.room == 0:
            return End("length", reasoned)
        out = yield from _feed(m, _marker(tokens.answer_id))

    def feed(token: int) -> FeedSteps:
        return _feed(m, (token,))

    # The answer marker may come first only.
    reason, emitted = yield from generate_text(writer, out, limit, feed, banned=(tokens.answer_id,))
    return End(reason, reasoned + emitted)


def _marker(token: int | None) -> Prompt:
    assert token is not None  # revisions that reason have it
    return (token,)


def _reason(
    m: MoondreamModel, out: StepOutput, sampler: Sampler, limit: int
) -> Generator[Start | Feed | Event, StepResult, tuple[StepOutput, Reasoning, int]]:
    """Generate the reasoning up to the answer marker: text in chunks, each with the coordinates met in it."""
    tokens = m.config.tokens
    chunks: list[tuple[list[int], list[float]]] = [([], [])]
    token = sampler.draw(logits_without(out))
    count = 0
    # One position is kept for the marker that starts the answer.
    while token != tokens.answer_id and count < limit and out.room > 1:
        if token in (tokens.start_ground_points_id, tokens.end_ground_id):
            chunks.append(([], []))
        ids, values = chunks[-1]
        ids.append(token)
        item: int | Coordinate = token
        if token == tokens.coord_id:
            values.append(_coordinate(out))
            item = Coordinate(values[-1])
        out = yield from _feed(m, (item,), TOKEN_OR_PLACE)
        token = sampler.draw(logits_without(out, (tokens.eos_id, tokens.size_id)))
        count += 1

    whole, grounding = "", []
    for ids, values in chunks:
        begin = len(whole)
        whole += m.tokenizer.decode(ids)
        if len(values) > 1:
            points = tuple(zip(values[::2], values[1::2], strict=False))
            grounding.append(Grounding(begin, len(whole), points))
    return out, Reasoning(whole, tuple(grounding)), count


# --- objects -----------------------------------------------------------------------------------


def objects(m: MoondreamModel, start: Start, prompt: Prompt, most: int, boxes: bool) -> Steps:
    """Boxes or points one after another, always greedy.

    The token that says "another follows" is never fed: the state that chose it is read as x.
    """
    eos, steps = m.config.tokens.eos_id, BOX_STEPS if boxes else POINT_STEPS
    yield start
    out = yield from _feed(m, prompt, TOKEN_OR_PLACE)
    found = 0
    while int(logits_without(out).argmax()) != eos:
        if found == most or out.room < steps:
            return End("length", found * steps)
        x = _coordinate(out)
        out = yield from _feed(m, (Coordinate(x),), PLACE)
        y = _coordinate(out)
        if boxes:
            out = yield from _feed(m, (Coordinate(y),), SIZE)
            size = _size(m, out)
            yield ObjectFound(_box(x, y, size))
            out = yield from _feed(m, (size,), TOKEN_OR_PLACE)
        else:
            yield PointFound((x, y))
            out = yield from _feed(m, (Coordinate(y),), TOKEN_OR_PLACE)
        found += 1
    return End("stop", found * steps)


def _box(x: float, y: float, size: Size) -> Box:
    return x - size.width / 2, y - size.height / 2, x + size.width / 2, y + size.height / 2


# --- gaze --------------------------------------------------------------------------------------


def gaze(m: MoondreamModel, start: Start, prompt: Prompt, force: bool) -> Steps:
    """The point that a person looks at. No LoRA variant applies."""
    yield start
    spot, steps = yield from _find_gaze(m, prompt, force)
    yield GazeFound(spot)
    return End("stop", steps)


def _find_gaze(
    m: MoondreamModel, prompt: Prompt, force: bool
) -> Generator[Start | Feed | Event, StepResult, tuple[Spot | None, int]]:
    out = yield from _feed(m, prompt, TOKEN_OR_PLACE)
    # Upstream forces token 0 to say "something is there", which to starmie is EOS: it finds nothing.
    token = 0 if force else int(logits_without(out).argmax())
    if token == m.config.tokens.eos_id or out.room == 0:
        return None, 0
    x = _coordinate(out)
    out = yield from _feed(m, (Coordinate(x),), PLACE)
    return (x, _coordinate(out)), 1


def accurate_gaze(m: MoondreamModel, image: Pixels, skill: DetectGaze, seed: int | None, detail: Detail) -> Steps:
    """The mean of many answers, asked from points all over the face, on the image and on its mirror."""
    if not isinstance(image, Image.Image | Picture):
        raise InvalidRequest("accurate gaze also looks at the mirrored image: give the image itself", "image")
    assert skill.face is not None  # check_skill
    return _sampled_gaze(m, image, skill.face, skill.force, random.Random(seed), detail)


def _sampled_gaze(
    m: MoondreamModel, image: Image.Image | Picture, face: Box, force: bool, rng: random.Random, detail: Detail
) -> Steps:
    spots: list[Spot] = []
    steps = 0
    # Any two opposite corners make a box.
    (left, right), (top, bottom) = sorted(face[::2]), sorted(face[1::2])
    for mirrored in (False, True):
        prefix: Prefix | EncodedImage = m.image_prefix(_mirror(image) if mirrored else image, detail)
        for _ in range(GAZE_SAMPLES):
            x, y = rng.uniform(left, right), rng.uniform(top, bottom)
            prompt = prompts.gaze(m.tokenizer, (1 - x if mirrored else x, y))
            # Room for the mirrored image too.
            started = yield Start(prefix, m.config.prefix_len + len(prompt) + GAZE_STEPS)
            assert isinstance(started, EncodedImage)
            prefix = started
            spot, n = yield from _find_gaze(m, prompt, force)
            steps += n
            if spot:
                spots.append((1 - spot[0], spot[1]) if mirrored else spot)
    mean = None
    if len(spots) >= GAZE_SAMPLES:
        kept = without_outliers(spots)
        mean = (statistics.fmean(x for x, _ in kept), statistics.fmean(y for _, y in kept))
    yield GazeFound(mean)
    return End("stop", steps)


def _mirror(image: Image.Image | Picture) -> Image.Image | Picture:
    return image.mirror() if isinstance(image, Picture) else ImageOps.mirror(image)


def without_outliers(spots: Sequence[Spot]) -> list[Spot]:
    """The points whose nearest neighbours are no more than twice as far as is usual.

    The two nearest distances count, of which one is the zero to the point itself.
    """
    nearest = [statistics.fmean(sorted(dist(a, b) for b in spots)[: min(2, len(spots) - 1)]) for a in spots]
    usual = statistics.median(nearest)
    return [spot for spot, near in zip(spots, nearest, strict=True) if near <= 2 * usual]
