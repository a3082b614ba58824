"""Callbacks over real sockets: where they may go, what arrives, and what bounds them."""

import json
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver, receiving
from websites import hosted

from galago.errors import InvalidRequest
from galago.jobs.sending import MAX_REPLY, Sent, check_callback, send

HERE = {"127.0.0.1"}
PRIVATE = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "2130706433",
    "127.1",
    "0x7f.1",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "0.0.0.0",
    "10.1.2.3",
    "192.168.1.1",
    "169.254.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "224.0.0.1",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::1]",
    "[2002:7f00:1::]",
    "[fec0::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[ff02::1]",
]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """What the name server says of hosts under .test: for each a list of answers, one a question."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if not str(host).endswith(".test"):
            return real(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port or 0)) for found in answers[host].pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return answers


def port_of(url: str) -> str:
    return url.rpartition(":")[2]


# --- where callbacks may go ---


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_when_they_are_given_and_when_they_are_sent_to(
    receiver: Receiver, host: str
) -> None:
    url = f"http://{host}:{port_of(receiver.url)}/hook"
    with pytest.raises(InvalidRequest, match=r"^callback_url may not lead to .* not a public address") as raised:
        check_callback(url, {"elsewhere"})
    assert raised.value.param == "callback_url"
    sent = send(url, "{}", allowed_hosts={"elsewhere"})
    assert (sent.ok, sent.status, sent.error) == (False, None, str(raised.value))
    assert receiver.received == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://93.184.216.34/a", "must be an http:// or https:// URL"),
        ("file:///etc/passwd", "must be an http:// or https:// URL"),
        ("//93.184.216.34/a", "must be an http:// or https:// URL"),
        ("http://", "must be an http:// or https:// URL"),
        ("nonsense", "must be an http:// or https:// URL"),
        ("", "must be an http:// or https:// URL"),
        ("http://[broken", "a host that does not exist"),
        ("http://93.184.216.34:port/", "is not a URL"),
        ("http://a\nb/", "is not a URL"),
        ("http://93.184.216.34/\ud800", "is not a URL"),
        ("http://93.184.216.34:0/", "a port of 1 to 65535, not 0"),
        ("http://93.184.216.34:65536/", "a port of 1 to 65535, not 65536"),
        ("http://me:word@93.184.216.34/", "must have no user name or password"),
        ("http://me@93.184.216.34/", "must have no user name or password"),
        ("http://no-such-host.invalid/", "a host that does not exist: no-such-host.invalid"),
        ("http://" + "a" * 70 + ".test/", "a host that does not exist"),
        ("http://93.184.216.34/" + "a" * 2048, "up to 2048 characters"),
        (7, "must be text"),
    ],
)
def test_what_is_no_address_for_callbacks(url: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^callback_url ") as raised:
        check_callback(url)
    message = str(raised.value)
    assert said in message
    assert "word@" not in message
    assert "\n" not in message
    assert send(url, "{}") == Sent(error=message)


@pytest.mark.parametrize("url", ["https://93.184.216.34/hook?a=b", "http://[2606:2800:220:1:248:1893:25c8:1946]:8080"])
def test_public_addresses_are_allowed(url: str) -> None:
    check_callback(url)


def test_a_host_that_is_allowed_need_not_be_up_yet(names: dict[str, list[list[str]]]) -> None:
    check_callback("http://meme-search.test:3000/image_cores", {"meme-search.test"})
    assert names == {}


def test_one_private_address_among_public_ones_is_enough(names: dict[str, list[list[str]]]) -> None:
    names["both.test"] = [["93.184.216.34", "10.0.0.1"]]
    with pytest.raises(InvalidRequest, match="not a public address"):
        check_callback("http://both.test/")


def test_a_name_that_became_private_is_not_sent_to(receiver: Receiver, names: dict[str, list[list[str]]]) -> None:
    names["changing.test"] = [["93.184.216.34"], ["127.0.0.1"]]
    url = f"http://changing.test:{port_of(receiver.url)}/"
    check_callback(url)
    assert "not a public address" in str(send(url, "{}").error)
    assert receiver.received == []


def test_a_name_is_looked_up_once_for_judgement_and_connection(
    receiver: Receiver, names: dict[str, list[list[str]]]
) -> None:
    names["changing.test"] = [["127.0.0.1"], ["127.0.0.9"]]
    port = port_of(receiver.url)
    assert send(f"http://changing.test:{port}/a?b=c", "{}", allowed_hosts={"changing.test"}) == Sent(200)
    assert names["changing.test"] == [["127.0.0.9"]]
    (arrived,) = receiver.received
    assert (arrived.path, arrived.headers["host"]) == ("/a?b=c", f"changing.test:{port}")


def test_the_next_address_of_a_host_is_tried_where_one_does_not_answer(
    receiver: Receiver, names: dict[str, list[list[str]]]
) -> None:
    names["two.test"] = [["127.0.0.2", "127.0.0.1"]]
    assert send(f"http://two.test:{port_of(receiver.url)}/", "{}", allowed_hosts={"two.test"}).ok
    assert len(receiver.received) == 1


def test_proxies_of_the_environment_are_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert send(receiver.url, "{}", allowed_hosts=HERE).ok


# --- what arrives ---


def test_a_body_arrives_byte_for_byte(receiver: Receiver) -> None:
    body = '{"data": {"text": "caf\\u00e9 \u00e9", "n": 1}}'
    assert send(f"{receiver.url}/status_receiver", body, allowed_hosts=HERE) == Sent(200)
    (arrived,) = receiver.received
    assert (arrived.path, arrived.body) == ("/status_receiver", body.encode())
    assert arrived.headers["content-type"] == "application/json"
    assert arrived.headers["user-agent"].startswith("Galago/")
    assert not {"webhook-id", "authorization", "cookie"} & arrived.headers.keys()


class Site(BaseHTTPRequestHandler):
    """Receivers that misbehave, each at a path of its own."""

    asked: list[str]
    written: int
    over: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).asked.append(self.path)
        routes: dict[str, Callable[[], None]] = {
            "/moved": lambda: self.answer(302, location="/"),
            "/moved-nowhere": lambda: self.answer(307, location="http://127.0.0.1:port/"),
            "/created": lambda: self.answer(201),
            "/gone": lambda: self.answer(410),
            "/endless": lambda: self.go_on(b"HTTP/1.1 200 OK\r\n\r\n", bytes(1 << 16)),
            "/informing": lambda: self.go_on(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", pause=0.01),
            "/dripping-head": lambda: self.go_on(b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n", pause=0.01),
            "/dripping-body": lambda: self.go_on(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.01),
            "/long-head": lambda: self.go_on(b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"b" * 5000 + b"\r\n"),
            "/not-http": lambda: self.go_on(b"SSH-2.0-OpenSSH_9\r\n", b"", once=True),
            "/silent": lambda: self.go_on(b"", b"", pause=0.01),
        }
        routes.get(self.path, lambda: self.answer(200))()

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def go_on(self, first: bytes, again: bytes, pause: float = 0.0, once: bool = False) -> None:
        with suppress(OSError):
            self.wfile.write(first)
            while not once and not type(self).over.wait(pause):
                self.wfile.write(again)
                type(self).written += len(again)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.asked, Site.written, Site.over = [], 0, threading.Event()
    with hosted(Site) as url:
        yield url
        Site.over.set()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/created", 201, None),
        ("/gone", 410, "the receiver answered 410"),
        ("/moved", 302, "the receiver answered 302, and redirects are not followed"),
        ("/moved-nowhere", None, "could not deliver to 127.0.0.1"),
        ("/not-http", None, "could not deliver to 127.0.0.1"),
        ("/long-head", None, "could not deliver to 127.0.0.1"),
    ],
)
def test_what_receivers_answer(site: str, path: str, status: int | None, said: str | None) -> None:
    sent = send(site + path, "{}", allowed_hosts=HERE)
    assert (sent.status, sent.ok) == (status, said is None)
    assert sent.error == said or (said and str(sent.error).startswith(said))
    assert Site.asked == [path]


@pytest.mark.parametrize("path", ["/silent", "/dripping-head", "/informing"])
def test_a_slow_receiver_is_given_up_in_time(site: str, path: str) -> None:
    assert send(site + path, "{}", allowed_hosts=HERE, timeout=0.3) == Sent(error="no answer within 0.3 seconds")


def test_an_endless_reply_is_cut_short(site: str) -> None:
    """What was written beyond what was read lies in the buffers of the sockets."""
    assert send(f"{site}/endless", "{}", allowed_hosts=HERE) == Sent(200)
    assert MAX_REPLY <= 1 << 16
    assert Site.written < 1 << 24


def test_a_reply_that_drips_is_cut_and_counts_by_its_status(site: str) -> None:
    assert send(f"{site}/dripping-body", "{}", allowed_hosts=HERE, timeout=1.5) == Sent(200)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
def test_a_connection_that_nobody_takes_is_given_up_in_time() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        assert send(url, "{}", allowed_hosts=HERE, timeout=0.3) == Sent(error="no answer within 0.3 seconds")


def test_a_receiver_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        sent = send(f"http://127.0.0.1:{unused.getsockname()[1]}/", "{}", allowed_hosts=HERE)
    assert sent.status is None
    assert str(sent.error).startswith("could not deliver to 127.0.0.1: ")


def test_a_name_server_that_does_not_answer_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: over.wait() and [])
    try:
        assert send("http://slow.test/", "{}", timeout=0.2) == Sent(error="no answer within 0.2 seconds")
    finally:
        over.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of hooks.test, in one file."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    key, made, both = folder / "key.pem", folder / "made.pem", folder / "both.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hooks.test"
    names = ["-addext", "subjectAltName=DNS:hooks.test", "-keyout", str(key), "-out", str(made)]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + made.read_bytes())
    return both


def test_tls_is_verified_against_the_name(
    certificate: Path, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["hooks.test"] = [["127.0.0.1"], ["127.0.0.1"]]
    names["other.test"] = [["127.0.0.1"]]
    allowed = {"hooks.test", "other.test"}
    Site.asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"https://hooks.test:{server.server_port}/"
            assert "certificate verify failed" in str(send(url, "{}", allowed_hosts=allowed).error)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            assert send(url, "{}", allowed_hosts=allowed) == Sent(200)
            wrong = send(url.replace("hooks.", "other."), "{}", allowed_hosts=allowed)
            assert "certificate verify failed" in str(wrong.error)
        finally:
            server.shutdown()
            thread.join()
    assert Site.asked == ["/"]


# --- the stand-in itself ---


def test_a_receiver_that_fails_half_of_the_time_gets_all_of_them_in_order() -> None:
    with receiving(share=0.5, slow=0.0) as unreliable:
        for number in range(40):
            body = json.dumps({"n": number})
            while not send(unreliable.url, body, allowed_hosts=HERE).ok:
                pass
        # One that was slow was taken too.
        came = [json.loads(one.body)["n"] for one in unreliable.received if one.failed in (None, "slow")]
        assert came == [*range(40)]
        assert {one.failed for one in unreliable.received} == {None, "status", "close", "slow"}
        assert len(unreliable.wait_for(10)) == len(unreliable.taken)
