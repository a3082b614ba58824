"""galago query"""

from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from galago.answers import collect_answer
from galago.arguments import make_request
from galago.cli import options
from galago.cli.inputs import split_words
from galago.cli.running import AnswerPrinter, ask_media
from galago.request import Query, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.clip import Clip
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago query photo.jpg "How many people?"
  galago query a.jpg b.jpg "Is it raining?" --json
  galago query clip.mp4 "Who comes in first?" --model smolvlm2
  galago query photo.jpg "What is this?" --ref 0.4,0.7
  galago query "What is the capital of Kenya?\""""


@options.expand_groups
def query(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE|VIDEO|QUESTION",
            help="Paths or URLs of images or videos, - for standard input, or none; and last what to ask.",
            show_default=False,
        ),
    ] = None,
    more: options.MediaOption = None,
    prompt: options.QuestionOption = None,
    *,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Think first, and show the thoughts.")] = False,
    ref: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y[,X1,Y1]", help="A point or box, in 0..1, that the question is about; repeatable."),
    ] = None,
    stream: options.StreamOption = False,
    json: options.JsonOption = False,
    frames: options.FrameOptions,
    text: options.TextOptions,
    loading: options.ModelOptions,
) -> None:
    """Ask a question about images or videos, or without one."""
    example = 'galago query photo.jpg "How many people?"'
    sources, question = split_words(words, more, prompt, example, what="QUESTION", optional=True)
    refs = tuple(options.parse_numbers(r, "--ref", 2, 4) for r in ref or ())
    skill = Query(question, reasoning, cast(Any, refs))
    check_skill(skill)
    settings = options.collect_settings(text)
    output = AnswerPrinter(sources, json, stream)
    # A text that is watched while it is made goes before others.
    template = make_request(skill, None, settings, "interactive" if stream else "batch")

    def show(place: int, shown: "Image.Image | Picture | Clip | None", run: "Run") -> None:
        answer = collect_answer(skill, run, stream)
        thought = [f"({answer['reasoning']['text'].strip()})\n"] if reasoning else []
        pieces = answer["answer"] if stream else [answer["answer"].strip()]
        output.show(sources[place] if sources else None, answer, chain(thought, pieces))

    if sources:
        ask_media(sources, loading, frames, template, show)
    else:
        with loading.open() as model:
            show(0, None, model.submit(template))
