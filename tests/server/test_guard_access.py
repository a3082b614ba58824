"""Who may ask: keys, pages from elsewhere, names that are not the server's, and what its pages may do."""

import re
from contextlib import ExitStack

import httpx
import pytest
import tiny_moondream as tiny
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse
from guarded import opened
from serving import serving

from galago.errors import InvalidRequest
from galago.server.guard.gate import GateMiddleware, check_keys, check_origins, has_key, is_loopback, is_own_host
from galago.server.guard.stopping import InFlight
from galago.server.pages import html_response

CHAT = "/v1/chat/completions"
ROUTES = [("POST", CHAT), ("POST", "/v1/query"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nothing")]
KEYS = ("first-key", "second:key~")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("guarded") / "tiny")


@pytest.fixture
def serve(folder):
    """The client of an app with these settings."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(opened(folder, **settings))


def code_of(reply):
    """The error's code, in whichever dialect."""
    error = reply.json()["error"]
    return error["code"] if isinstance(error, dict) else reply.json()["code"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-keyy"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"X-Moondream-Auth": "nobody"},
        {"X-Moondream-Auth": "schlüssel".encode("latin-1")},
    ],
)
def test_without_a_key_every_route_but_health_is_refused(serve, headers):
    http = serve(api_keys=KEYS)
    for method, path in ROUTES:
        reply = http.request(method, path, headers=headers)
        assert (reply.status_code, code_of(reply)) == (401, "invalid_api_key"), path
        assert reply.headers["www-authenticate"] == "Bearer"
    assert http.get("/health", headers=headers).status_code == 200
    assert http.get("http://localhost//health").status_code == http.get("/readyz/").status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_either_header_carries_any_key(serve, key):
    http = serve(api_keys=KEYS)
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"X-Moondream-Auth": key},
        {"Authorization": "Bearer wrong", "X-Moondream-Auth": key},
    ):
        assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_refusal_has_the_shape_of_its_dialect(serve):
    http = serve(api_keys=KEYS)
    openais = http.post(CHAT).json()["error"]
    assert (openais["type"], openais["code"], openais["param"]) == ("authentication_error", "invalid_api_key", None)
    moondreams = http.post("http://localhost//v1//query").json()
    assert isinstance(moondreams["error"], str) and moondreams["status"] == "error"


def test_without_keys_any_are_accepted(serve):
    assert serve().get("/v1/models", headers={"Authorization": "Bearer whatever"}).status_code == 200


@pytest.mark.parametrize("keys", [[""], [" a"], ["good", "b\n"], ["schlüssel"]])
def test_a_key_that_nobody_could_send_is_refused(keys):
    with pytest.raises(InvalidRequest, match="key"):
        check_keys(keys)


def test_no_keys_are_no_protection():
    with pytest.raises(InvalidRequest, match="at least one key"):
        GateMiddleware(FastAPI(), InFlight(), lambda path, error: JSONResponse({}), keys=[])
    assert not has_key(["any"], [])


HERE = ["http://localhost", "http://localhost:3000", "https://127.0.0.1:8443", "http://[::1]:5173"]
ELSEWHERE = ["http://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example:80", "null"]


def preflight(http, origin, **headers):
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-moondream-auth",
    }
    return http.options(CHAT, headers={"Origin": origin, **asked, **headers})


@pytest.mark.parametrize("origin", HERE)
def test_pages_of_this_machine_may_use_the_server_also_where_a_key_is_wanted(serve, origin):
    http = serve(api_keys=KEYS)
    reply = preflight(http, origin)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert "x-moondream-auth" in reply.headers["access-control-allow-headers"]
    # A page can read why it was refused.
    refused = http.post(CHAT, headers={"Origin": origin})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == origin
    assert "Origin" in refused.headers["vary"]


@pytest.mark.parametrize("origin", ELSEWHERE)
def test_pages_from_elsewhere_can_neither_read_nor_cause_anything(serve, origin):
    http = serve()
    assert preflight(http, origin).status_code == 400
    read = http.get("/v1/models", headers={"Origin": origin})
    # A POST of plain text goes out without a preflight.
    sent = http.post(
        "/v1/query", content='{"question": "hi"}', headers={"Origin": origin, "Content-Type": "text/plain"}
    )
    for reply in (preflight(http, origin), read, sent):
        assert "access-control-allow-origin" not in reply.headers
    assert (sent.status_code, code_of(sent)) == (403, "origin_not_allowed")
    assert "--cors-origin" in sent.json()["error"]


