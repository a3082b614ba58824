"""Carrying out a request: a connection to llama-server, and its stream of pieces as our events."""

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

from galago.backends.llama_server.process import HOST, Server
from galago.backends.llama_server.requests import Vocabulary, body_of, refusal, refused
from galago.backends.queued import Turn
from galago.engine.step import End
from galago.errors import GenerationFailed, InvalidRequest
from galago.request import FinishReason, Request, TextDelta, Token

RETRIES = {"Chunk not found": "cache", "Failed to load image": "as_stored"}
"""Errors of llama-server, and without which way of body_of it is asked again. The first comes where what it keeps of an
earlier prompt has two images side by side, of which this one shares the first: it can let go of the second only
together with the first, and does not (server_tokens::keep_first). The second is of a file that is damaged, or that its
decoder does not know: then ours has the word."""
LOST = "llama-server ended in the middle of the answer; it is started anew, and the request may be sent again"
REASONS: dict[str, FinishReason] = {"length": "length"}


class Answer:
    """A request while it is carried out. `stop` may be called from any thread."""

    def __init__(self, server: Server, request: Request, vocabulary: Vocabulary) -> None:
        self._server, self._request, self._vocabulary = server, request, vocabulary
        self._socket: socket.socket | None = None
        self._stopped = False

    def stop(self) -> None:
        """Close the connection, by which llama-server knows that nobody waits."""
        self._stopped = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def carry_out(self, turn: Turn) -> End:
        ways = dict.fromkeys(RETRIES.values(), True)
        while True:
            try:
                return self._ask(turn, body_of(self._request, self._vocabulary, **ways))
            except (GenerationFailed, InvalidRequest) as error:
                failed = [way for told, way in RETRIES.items() if told in str(error) and ways[way]]
                if not failed:
                    raise
                ways[failed[0]] = False

    def _ask(self, turn: Turn, body: bytes) -> End:
        turn.check()
        connection = http.client.HTTPConnection(HOST, self._server.port)
        try:
            with contextlib.closing(connection):
                connection.connect()
                self._socket = connection.sock
                if self._stopped:
                    turn.check()
                headers = {"Authorization": f"Bearer {self._server.key}", "Content-Type": "application/json"}
                connection.request("POST", "/v1/chat/completions", body, headers)
                response = connection.getresponse()
                if response.status != 200:
                    raise refusal(response.status, response.read())
                end = _read(_events(response), turn)
        except (OSError, http.client.HTTPException) as error:
            turn.check()
            self._server.note_loss()
            raise GenerationFailed(LOST) from error
        if end is None:
            turn.check()
            self._server.note_loss()
            raise GenerationFailed(LOST)
        self._server.note_answer()
        return end


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The events of a stream, but for its end; an error raises."""
    for line in response:
        kind, _, data = line.partition(b": ")
        if kind == b"error" or (kind == b"data" and data.startswith(b'{"error"')):
            told = json.loads(data)
            told = told.get("error", told)
            raise refused(str(told.get("message", told)), int(told.get("code", 500)), told)
        if kind == b"data" and data.startswith(b"{"):
            yield json.loads(data)


def _read(events: Iterator[dict[str, Any]], turn: Turn) -> End | None:
    """Give the pieces to the turn; None where the stream broke off."""
    reason: FinishReason | None = None
    prompt: tuple[int, int] | None = None
    tokens = 0
    for event in events:
        timings, usage = event.get("timings") or {}, event.get("usage") or {}
        if prompt is None and timings.get("prompt_n") is not None:
            cached = timings.get("cache_n") or 0
            prompt = timings["prompt_n"] + cached, cached
            turn.begin_answer(prompt[0], cached=prompt[1])
        tokens = usage.get("completion_tokens") or timings.get("predicted_n") or tokens
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            if text := delta.get("content"):
                turn.count_token()
                turn.emit(TextDelta(text, _tokens(choice.get("logprobs"))))
            if finished := choice.get("finish_reason"):
                reason = REASONS.get(finished, "stop")
        if prompt is None and usage.get("prompt_tokens"):
            prompt = usage["prompt_tokens"], 0
            turn.begin_answer(prompt[0])
    return None if reason is None else End(reason, tokens)


def _tokens(logprobs: dict[str, Any] | None) -> tuple[Token, ...]:
    def token(told: dict[str, Any]) -> Token:
        data = told.get("bytes")
        top = tuple(map(token, told.get("top_logprobs", ())))
        return Token(told["token"], bytes(data) if data else None, told["logprob"], top)

    return tuple(map(token, (logprobs or {}).get("content") or ()))
