"""A replica of the server on Ray Serve: the app of `galago serve`, with its models, in a process of its own."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from galago.server.app import create_app
from galago.server.guard import logs
from galago.server.pool import make_pool
from galago.server.settings import ServerSettings


class Replica:
    """Carries out requests that are handed over as the scope of ASGI and a body, and gives back what the app sends."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        """Load the models; requests come afterwards. Raises why they could not be loaded."""
        logs.configure_logging(settings.log_format, logging.getLevelNamesMapping()[settings.log_level.upper()])
        self._app = create_app(make_pool(settings), settings)
        self._answering: set[asyncio.Future[None]] = set()
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        await asyncio.wrap_future(self._app.state.startup)

    async def answer(self, scope: dict[str, Any], body: bytes, picture: str | None) -> AsyncIterator[dict[str, Any]]:
        """The messages of a reply. Whoever ends this early is taken for a client that has gone."""
        gone, sent = asyncio.Event(), asyncio.Queue[dict[str, Any] | None]()
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if pending:
                return pending.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if not gone.is_set():
                sent.put_nowait(message)

        answering = asyncio.ensure_future(self._app(scope, receive, send))
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        answering.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            while (message := await sent.get()) is not None:
                yield message
            answering.result()
        finally:
            gone.set()

    async def __del__(self) -> None:
        """Called by Ray when the replica has ended its requests."""
        await self._lifespan.__aexit__(None, None, None)
