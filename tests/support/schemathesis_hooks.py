"""For schemathesis: images where they belong, and the few requests that may be refused though a schema allows them.

Read by schemathesis' own process, by its path.
"""

import base64
import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXCUSED = (
    ("invalid_value", "a conversation that ends with a user turn"),  # JSON Schema cannot speak of an array's last item
    ("invalid_value", "a conversation whose last turn has text"),
    ("invalid_value", "cannot be enforced"),  # which schemas can be enforced is for a library to say
    ("invalid_value", "logit_bias"),  # which tokens there are is a matter of the model
    ("invalid_value", "tool_choice"),  # a demand for a call says more of the tools
    ("invalid_value", "tools."),
    ("invalid_value", "not at a clip"),  # the bundled model's family looks at images
    ("invalid_video", "video"),  # what stands for one may be an image
    ("invalid_value", "holds an image or a video"),  # nor of a string where anything may be
    ("invalid_value", "needs a message of the user"),  # nor of what one of its items is
    ("invalid_value", "cannot stand in a turn of"),
    ("invalid_value", "only a message of the user shows something"),
    ("too_many_images", "image"),  # how many a conversation may have is a matter of the model
    ("context_length_exceeded", "token"),
    ("unsupported_parameter", "does not support"),  # thinking, and text to be put into a gap
)
"""Codes and parts of messages of a 400."""


def picture(size: tuple[int, int], kind: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def moving() -> str:
    out = io.BytesIO()
    first, *others = (Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue"))
    first.save(out, "GIF", save_all=True, append_images=others, duration=100)
    return f"data:image/gif;base64,{base64.b64encode(out.getvalue()).decode()}"


PICTURES = [picture((8, 8), "PNG"), picture((90, 30), "JPEG"), picture((1, 1), "GIF")]
schemathesis.openapi.format("image-url", st.sampled_from([*PICTURES, PICTURES[0].partition(",")[2]]))
schemathesis.openapi.format("video-url", st.just(moving()))


@schemathesis.hook
def map_body(ctx, body):  # type: ignore[no-untyped-def]
    """Let most conversations end as they must, so that a model gets to see them."""
    if (
        isinstance(body, dict)
        and ctx.operation.path.startswith("/api/")
        and isinstance(model := body.get("model"), str)
        and model.strip()
    ):
        body = body | {"model": "scenes"}
    turns = body.get("messages") if isinstance(body, dict) else None
    if isinstance(turns, list) and turns and body.get("reasoning") is not True:
        return body | {"messages": [*turns, {"role": "user", "content": "And now?"}]}
    return body


@schemathesis.check
def right_requests_are_accepted(ctx, response, case):  # type: ignore[no-untyped-def]
    if response.status_code == 400:
        body = response.json()
        error = body["error"] if isinstance(body["error"], dict) else {"message": body["error"], **body}
        # Ollama's errors have no codes.
        if any(error.get("code", code) == code and words in error["message"] for code, words in EXCUSED):
            return None
    return positive_data_acceptance(ctx, response, case)
