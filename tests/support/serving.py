"""A real server on a loopback port, with a real model of random weights from the golden folder."""

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import uvicorn
from fastapi import FastAPI
from vectors import VECTORS

import galago
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.server.streaming import Silence

GOLDEN = VECTORS / "moondream2-tiny"
NO_CLIENT = "needs Moondream's client (pip install --no-deps moondream)"


def load(folder: str, **options: Any) -> galago.Model:
    return galago.load(GOLDEN / folder, **options)


def hosting(model: galago.Model, silence: Silence = Silence(), **settings: Any) -> FastAPI:
    """An app that serves this one model, with these settings."""
    pool = ModelPool(1, keep_alive=None, load=lambda name, progress: model, need=lambda name: 1)
    return create_app(pool, ServerSettings(model=(model.name,), **settings), silence=silence)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The address of a server for this app, whose models are loaded. Its shutdown closes them."""
    # Connections wait in the listening socket's backlog until the server is up, so nobody needs to poll.
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        if models := getattr(app.state, "startup", None):
            models.result()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def sdk(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def data_url(name: str) -> str:
    return "data:image/png;base64," + base64.b64encode((GOLDEN / "small" / "images" / name).read_bytes()).decode()


def ask(text: str, *urls: str) -> list[Any]:
    """One user turn with images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]
