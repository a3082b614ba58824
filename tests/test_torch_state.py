"""What a program sets in torch for itself changes nothing here, and loading a model changes nothing there."""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tiny_moondream as tiny
import torch
from PIL import Image

import galago
from galago.kernels import Kernels, kernels, kv_buffer
from galago.lab.eval.scenes.draw import scene_at
from galago.precision import NAMES, pick_precision
from galago.precision.linear import float_product
from galago.request import Query, Request, Sampling
from galago.system.machine import most_threads, usable_cores

T = TypeVar("T")
PICTURE: Image.Image = scene_at(3, 4).image


def answers(precision: str) -> dict[str, Any]:
    """What the bundled model, loaded now, says of a picture: text, and numbers that go in and come out."""
    with galago.load(precision=precision) as model:
        return {
            "text": model.query(PICTURE, "How many circles?"),
            "boxes": model.detect(PICTURE, "circle"),
            "gaze": model.detect_gaze(PICTURE, eye=(0.3217, 0.6543)),
        }


def in_new_thread(call: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture(scope="module")
def wanted() -> dict[str, dict[str, Any]]:
    return {precision: answers(precision) for precision in NAMES if precision != "float16"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_default_type_changes_no_answer(dtype: str, wanted: dict[str, dict[str, Any]]) -> None:
    """In a process of its own, which buffers of another size would end."""
    script = (
        "import json, sys, torch\n"
        f"torch.set_default_dtype(torch.{dtype})\n"
        "from test_torch_state import answers\n"
        f"print(json.dumps({{name: answers(name) for name in {list(wanted)}}}))"
    )
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=given)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout) == json.loads(json.dumps(wanted))


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """New tensors are filled with NaN then, and what has no repeatable form is refused."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "deterministic": deterministic,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_setting_around_our_calls_changes_no_answer(
    precision: str, state: str, wanted: dict[str, dict[str, Any]]
) -> None:
    float_product.cache_clear()
    with STATES[state]():
        assert answers(precision) == wanted[precision]


def test_a_compiled_function_may_ask(wanted: dict[str, dict[str, Any]]) -> None:
    with galago.load(precision="int8") as model:
        asks = torch.compile(lambda: model.query(PICTURE, "How many circles?"), backend="eager")
        assert asks() == wanted["int8"]["text"]


def test_nothing_is_drawn_from_sources_that_the_program_has() -> None:
    float_product.cache_clear()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with galago.load() as model:
        model.query(PICTURE, "How many circles?", settings={"temperature": 0.7})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_belong_to_a_model(threads: int, tmp_path: Path) -> None:
    """Not to the thread that loads, nor to those that begin later, nor to the next model."""
    folder = tiny.write(tmp_path)
    before = torch.get_num_threads(), in_new_thread(torch.get_num_threads)
    seen: list[int] = []
    with galago.load(folder, threads=threads) as model, galago.load(folder) as other:
        assert model.threads == min(threads, most_threads())
        assert other.threads == min(before[0], usable_cores())
        for m in (model, other, model):
            run = m.submit(Request(Query("x"), None, Sampling(max_tokens=2)))
            run.watch(lambda: seen.append(torch.get_num_threads()))
            list(run)
            assert seen[-1] == m.threads  # the last to tell is the engine's thread
        assert (torch.get_num_threads(), in_new_thread(torch.get_num_threads)) == before


def test_more_threads_than_can_run_are_cut_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with galago.load(tiny.write(tmp_path), threads=9999) as model:
        assert model.threads == most_threads()
        assert any("fewer than were asked for" in said for said in model.fallbacks)
    assert "fewer than were asked for" in caplog.text


# --- what crosses to C++ -------------------------------------------------------------------------


@pytest.fixture
def k() -> Kernels:
    if (found := kernels()) is None:
        pytest.skip("needs the kernels (apt install g++)")
    return found


def crossing(k: Kernels, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Each kernel with x [4, 16] in one of its places, and what it takes in the others."""
    ok, wide = torch.zeros(4, 16), torch.zeros(1, 4, 16)
    half, many = wide.bfloat16(), x.unsqueeze(0)
    return {
        "weight": lambda: k.weight(ok.byte(), ok.int(), ok, ok, x, 4, 16, 8),
        "dense": lambda: k.dense(x, ok, ok[:, 0].clone()),
        "dense weight": lambda: k.dense(ok, ok, x),
        "decode": lambda: k.decode(many, [(half, half)], 0),
        "decode values": lambda: k.decode(wide, [(half, many)], 0),
        "store": lambda: k.store(many, half),
        "store to": lambda: k.store(wide, many),
        "layers": lambda: k.layers([([x, ok], [])]),
        "rotate": lambda: k.rotate(many, ok, ok),
        "rotate by": lambda: k.rotate(wide, ok, x),
        "norm": lambda: k.norm(x, ok, ok, 1e-5),
        "norm bias": lambda: k.norm(ok, ok, x, 1e-5),
        "add": lambda: k.add(x, ok),
        "add third": lambda: k.add(ok, ok, x),
        "kv_buffer": lambda: kv_buffer(x, half, 0),
        "read": lambda: k.read(x),
    }


@pytest.mark.parametrize("kind", ["float64", "float16", "meta"])
def test_a_kernel_refuses_what_is_of_another_kind(k: Kernels, kind: str) -> None:
    x = torch.zeros(4, 16, device="meta") if kind == "meta" else torch.zeros(4, 16, dtype=getattr(torch, kind))
    for name, call in crossing(k, x).items():
        if name == "read" and kind != "meta":
            continue  # of any type
        with pytest.raises(ValueError, match=f"a kernel takes .* on the CPU here, not .*{kind}"):
            call()


def test_a_kernel_refuses_what_lies_apart(k: Kernels) -> None:
    apart = torch.zeros(16, 4).T
    for name in ("dense weight", "rotate by", "norm bias", "add", "add third", "read"):
        with pytest.raises(ValueError, match=r"contiguous float32 on the CPU here, not float32 .* strides \(1, 4\)"):
            crossing(k, apart)[name]()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_model_under_autocast_gives_numbers(precision: str, tmp_path: Path) -> None:
    """Autocast makes bfloat16 of what went in as float32."""
    m = tiny.load(tiny.write(tmp_path), precision=pick_precision(precision, tiny.CPU))
    with torch.no_grad():
        plain = m.encode_image(tiny.IMAGE)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = m.encode_image(tiny.IMAGE)
    # As a whole, since a rounded activation may fall on the other side of a step of int8.
    assert (cast.k - plain.k).norm() <= 0.02 * plain.k.norm()
