"""`galago serve --on ray`: the application of Ray Serve.

Each replica has all models of the settings in a pool of its own, as one server has: the pool knows what they take,
routes and precisions, and loads by the name that a client sends. Ray Serve's multiplexing would know none of that.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from galago.backends.memory_estimate import memory_needed
from galago.cluster.connection import (
    MAX_THREADS,
    Cluster,
    Workers,
    check_room,
    choose_threads,
    import_ray,
    is_cuda,
    parse_workers,
)
from galago.errors import GalagoError, InvalidRequest, LoadFailed
from galago.fleet.routing import resolve_routes
from galago.server.models import configured_models
from galago.server.pool import make_pool
from galago.server.setting_sources import read_settings
from galago.server.settings import ServerSettings

NAME = "galago"
ROUTER = "galago.cluster.router:PictureRouter"
SPARE = 32
"""Requests beyond those that a replica's queue takes: for lists, health, pages, and refusing others with a 429."""
GRACE_S = 120
"""Seconds at the least that a replica which ends has for its requests."""
INGRESSES = 2
"""They pass requests on, and compute nothing; one takes over for the other."""
WAITING = 1_000
"""Requests of one ingress that may wait for a replica; more are refused with a 503."""


def app(arguments: Mapping[str, Any]) -> Any:
    """The application for a config file of Ray Serve, as `import_path: galago.ray:app`.

    The arguments are settings of `galago serve`, and `replicas`: a number, or MIN..MAX. Raises InvalidRequest.
    """
    given = dict(arguments)
    replicas = parse_workers(str(given.pop("replicas", 1)), "replicas")
    return application(with_models(read_settings(given).settings), replicas)


def with_models(settings: ServerSettings) -> ServerSettings:
    """The settings with the model that is chosen where they name none, so that all replicas have the same.

    Raises ModelNotFound and InvalidRequest for what no replica could serve.
    """
    pool = make_pool(settings)
    try:
        models, _ = configured_models(pool, settings)
        return replace(settings, model=tuple(models.by_name))
    finally:
        pool.close()


def check_settings(settings: ServerSettings, is_own: bool) -> None:
    """Raise InvalidRequest for what replicas cannot share."""
    if settings.meme_search:
        raise InvalidRequest("--meme-search answers from one process; serve it without --on", "meme_search")
    if settings.keeps_jobs and not is_own and not (settings.jobs_db or "").startswith("postgres"):
        raise InvalidRequest("on a cluster jobs are kept in PostgreSQL: --jobs-db postgresql://...", "jobs_db")


def deploy(cluster: Cluster, settings: ServerSettings, replicas: Workers) -> str:
    """Deploy the application, and wait until it answers; returns its address.

    Replicas of an earlier one are replaced one after another, each when it has ended its requests. Raises
    ModelNotFound, InvalidRequest and LoadFailed.
    """
    check_settings(settings, cluster.is_own)
    settings = with_models(replace(settings, threads=choose_threads(cluster, settings.threads)))
    check_room(cluster, room(settings))
    ray = cluster.ray
    if cluster.is_elsewhere:
        try:
            ray.get(ray.remote(num_cpus=0)(_deploy).remote(settings, replicas))
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, GalagoError) else LoadFailed(str(error.cause))) from error
    else:
        _deploy(settings, replicas)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{shown}:{settings.port}"


def _deploy(settings: ServerSettings, replicas: Workers) -> None:
    """Deploy from a machine of the cluster. Raises LoadFailed."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(application(settings, replicas), name=NAME, route_prefix="/")
    except RuntimeError as error:
        told = [line for line in str(error).strip().splitlines() if line.strip()]
        raise LoadFailed(f"Ray Serve could not deploy: {told[-1] if told else 'it does not say why'}") from error


def stop() -> None:
    """End the replicas, when they have ended their requests."""
    from ray import serve

    serve.shutdown()


def application(settings: ServerSettings, replicas: Workers) -> Any:
    """An ingress and the replicas behind it. The settings name their models."""
    import_ray()
    from ray import serve

    from galago.cluster.ingress import Ingress
    from galago.cluster.replica import Replica

    settings = replace(settings, threads=settings.threads or MAX_THREADS)
    options = {
        {"CPU": "num_cpus", "GPU": "num_gpus"}.get(name, name): amount for name, amount in room(settings).items()
    }
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most != replicas.least:
        bounds = {"min_replicas": replicas.least, "max_replicas": replicas.most or replicas.least}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": settings.max_batch_size}}
    # Nobody waits for a replica that ends, as for a server: others answer meanwhile.
    grace, limit = max(settings.grace_s, GRACE_S), settings.body_limit

    def make_ingress() -> Ingress:
        return Ingress(serve.get_deployment_handle(f"{NAME}-replica", app_name=NAME), limit)

    behind = serve.deployment(
        Replica, name=f"{NAME}-replica", ray_actor_options=options, max_queued_requests=WAITING,
        max_ongoing_requests=settings.max_batch_size + settings.max_queue + SPARE,
        graceful_shutdown_timeout_s=grace, request_router_config={"request_router_class": ROUTER},
        health_check_timeout_s=600, **scaling,
    ).bind(settings)  # fmt: skip
    front = serve.deployment(
        serve.ingress(make_ingress)(),
        name=NAME,
        num_replicas=INGRESSES,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        graceful_shutdown_timeout_s=grace,
    )
    return front.bind(behind)


def room(settings: ServerSettings) -> dict[str, float]:
    """What a replica takes of a machine, by Ray's names."""
    cores = settings.threads or MAX_THREADS
    options = {name: value for name, value in asdict(settings).items() if name in ("precision", "profile", "device")}
    if is_cuda(options):
        return {"CPU": cores, "GPU": 1}
    pool = make_pool(settings)
    keys = {key for route in resolve_routes(settings.model or (), pool).values() for key in route.models}
    pool.close()
    return {"CPU": cores, "memory": sum(memory_needed(key, **options) for key in keys)}
