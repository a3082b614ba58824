"""What clients of a server on Ray reach: it reads a request, and hands it to the replica that has seen its picture."""

import asyncio
import json
from contextlib import suppress
from typing import Any

from galago.cluster.affinity import picture_key
from galago.server.bodies import decompress
from galago.server.errors import Refused

_KEPT = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
"""Of a request's scope; the rest is of this process."""
BUSY = "all replicas have as many requests as they take; try again soon"
LOST = "the replica that had the request has ended; try again"


class Ingress:
    """An ASGI app in front of the replicas. `handle` is Ray Serve's to them."""

    def __init__(self, handle: Any, body_limit: int) -> None:
        self._replicas = handle.options(method_name="answer", stream=True)
        self._limit = body_limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        body = await self._read(receive)
        if body is None:
            return
        told = {name: scope[name] for name in _KEPT if name in scope}
        told |= {"asgi": {"version": "3.0"}, "client": scope.get("client"), "server": scope.get("server")}
        messages = self._replicas.remote(told, body, picture=await asyncio.to_thread(self._key, scope, body))
        leaving = asyncio.ensure_future(_disconnected(receive, messages))
        begun = False
        try:
            async for message in messages:
                begun = True
                await send(message)
        except Exception as error:
            if begun or leaving.done():
                raise
            await _refuse(send, _why(error))
        finally:
            leaving.cancel()

    async def _read(self, receive: Any) -> bytes | None:
        """The body, or a little more of it than is allowed, which the app then refuses; None if the client has gone."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if not message.get("more_body") or len(body) > self._limit:
                return bytes(body)

    def _key(self, scope: Any, body: bytes) -> str | None:
        encoding = dict(scope["headers"]).get(b"content-encoding", b"").decode("latin-1")
        if encoding:
            with suppress(Refused):
                body = decompress(body, encoding, self._limit)
        return picture_key(body)


async def _disconnected(receive: Any, messages: Any) -> None:
    """Cancel a request when its client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass
    messages.cancel()


def _why(error: Exception) -> str:
    from ray.serve.exceptions import BackPressureError

    return BUSY if isinstance(error, BackPressureError) else LOST


async def _refuse(send: Any, message: str) -> None:
    """A 503, which clients take for a reason to try again."""
    told = {"error": {"message": message, "type": "server_error", "param": None, "code": "unavailable"}}
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
