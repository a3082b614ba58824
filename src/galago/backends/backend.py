"""The protocol of what runs models, our own engine or another, and the table of all backends.

A face (Python, command line, HTTP) holds a Backend, gives it Requests and reads the events of its Runs. What it asks of
the model besides stands in its Facts.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from galago.errors import GalagoError, ModelNotFound, UnsupportedTask, quoted
from galago.request import Caption, Chat, Detect, DetectGaze, Encode, Event, Point, Query, Request, Skill
from galago.store.catalog import Entry, entry_of

if TYPE_CHECKING:
    from galago.media.timeline import FrameSampling

NATIVE = "native"
ONNX = "onnx"
BY_FILES = "by files"
BACKENDS = {
    NATIVE: "galago.backends.native",
    "transformers": "galago.backends.transformers",
    ONNX: "galago.backends.onnx.loading",
    "llama_server": "galago.backends.llama_server",
    BY_FILES: "galago.backends.by_files",
}
"""The module of each backend, which is a Loader, imported when a model of it is used."""
SKILLS: dict[type[Skill], str] = {
    Caption: "caption",
    Query: "answer questions",
    Chat: "converse",
    Detect: "detect objects",
    Point: "point at objects",
    DetectGaze: "follow gazes",
    Encode: "encode images ahead of questions",
}
"""What a model can do, in words."""


@dataclass(frozen=True)
class Facts:
    """The properties of a loaded model."""

    name: str
    identity: str
    """The name, and a digest of what decides its answers."""
    revision: str
    """The published state whose behaviour it has."""
    precision: str
    device: str
    """cpu, cuda:0 or mps"""
    kernels: str
    """what computes its linear maps"""
    skills: frozenset[type[Skill]]
    video_sampling: "FrameSampling | None" = None
    """Which frames of a video it looks at; None where it looks at images only."""
    threads: int = 1
    """CPU threads that compute."""
    fallbacks: tuple[str, ...] = ()
    """What is slower, larger or otherwise than it could be or was asked for, one sentence each."""
    weights_bytes: int | None = None
    mapped_bytes: int | None = None
    """those of the weights in mapped files, which come into memory as they are read"""
    commit: str | None = None
    """of the hub's repository that its weights are of"""

    def check_skill(self, skill: type[Skill]) -> None:
        """Raise UnsupportedTask, saying what there is, for a skill that the model does not have."""
        if skill not in self.skills:
            can = ", ".join(words for kind, words in SKILLS.items() if kind in self.skills)
            raise UnsupportedTask(f"this model does not {SKILLS[skill]}; it can {can}")


class Run(Protocol):
    """A submitted request: iterate for its events. The last is Done, or the request's error is raised.

    Letting go of a Run cancels it.
    """

    @property
    def ended(self) -> bool:
        """Whether its last event is there, so that iteration waits for none."""
        ...

    def __iter__(self) -> Iterator[Event]: ...
    def __next__(self) -> Event:
        """Wait for the next event."""
        ...

    def poll(self) -> Event | None:
        """The next event if it is there already, else None; raises the request's error as iteration does."""
        ...

    def watch(self, told: Callable[[], None]) -> None:
        """Have `told` called whenever there may be an event to poll: from any thread, so it must be short."""
        ...

    def cancel(self) -> None:
        """Stop soon, from any thread; iteration then ends with Done('cancelled')."""
        ...


class Backend(Protocol):
    """A loaded model that carries out requests. Its methods may be called from any thread.

    One that inherits from this needs `facts` and `submit`; the rest is then that of a model without a queue or caches.
    """

    facts: Facts

    @property
    def ended(self) -> GalagoError | None:
        """Why it takes no more requests; None as long as it does."""
        return None

    def submit(self, request: Request) -> Run:
        """Start a request of a skill that it has.

        Raises EngineBusy when too many wait, EngineClosed where it has ended, and at once what is wrong with the
        request itself.
        """
        ...

    def check_queue(self) -> None:
        """Raise EngineBusy or EngineClosed if a request would not be taken now, before it is prepared at some cost."""

    def stats(self) -> dict[str, Any]:
        """Counts, timings and memory as plain JSON, with at least these members."""
        return {"queue": {"waiting": 0, "running": 0}, "limits": {"waiting": 0}, "bytes": {}}

    def limit_kv(self, most: int) -> None:
        """Let keys and values of requests that begin from now on take so many bytes."""

    def trim(self) -> None:
        """Let go of cached images, and hand memory back to the system, before the next step."""

    def close(self) -> None:
        """End everything under way with EngineClosed, and free the memory. A closed model refuses requests."""


class Loader(Protocol):
    """The functions that the module of a backend has."""

    def load(self, name: str, **options: Any) -> Backend:
        """The model of this name, in memory; the options are those of galago.load, all of them."""
        ...

    def describe(self, name: str) -> Entry:
        """The entry of a model that is not in the catalogue. Raises ModelNotFound or CheckpointError."""
        ...

    def kernels(self, precision: str, device: str | None) -> tuple[str, Sequence[str]]:
        """The kernels that would compute in this precision, and what is slower than it could be, a sentence each."""
        ...


def loader_of(name: str) -> Loader:
    """The loader for a model: of its backend in the catalogue, or the one that its files tell. Raises ModelNotFound."""
    entry = entry_of(name)
    return loader(entry.backend if entry else BY_FILES)


def loader(backend: str) -> Loader:
    if backend not in BACKENDS:
        raise ModelNotFound(f"models that {quoted(backend)} runs cannot be run by this version")
    try:
        return cast(Loader, import_module(BACKENDS[backend]))
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        why = "the model needs PyTorch: pip install torch; a folder of `galago export` runs without it"
        raise UnsupportedTask(why) from None
