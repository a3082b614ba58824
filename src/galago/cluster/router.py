"""How Ray Serve chooses the replica of a request. Imported by Ray alone, so Ray may be imported at the top."""

import random
from typing import Any

from ray.serve.request_router import RequestRouter

from galago.cluster.affinity import ranked


class PictureRouter(RequestRouter):
    """By the argument `picture` of the call, a picture_key; requests without one go to the less busy of two."""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        key = pending_request.kwargs.get("picture") if pending_request is not None else None
        if key is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        # One a rank: the next is asked where the one before has as many requests as it may have.
        return [[one] for one in ranked(key, candidate_replicas, lambda replica: replica.replica_id.unique_id)]
