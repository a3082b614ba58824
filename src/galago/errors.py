"""What can go wrong, in words for the person who can mend it."""

import reprlib
import traceback

MAX_MESSAGE = 500
"""Characters of any message."""
MAX_QUOTED = 100
"""Characters of what was given that a message quotes."""

_written = reprlib.Repr()
_written.maxstring = _written.maxother = _written.maxlong = MAX_QUOTED


def quoted(value: object) -> str:
    """What was given, for an error message: as Python writes it, on one line, its middle left out if it is long."""
    try:
        text = repr(shortened(value)) if isinstance(value, str) else _written.repr(value)
    except Exception:  # such as a number that has too many digits for Python to write
        text = f"a value of type {type(value).__name__}"
    return shortened(" ".join(text.split()), MAX_QUOTED + 2)


def shortened(text: str, most: int = MAX_QUOTED) -> str:
    """The text; if it has more than `most` characters, three dots stand for its middle: its ends tell which it is."""
    if len(text) <= most:
        return text
    end = (most - 3) // 3
    return f"{text[: most - 3 - end]}...{text[-end:]}"


class GalagoError(Exception):
    """Any error that Galago raises on purpose. `code` names the kind for programs.

    A message is one line, shortened to MAX_MESSAGE characters, so that none grows with what was given or with what a
    library said of it. The sentence stands at its ends; to keep a list behind a long value readable, quote that with
    `quoted`.
    """

    code = "error"

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(" ".join(message.splitlines()), MAX_MESSAGE))


class InvalidRequest(GalagoError, ValueError):
    """The request cannot be carried out as asked; `param` names the argument at fault."""

    code = "invalid_value"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidImage(InvalidRequest):
    """The bytes, path or URL given as an image could not be read as one."""

    code = "invalid_image"


class TooManyImages(InvalidRequest):
    """The model was trained to look at fewer images at once."""

    code = "too_many_images"


class InvalidVideo(InvalidRequest):
    """What was given as a video could not be read as one."""

    code = "invalid_video"


class ContextLengthExceeded(InvalidRequest):
    """The prompt does not fit in the model's context."""

    code = "context_length_exceeded"


class UnsupportedTask(GalagoError):
    """The loaded model has no such skill or option."""

    code = "unsupported_task"


class ModelNotFound(GalagoError, LookupError):
    """No model of this name in the catalogue, and no checkpoint at this path."""

    code = "model_not_found"


class CheckpointError(GalagoError):
    """A checkpoint is incomplete, does not fit its config, or leaves its revision open."""

    code = "invalid_checkpoint"


class DownloadError(GalagoError):
    """A checkpoint could not be fetched."""

    code = "download_failed"


class EngineBusy(GalagoError):
    """The queue is full: try again later."""

    code = "queue_full"


class EngineClosed(GalagoError):
    """The engine was shut down before the request could finish."""

    code = "shutting_down"


class EngineFailed(EngineClosed):
    """The engine's thread ended by itself; the message names the cause. The model has to be loaded anew."""

    code = "engine_failed"


class DeadlineExceeded(GalagoError):
    """The request's own time limit passed before it was done."""

    code = "timeout"


class GenerationFailed(GalagoError):
    """Something broke while the model was running; the log has the traceback."""

    code = "generation_failed"


class NotANumber(GalagoError):
    """The model computed NaN or infinity in place of `what` was to be read or kept."""

    code = "not_a_number"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"the model gave no number for {what} (NaN or infinity): its weights may be damaged (download it again), "
            "or what it computes too large for float16 (use bfloat16 or float32)"
        )


class OutOfMemory(GalagoError):
    """A model does not fit beside those in use; the message says what would."""

    code = "out_of_memory"


class LoadFailed(GalagoError):
    """Something broke while a model was loading; the log has the traceback."""

    code = "load_failed"


class JobsDatabaseError(GalagoError):
    """The database of the job queue cannot be opened, read or written; what was to be changed in it was not."""

    code = "jobs_database"


class ModelInUse(GalagoError):
    """The model cannot leave memory while requests run on it."""

    code = "model_in_use"


def size_of(count: int) -> str:
    """Bytes in words: 3.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def clear_tracebacks(error: BaseException | None) -> None:
    """Clear the frames of an error's traceback, whose variables hold what was half loaded."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
