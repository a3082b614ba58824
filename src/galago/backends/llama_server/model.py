"""A model that a llama-server has: how it is started, and what its requests are checked against."""

from dataclasses import dataclass

from galago.backends.llama_server.answer import Answer
from galago.backends.llama_server.process import Server
from galago.backends.llama_server.requests import Vocabulary, check_request
from galago.checkpoint.gguf import GGUFHead, read_head
from galago.errors import CheckpointError
from galago.families import ModelFiles
from galago.request import Request

SLOTS = 2
"""Requests at a time, where nobody bounds them lower: each has keys and values of its own, set aside at the start."""
MAX_CONTEXT = 8192
"""Positions of a request, where a model would take more."""
ENVIRONMENT = {
    "LLAMA_ARG_LOG_PREFIX": "1",
    "LLAMA_ARG_LOG_COLORS": "off",
    "LLAMA_ARG_CACHE_RAM": "0",
    "LLAMA_ARG_NO_WEBUI": "1",
    "LLAMA_ARG_ENDPOINT_SLOTS": "0",
}
"""Settings of llama-server that a version may lack, and a person set otherwise. By default it may keep 8 GiB of old
prompts, and its /slots would show what is asked."""
PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "int8"}
"""How Galago calls what its own engine has too. All of four bits are int4; others keep llama.cpp's names, as Q5_K_M."""
CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that stand for no text of a user's."""


@dataclass(frozen=True, eq=False)
class LlamaModel:
    """A model behind a running server."""

    server: Server
    vocabulary: Vocabulary
    slots: int

    def prepare(self, request: Request) -> Answer:
        check_request(request, self.vocabulary)
        return Answer(self.server, request, self.vocabulary)


def read_pair(files: ModelFiles) -> tuple[GGUFHead, GGUFHead]:
    """The heads of a model and of its projector. Raises CheckpointError for what is damaged, or no pair."""
    assert files.projector is not None
    model, projector = read_head(files.weights[0]), read_head(files.projector)
    if model.architecture == "clip":
        raise CheckpointError(f"{files.weights[0].name} is a projector; name the model that it is for")
    if projector.architecture != "clip" or not sees(projector):
        raise CheckpointError(f"{files.projector.name} is no projector of images (it is {projector.architecture})")
    return model, projector


def sees(projector: GGUFHead) -> bool:
    return bool(projector.fields.get("clip.has_vision_encoder"))


def precision_of(model: GGUFHead) -> str:
    return "int4" if model.precision.startswith(("Q4", "IQ4")) else PRECISIONS.get(model.precision, model.precision)


def vocabulary_of(model: GGUFHead) -> Vocabulary:
    tokens, types = (model.fields.get(f"tokenizer.ggml.{name}") or [] for name in ("tokens", "token_type"))
    control = (t for t, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED) and len(t) > 1)
    return Vocabulary(len(tokens), tuple(t for t in control if not t.isspace()))


def context_of(model: GGUFHead) -> int:
    """Positions of one request."""
    return min(model.of_text("context_length", MAX_CONTEXT), MAX_CONTEXT)


def kv_bytes(model: GGUFHead) -> int:
    """Bytes of keys and values of one request, in float16, on the safe side where layers keep fewer."""
    heads = model.of_text("attention.head_count", 1)
    width = model.of_text("embedding_length", 0) // max(1, heads)
    of_each = model.of_text("attention.key_length", width) + model.of_text("attention.value_length", width)
    kv_heads = model.of_text("attention.head_count_kv", heads)
    return 2 * model.of_text("block_count", 0) * kv_heads * of_each * context_of(model)


def arguments(files: ModelFiles, context: int, slots: int, threads: int) -> list[str]:
    """How llama-server is called, but for its port."""
    return ["--model", str(files.weights[0]), "--mmproj", str(files.projector), *flags(context, slots, threads)]


def flags(context: int, slots: int, threads: int) -> list[str]:
    return ["--parallel", str(slots), "--ctx-size", str(context * slots), "--threads", str(threads), "--jinja"]
