"""The recipe's configuration for nginx: read by a parser of its language, and used where there is an nginx."""

import math
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crossplane
import httpx
import pytest
from queueing import queueing

from galago.server.streaming import Silence


@pytest.fixture(scope="module")
def server_block(root: Path) -> str:
    text = (root / "packaging" / "recipes.md").read_text()
    (found,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    return found


def test_every_directive_is_known_and_stands_where_it_may(server_block: str, tmp_path: Path) -> None:
    file = tmp_path / "nginx.conf"
    file.write_text(f"events {{}}\nhttp {{\n{server_block}\n}}\n")
    parsed = crossplane.parse(str(file), strict=True, check_args=True, check_ctx=True)
    assert parsed["status"] == "ok", parsed["errors"]


@contextmanager
def proxying(server_block: str, url: str, folder: Path) -> Iterator[str]:
    """The address of an nginx in front of the server: the recipe's, without TLS."""
    # Debian keeps it where only root looks.
    program = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if program is None:
        pytest.skip("needs nginx (apt install nginx)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    block = server_block.replace("listen 443 ssl", f"listen 127.0.0.1:{port}").replace("http://127.0.0.1:8080", url)
    block = re.sub(r"^\s*ssl_.*\n", "", block, flags=re.MULTILINE)
    stores = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{name}_temp_path {folder / name};\n" for name in stores)
    config = folder / "nginx.conf"
    errors = folder / "error.log"
    config.write_text(
        # The user counts where root runs this, who alone may use the folder.
        f"user root;\npid {folder / 'pid'};\nerror_log {errors};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{block}}}\n"
    )
    command = [program, "-e", str(errors), "-p", str(folder), "-c", str(config)]
    # It comes back once the server listens, which keeps on in the background: with a pipe, that would be waited for.
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0, (
        errors.read_text()
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([*command, "-s", "stop"], check=True)


@pytest.fixture(scope="module")
def proxied(server_block: str, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with proxying(server_block, url, tmp_path_factory.mktemp("nginx")) as address:
        yield address


def test_streams_pass_in_pieces_and_large_bodies_pass(proxied: str, picture: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "Describe this picture."}, {"type": "image_url", "image_url": picture}]
    body = {"messages": [{"role": "user", "content": content}]}
    large = httpx.post(f"{proxied}/v1/chat/completions", json={**body, "user": "x" * (8 << 20)}, timeout=60)
    assert large.status_code == 200, large.text[:300]
    over = httpx.post(f"{proxied}/v1/chat/completions", content=b" " * (33 << 20), timeout=60)
    assert over.status_code == 413
    streamed = {**body, "stream": True}
    with httpx.stream("POST", f"{proxied}/v1/chat/completions", json=streamed, timeout=60) as reply:
        assert reply.status_code == 200
        assert len(list(reply.iter_raw())) > 3
    assert httpx.get(f"{proxied}/metrics").status_code == 404
    assert httpx.get(f"{proxied}/health").json()["server"] == "galago"


@pytest.mark.slow
def test_no_stream_is_cut_while_it_waits_for_its_turn(server_block: str, tmp_path: Path) -> None:
    """Sixteen streams wait for longer than nginx lets a server be silent, which it does cut."""
    # A tenth of the times that the server has, and of a limit of 30 s.
    silence, limit = Silence(first=1.0, later=1.5), 3.0
    block = server_block.replace("proxy_read_timeout 600s", f"proxy_read_timeout {round(1000 * limit)}ms")
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    all_wait = threading.Barrier(17)

    def stream(address: str) -> list[str]:
        with httpx.stream("POST", f"{address}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as reply:
            lines = reply.iter_lines()
            # So many keep-alives take twice as long as nginx waits.
            kept = [next(lines) for _ in range(2 * math.ceil(2 * limit / silence.later))]
            assert reply.status_code == 200 and set(kept) == {": keep-alive", ""}
            all_wait.wait(60)
            return list(lines)

    folder = tmp_path / "nginx"
    folder.mkdir()
    with (
        queueing(tmp_path / "tiny", silence) as queue,
        proxying(block, queue.url, folder) as address,
        ThreadPoolExecutor(17) as threads,
    ):
        whole = threads.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60)
        streams = [threads.submit(stream, address) for _ in range(16)]
        assert whole.result().status_code == 504
        all_wait.wait(60)
        queue.first.cancel()
        replies = [one.result() for one in streams]
    assert [lines[-2:] for lines in replies] == [["data: [DONE]", ""]] * 16
