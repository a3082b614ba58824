"""galago watch"""

from collections.abc import Iterable
from typing import Annotated

import typer

from galago.cli import options
from galago.cli.inputs import split_words
from galago.cli.running import open_source
from galago.cli.streams import print_json
from galago.errors import InvalidRequest
from galago.request import Query, check_skill
from galago.system.progress import Progress, progress_bar

EXAMPLES = """\b
Examples:
  galago watch clip.mp4 "Is there a person?"
  galago watch door.webm "Is the door open?" --fps 4 --max-frames 256
  galago watch clip.gif "What color is the light?" --json"""


@options.expand_groups
def watch(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VIDEO|QUESTION",
            help="A path or URL, - for standard input; and what to ask of each frame.",
            show_default=False,
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--video", "--image", metavar="VIDEO", help="The same as VIDEO.")
    ] = None,
    prompt: options.QuestionOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per frame.")] = False,
    *,
    frames: options.FrameOptions,
    text: options.TextOptions,
    loading: options.ModelOptions,
) -> None:
    """Ask a question about a video: when the answer is yes, or which answer it has when."""
    from galago.batch.watch import spans
    from galago.batch.watch import watch as watched
    from galago.media.timeline import FrameSampling
    from galago.media.video import load_clip

    example = 'galago watch clip.mp4 "Is there a person?"'
    videos, question = split_words(words, more, prompt, example, what="QUESTION", shown="VIDEO")
    if len(videos) > 1:
        raise InvalidRequest(f"one video at a time, not {len(videos)}; as in: {example}")
    check_skill(Query(question))
    settings = options.collect_settings(text)
    loading.check()
    sampling = frames.override(FrameSampling())
    clip = load_clip(open_source(videos[0]), sampling)
    with loading.open() as model, progress_bar("Frames") as tell:
        answers = _count_frames(watched(model, clip, question, settings=settings), len(clip.frames), tell)
        if json:
            for time, answer in answers:
                print_json({"time": round(time, 3), "answer": answer})
            return
        tenths = sampling.fps > 1
        none = None
        found = False
        for span in spans(answers, clip.duration):
            line = f"{clock(span.start, tenths)}\u2013{clock(span.end, tenths)} {span.answer}"
            # When it is not so is what is left, unless it never is.
            if span.answer == "no":
                none = line
            else:
                found = True
                print(line, flush=True)
        if none and not found:
            print(none, flush=True)


def clock(seconds: float, tenths: bool = False) -> str:
    """0:03, 12:40 or 1:05:00; 0:03.5 with tenths."""
    whole, tenth = divmod(round(seconds * 10), 10) if tenths else (round(seconds), 0)
    minutes, left = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
    return f"{text}.{tenth}" if tenths else text


Answers = Iterable[tuple[float, str]]


def _count_frames(answers: Answers, total: int, tell: Progress) -> Answers:
    for done, answer in enumerate(answers, start=1):
        tell(done, total)
        yield answer
