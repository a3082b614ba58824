"""Routes: one served name for several models, chosen by the media of a request.

A request goes the first way of a route that takes its media. The model of a way is chosen once, when a server starts:
the first that fits in the pool's budget beside all others that the server is to hold. So the models of a route are in
memory together, and none has to be unloaded for another.
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
"""The kinds of request by their media, in words. One with a video counts as video, whatever is beside it."""


@dataclass(frozen=True)
class ResolvedWay:
    """A way of a route with the model that was chosen for it: `model` is its name in the pool."""

    takes: tuple[str, ...]
    model: str
    too_large: tuple[str, ...] = ()
    """preferred models for which the budget has no room"""


@dataclass(frozen=True)
class ResolvedRoute:
    """The models that answer to a served name. A model's own name has one way, which takes everything."""

    name: str
    ways: tuple[ResolvedWay, ...]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(resolved.model for resolved in self.ways))

    def model_for(self, medium: str) -> str:
        """The model for requests with these media. Raises InvalidRequest, which lists what the route takes."""
        for resolved in self.ways:
            if medium in resolved.takes:
                return resolved.model
        takes = ", ".join(words for key, words in MEDIA.items() if any(key in resolved.takes for resolved in self.ways))
        raise InvalidRequest(f"{self.name} takes {takes}; it does not take {MEDIA[medium]}", "model")


def single_model_route(model: str) -> ResolvedRoute:
    """The route of a model's own name."""
    return ResolvedRoute(model, (ResolvedWay(tuple(MEDIA), model),))


def medium_of(images: int, videos: int) -> str:
    """The key in MEDIA of a request with so many images and videos."""
    return "video" if videos else "images" if images > 1 else "image" if images else "text"


def ways_of(name: str, run_options: Mapping[str, Any]) -> tuple[Way, ...]:
    """The ways of a route, or the one of a model, with the models' names as canonical_name() gives them.

    A route's precision (smolvlm-hybrid-int8) is that of its models; `run_options` are those of canonical_name().
    Raises ModelNotFound or InvalidRequest for a route that the catalogue has wrong.
    """
    route, precision = lookup(name), with_precision(name)[1]
    if not isinstance(route, Route):
        return (Way(tuple(MEDIA), (canonical_name(name, **run_options),)),)
    ways = []
    for way in route.ways:
        if not way.models or not way.takes or not set(way.takes) <= set(MEDIA):
            raise InvalidRequest(f"each way of {route.id} must have models, and take some of {', '.join(MEDIA)}")
        for model in way.models:
            # No route of routes, so none that comes back to itself.
            if not isinstance(lookup(model), Entry):
                raise ModelNotFound(f"{route.id} routes to {quoted(model)}, which is no model of the catalogue")
        named = (f"{model}-{precision}" if precision else model for model in way.models)
        ways.append(Way(way.takes, tuple(canonical_name(model, **run_options) for model in named)))
    return tuple(ways)


def resolve_routes(names: Sequence[str], pool: "ModelPool") -> dict[str, ResolvedRoute]:
    """Choose a model of the pool for each way of these models and routes. Returns routes by canonical_name().

    Every way gets the last of its models, which is to be the smallest; then, in their order, each the first that fits
    beside those of the others. What does not fit even so fails at its load. Raises as ways_of() does.
    """
    ways = [
        (name, way)
        for name in dict.fromkeys(canonical_name(name, **pool.run_options) for name in names)
        for way in ways_of(name, pool.run_options)
    ]
    chosen = [way.models[-1] for _, way in ways]
    routes: dict[str, ResolvedRoute] = {}
    for i, (name, way) in enumerate(ways):
        for model in way.models[:-1]:
            if sum(map(pool.need, {*chosen[:i], model, *chosen[i + 1 :]})) <= pool.budget:
                chosen[i] = model
                break
        resolved = ResolvedWay(way.takes, chosen[i], way.models[: way.models.index(chosen[i])])
        if resolved.too_large:
            what, larger = " and ".join(MEDIA[key] for key in resolved.takes), " or ".join(resolved.too_large)
            room = f"the budget of {size_of(pool.budget)} has no room for {larger}"
            log.warning("%s: %s takes %s, as %s", name, resolved.model, what, room)
        routes[name] = ResolvedRoute(name, (*routes[name].ways, resolved) if name in routes else (resolved,))
    return routes
