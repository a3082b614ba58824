"""One served name for several models: which of them takes which requests.

What a request shows decides the way of a route, its first that takes that. Memory decides the model of a way, once,
when a server starts: the first that fits in the pool's budget beside all others that the server is to hold. So the
models of a route are in memory together, and none has to leave for another.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from galago.backends.memory_estimate import canonical_name
from galago.errors import InvalidRequest, ModelNotFound, quoted, size_of
from galago.store.catalog import Entry, Route, Way, lookup, with_precision

if TYPE_CHECKING:
    from galago.fleet.pool import ModelPool

log = logging.getLogger(__name__)

MEDIA = {"text": "text alone", "image": "single images", "images": "several images", "video": "videos"}
"""What a request may show, in words. One with a video is that, whatever is beside it."""


@dataclass(frozen=True)
class Lane:
    """A way of a route on this machine: `model` is its name in the pool."""

    takes: tuple[str, ...]
    model: str
    too_large: tuple[str, ...] = ()
    """those that are wanted more, for which the budget has no room"""


@dataclass(frozen=True)
class Plan:
    """What answers to a name. A model's own has one lane, which takes everything."""

    name: str
    lanes: tuple[Lane, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(lane.model for lane in self.lanes))

    def model_for(self, medium: str) -> str:
        """The model that takes what a request shows. Raises InvalidRequest, telling what the route takes."""
        for lane in self.lanes:
            if medium in lane.takes:
                return lane.model
        takes = ", ".join(words for key, words in MEDIA.items() if any(key in lane.takes for lane in self.lanes))
        raise InvalidRequest(f"{self.name} takes {takes}; it does not take {MEDIA[medium]}", "model")


def alone(model: str) -> Plan:
    """The plan of a model's own name."""
    return Plan(model, (Lane(tuple(MEDIA), model),))


def medium_of(images: int, videos: int) -> str:
    """What a request shows, as a key of MEDIA."""
    return "video" if videos else "images" if images > 1 else "image" if images else "text"


def ways_of(name: str, choice: Mapping[str, Any]) -> tuple[Way, ...]:
    """The ways of a route, or the one of a model, with the models' names as canonical_name() gives them.

    A route's precision (smolvlm-hybrid-int8) is that of its models; `choice` is what canonical_name() takes besides.
    Raises ModelNotFound or InvalidRequest for a route that the catalogue has wrong.
    """
    route, precision = lookup(name), with_precision(name)[1]
    if not isinstance(route, Route):
        return (Way(tuple(MEDIA), (canonical_name(name, **choice),)),)
    ways = []
    for way in route.ways:
        if not way.models or not way.takes or not set(way.takes) <= set(MEDIA):
            raise InvalidRequest(f"each way of {route.id} must have models, and take some of {', '.join(MEDIA)}")
        for model in way.models:
            # No route of routes, so none that comes back to itself.
            if not isinstance(lookup(model), Entry):
                raise ModelNotFound(f"{route.id} routes to {quoted(model)}, which is no model of the catalogue")
        named = (f"{model}-{precision}" if precision else model for model in way.models)
        ways.append(Way(way.takes, tuple(canonical_name(model, **choice) for model in named)))
    return tuple(ways)


def plans(names: Sequence[str], pool: "ModelPool") -> dict[str, Plan]:
    """What a server of these names holds in the pool, by the names as canonical_name() gives them.

    Every way gets the last of its models, which is to be the smallest; then, in their order, each the first that fits
    beside what the others have. What does not fit even so is told by its load. Raises as ways_of() does.
    """
    ways = [
        (name, way)
        for name in dict.fromkeys(canonical_name(name, **pool.choice) for name in names)
        for way in ways_of(name, pool.choice)
    ]
    chosen = [way.models[-1] for _, way in ways]
    found: dict[str, Plan] = {}
    for i, (name, way) in enumerate(ways):
        for model in way.models[:-1]:
            if sum(map(pool.need, {*chosen[:i], model, *chosen[i + 1 :]})) <= pool.budget:
                chosen[i] = model
                break
        lane = Lane(way.takes, chosen[i], way.models[: way.models.index(chosen[i])])
        if lane.too_large:
            what, larger = " and ".join(MEDIA[key] for key in lane.takes), " or ".join(lane.too_large)
            room = f"the budget of {size_of(pool.budget)} has no room for {larger}"
            log.warning("%s: %s takes %s, as %s", name, lane.model, what, room)
        found[name] = Plan(name, (*found[name].lanes, lane) if name in found else (lane,))
    return found
