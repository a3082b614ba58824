"""What goes into the queue and what comes out: jobs, their inputs, and callbacks that are to be delivered."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from galago.errors import InvalidRequest, quoted
from galago.jobs.ids import is_id

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
FINISHED = (DONE, FAILED, CANCELLED)
PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"
DELIVERY_STATES = (PENDING, DELIVERED, DEAD)

MAX_PRIORITY = 1000
MAX_ATTEMPTS = 100
MAX_KEY = 255
"""Characters of an idempotency key and of an external id."""
MAX_URL = 2048
MAX_DELAY_S = 366 * 86400


@dataclass(frozen=True)
class NewJob:
    """A request that is to be carried out later.

    `path` is the route of the HTTP API whose body `body` is, as it came (JSON text). The picture is in the body, or it
    is `image`, the bytes of an encoded file, or `image_path`, where to find it. A second job with the same
    `idempotency_key` is not added. `priority` is from -1000 to 1000, the highest first. `delay_s` is how long it has to
    wait first, `keep_s` how long it is kept once it is finished (default: as the queue is set). `external_id` is what
    the client calls it, and `extra` (JSON text) what it wants kept beside it.

    Raises InvalidRequest, with the field as `param`.
    """

    path: str
    body: str
    image: bytes | None = None
    image_path: str | None = None
    priority: int = 0
    max_attempts: int = 3
    delay_s: float = 0.0
    keep_s: float | None = None
    idempotency_key: str | None = None
    callback_url: str | None = None
    external_id: str | None = None
    extra: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("priority", -MAX_PRIORITY, MAX_PRIORITY), ("max_attempts", 1, MAX_ATTEMPTS), ("delay_s", 0, MAX_DELAY_S),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"{name} must be from {low} to {high}, not {getattr(self, name)}", name)
        if self.keep_s is not None and not 0 <= self.keep_s <= 100 * MAX_DELAY_S:
            raise InvalidRequest(f"keep_s must be from 0 to {100 * MAX_DELAY_S}, not {self.keep_s}", "keep_s")
        for name, most in (("idempotency_key", MAX_KEY), ("external_id", MAX_KEY), ("callback_url", MAX_URL)):
            value = getattr(self, name)
            if value is not None and not 0 < len(value) <= most:
                raise InvalidRequest(f"{name} must have 1 to {most} characters, not {len(value)}", name)
        for name in ("path", "body", "image_path", "idempotency_key", "callback_url", "external_id", "extra"):
            if (text := getattr(self, name)) is not None and text != storable(text):
                raise InvalidRequest(f"{name} has characters that no database keeps: {quoted(text)}", name)


@dataclass(frozen=True)
class Job:
    """A job as it is in the queue; what it is about, which may be large, is its JobInput. Times are seconds since 1970.

    `attempts` counts how often it was taken up since it was added or retried, `claims` how often ever: with `leased_by`
    it tells one lease from the next. `change` numbers its last change of state (numbers.py). `max_attempts` grows by
    one with each worker that gave it back. `digest` is the SHA-256 of its path, body and picture, in hexadecimal.
    `result` and `extra` are JSON text. After a failure `error_is_permanent` says whether another attempt could not have
    helped.
    """

    id: str
    state: str
    path: str
    digest: str
    image_path: str | None
    priority: int
    attempts: int
    max_attempts: int
    claims: int
    change: int
    not_before: float
    leased_by: str | None
    lease_until: float | None
    result: str | None
    error: str | None
    error_is_permanent: bool
    idempotency_key: str | None
    callback_url: str | None
    external_id: str | None
    extra: str | None
    keep_s: float | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float | None

    @property
    def cursor(self) -> str:
        """The place of its last change among those of all jobs."""
        return f"{self.change}-{self.id}"


@dataclass(frozen=True)
class JobInput:
    """What a job is about: the body of the request as it came, and the bytes of its picture if they came apart."""

    body: str
    image: bytes | None


@dataclass(frozen=True)
class Callback:
    """What is to be posted when a job changes its state: `body` goes out exactly as it is here, in UTF-8."""

    url: str
    event: str
    body: str


@dataclass(frozen=True)
class Delivery:
    """A callback on its way. `sequence` numbers those of one job, from 1, in the order in which they are sent.

    `next_at` is when it may be sent; while a worker sends it, when that worker's lease ends; None while it waits for
    another of its job, or when it is not to be sent any more.
    """

    id: str
    job_id: str
    sequence: int
    url: str
    event: str
    body: str
    state: str
    attempts: int
    next_at: float | None
    leased_by: str | None
    last_status: int | None
    last_error: str | None
    created_at: float
    delivered_at: float | None


@dataclass(frozen=True)
class JobPage:
    """Some jobs of a list; `after` is the id to go on from, None at the end."""

    jobs: tuple[Job, ...]
    after: str | None


@dataclass(frozen=True)
class DeliveryPage:
    """Some deliveries of a list; `after` is the id to go on from, None at the end."""

    deliveries: tuple[Delivery, ...]
    after: str | None


@dataclass(frozen=True)
class Counts:
    """How many there are in each state, and for how many seconds the oldest has waited past the time at which it could
    have been taken up or sent; None if none waits."""

    by_state: dict[str, int]
    oldest_s: float | None


def no_callbacks(job: Job) -> list[Callback]:
    """For queues without callbacks."""
    return []


def storable(text: str) -> str:
    """The text without what UTF-8 (halves of surrogate pairs) or PostgreSQL (NUL) does not keep."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def check_page(states: Collection[str], known: Sequence[str], after: str | None, prefix: str, limit: int) -> None:
    """Raise InvalidRequest for what no page of a list can be asked for by."""
    if unknown := sorted(set(states) - set(known)):
        raise InvalidRequest(f"state must be one of {', '.join(known)}, not {quoted(unknown[0])}", "state")
    if after is not None and not is_id(after, prefix):
        raise InvalidRequest(f"after must be the id of the last one before, not {quoted(after)}", "after")
    if not 1 <= limit <= 1000:
        raise InvalidRequest(f"limit must be from 1 to 1000, not {limit}", "limit")