def test_origins_that_were_named_and_the_servers_own_page(serve):
    http = serve(cors_origins=("https://app.example",), host="0.0.0.0")
    assert preflight(http, "https://app.example").headers["access-control-allow-origin"] == "https://app.example"
    assert preflight(http, "https://app.example", **{"Access-Control-Request-Private-Network": "true"}).is_success
    assert preflight(http, "http://app.example").status_code == 400
    asked = {"question": "hi", "settings": {"max_tokens": 1}}
    own = {"Origin": "http://box.lan:8080", "Host": "box.lan:8080"}
    for headers in (own, {"Origin": "https://app.example"}):
        assert http.post("/v1/query", json=asked, headers=headers).status_code == 200


def test_every_page_may_use_the_server_where_that_was_asked_for(serve):
    http = serve(cors_origins=("*",))
    for origin in [*HERE, *ELSEWHERE]:
        assert preflight(http, origin).headers["access-control-allow-origin"] == "*"
        assert http.post("/v1/query", json={}, headers={"Origin": origin}).status_code == 400


@pytest.mark.parametrize(
    "origin", [*ELSEWHERE[:-1], "chrome-extension://abcdef", "moz-extension://notes", "null", "a b", "x" * 500]
)
def test_the_flag_that_a_refusal_names_lets_the_page_in(serve, origin):
    refused = serve().post("/v1/query", json={}, headers={"Origin": origin}).json()["error"]
    named = re.search(r"--cors-origin (\S+)", refused)[1].strip("';,")
    assert len(refused) < 300
    http = serve(cors_origins=(named,))
    assert http.post("/v1/query", json={}, headers={"Origin": origin}).status_code == 400


def test_the_flags_that_a_strange_name_is_told_of_let_it_in(serve):
    strange = {"Host": "box.lan"}
    refused = serve().post("/v1/query", json={}, headers=strange).json()["error"]
    assert "--api-key" in refused and "--host 0.0.0.0" in refused
    assert serve(host="0.0.0.0").get("/v1/models", headers=strange).status_code == 200
    key = {"Authorization": f"Bearer {KEYS[0]}"}
    assert serve(api_keys=KEYS).get("/v1/models", headers={**strange, **key}).status_code == 200


@pytest.mark.parametrize("origin", ["example.org", "https://example.org/", "", "https://*.example.org", "https://a b"])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(InvalidRequest, match="not an origin"):
        check_origins([origin])


def test_a_page_whose_name_points_to_this_machine_is_refused(serve):
    http = serve(host="localhost")
    for host in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "", "[evil]"):
        reply = http.post("/v1/query", json={}, headers={"Host": host})
        assert (reply.status_code, code_of(reply)) == (421, "host_not_allowed"), host
        assert repr(host) in reply.json()["error"]
    for host in (
        "localhost",
        "LOCALHOST:1",
        "localhost.",
        "a.localhost:80",
        "127.0.0.1:8080",
        "[::1]:8080",
        "localhost:9",
    ):
        assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host


def test_any_name_will_do_where_the_server_is_open_to_others(serve):
    assert serve(host="0.0.0.0").get("/v1/models", headers={"Host": "box.lan"}).status_code == 200


def test_loopback_is_told_from_what_others_reach():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "localhost", "")))


def test_own_hosts_are_told_from_names_of_others():
    names = {"localhost", "box.lan"}
    own = ("localhost", "BOX.lan.:80", "a.localhost", "10.0.0.1:1", "[::1]:8080")
    assert all(is_own_host(host, names) for host in own)
    assert not any(is_own_host(host, names) for host in ("", "lan", "a.box.lan", "box.lan.evil.example", "[evil]"))


def test_pages_may_load_nothing_from_elsewhere_and_data_is_left_alone(serve):
    app = FastAPI()

    @app.get("/page")
    async def page() -> HTMLResponse:
        return html_response("<p>", {"Referrer-Policy": "same-origin"})

    with serving(app) as url:
        headers = httpx.get(f"{url}/page").headers
        missing = httpx.get(f"{url}/none").headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert headers["referrer-policy"] == "same-origin"  # the page's own wins
    assert "content-security-policy" not in missing
    http = serve()
    assert "content-security-policy" not in http.get("/").headers
    # Whatever answers with a page, now or later.
    paths = [route.path for route in http.app.routes if "GET" in route.methods and "{" not in route.path]
    replies = {path: http.get(path, headers={"Accept": "text/html"}).headers for path in paths}
    pages = {path: headers for path, headers in replies.items() if headers["content-type"].startswith("text/html")}
    assert pages.keys() == {"/", "/docs"}
    assert all(headers["content-security-policy"] == policy for headers in pages.values())
    assert all(headers["referrer-policy"] == "no-referrer" for headers in pages.values())
