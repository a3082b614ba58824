"""The backend over llama-server, the program of llama.cpp: GGUF files, a process for each model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from galago.backends.backend import Facts
from galago.backends.llama_server import model as llama
from galago.backends.llama_server.binary import find_binary, version_of
from galago.backends.llama_server.process import Server
from galago.backends.llama_server.slots import Slots
from galago.backends.queued import QueuedBackend
from galago.checkpoint.gguf import GGUFHead
from galago.choices import check_precision
from galago.engine.limits import Limits
from galago.errors import CheckpointError, InvalidRequest, UnsupportedTask
from galago.families import ModelFiles
from galago.request import Caption, Chat, Query
from galago.store import hub
from galago.store.catalog import Entry, Local, with_precision
from galago.system.device import pick_threads, threads_warning

OVERHEAD = 400 << 20
"""Bytes that are reckoned beside the weights, keys and values: what is computed, and the program itself."""


def load(
    name: str,
    *,
    precision: str | None = None,
    profile: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    variants: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits | None = None,
) -> QueuedBackend:
    """See galago.load. Which device computes is the program's own choice."""
    if variants is not None:
        raise UnsupportedTask("models that llama-server runs have no LoRA variants")
    check_precision(precision)
    notes = [warning for warning in [threads_warning(threads)] if warning]
    threads, limits = pick_threads(threads), limits or Limits()
    binary = find_binary()  # told before a download
    version = version_of(binary)
    files = hub.locate(name, progress=progress)
    with hub.blaming(files.name, files.source):
        head, _ = llama.read_pair(files)
    wanted = with_precision(name)[1] if precision in (None, "auto") else precision
    if wanted not in (None, llama.precision_of(head)):
        what = f"{files.name} holds {llama.precision_of(head)} weights, and cannot run in {wanted}"
        raise InvalidRequest(f"{what}; name another file for another precision", "precision")
    slots, context = min(llama.SLOTS, limits.running), llama.context_of(head)
    server = Server(files.name, binary, llama.arguments(files, context, slots, threads), llama.ENVIRONMENT)
    server.start()
    try:
        return _serve(files, head, server, version, slots, threads, notes, limits)
    except BaseException:
        server.close()
        raise


def _serve(
    files: ModelFiles,
    head: GGUFHead,
    server: Server,
    version: str,
    slots: int,
    threads: int,
    notes: list[str],
    limits: Limits,
) -> QueuedBackend:
    told: dict[str, Any] = server.get("/props")
    if not told.get("modalities", {}).get("vision", True):
        raise CheckpointError(f"{files.name}: llama-server {version} loaded it, and does not see images with it")
    size = sum(file.stat().st_size for file in {*files.weights, *filter(None, [files.projector])})
    facts = Facts(
        name=files.name,
        identity=f"{files.name}@{_digest(files)}",
        revision=files.commit or "unknown",
        precision=llama.precision_of(head),
        device="cpu",
        kernels=f"llama-server {version}, {head.precision}",
        skills=frozenset({Caption, Query, Chat}),
        threads=threads,
        fallbacks=tuple(notes),
        weights_bytes=size,
        mapped_bytes=size,
        commit=files.commit,
    )
    loaded = llama.LlamaModel(server, llama.vocabulary_of(head), slots)
    return QueuedBackend(loaded, facts, limits, Slots, slots)


def describe(name: str) -> Entry:
    """What a pair of files holds, without its weights. Raises ModelNotFound, CheckpointError or DownloadError."""
    files = hub.locate(name)
    with hub.blaming(files.name, files.source):
        head, projector = llama.read_pair(files)
    precision = llama.precision_of(head)
    return Entry(
        id=files.name,
        description=str(head.fields.get("general.name") or ""),
        license=str(head.fields.get("general.license") or ""),
        precisions=(precision,),
        source=Local(files.source or files.weights[0].parent, (*files.weights, *filter(None, [files.projector]))),
        parameters=head.parameters + projector.parameters,
        backend="llama_server",
        commit=files.commit,
        context=llama.context_of(head),
        counted={precision: files.size + llama.SLOTS * llama.kv_bytes(head) + OVERHEAD},
    )


def kernels(precision: str, device: str | None) -> tuple[str, list[str]]:
    """The program that would run such models and its version, with its flags; or how to get one."""
    threads = pick_threads(None)
    try:
        found = f"llama-server {version_of(find_binary())}"
    except CheckpointError as error:
        return "llama-server, which is not here", [str(error)]
    return f"{found}: {' '.join(llama.flags(llama.MAX_CONTEXT, llama.SLOTS, threads))}", []


def _digest(files: ModelFiles) -> str:
    """Stands for the files: their names, sizes and times, since to read all of them takes seconds."""
    known = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in (*files.weights, files.projector) if file
    ]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16]
