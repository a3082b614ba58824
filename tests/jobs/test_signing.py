"""Events as Standard Webhooks has them, verified by its own package, and the secrets that sign them."""

import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from receiver import receiving
from standardwebhooks import Webhook, WebhookVerificationError

from galago.errors import InvalidRequest
from galago.jobs.sending import check_secret, event_body, send, sign

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD"


def test_a_signed_event_is_verified_by_its_receiver() -> None:
    now = datetime.now(UTC)
    body = event_body("job.done", {"id": "job_1", "result": {"caption": "Ein Café\n☕"}}, now)
    headers = sign(SECRET, "msg_1", now, body)
    with receiving() as receiver:
        assert send(receiver.url, body, headers, allowed_hosts={"127.0.0.1"}).ok
    (arrived,) = receiver.received
    told = Webhook(SECRET).verify(arrived.body, dict(arrived.headers))
    assert told["type"] == "job.done"
    assert told["data"] == {"id": "job_1", "result": {"caption": "Ein Café\n☕"}}
    assert arrived.headers["webhook-id"] == "msg_1"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(arrived.body.replace(b"job_1", b"job_2"), dict(arrived.headers))


def test_each_of_several_secrets_verifies() -> None:
    headers = sign(f"{SECRET} {OTHER}\n", "msg_1", datetime.now(UTC), "{}")
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify("{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "A" * 32).verify("{}", headers)


def test_a_time_of_another_zone_is_the_same_time() -> None:
    zone = timezone(timedelta(hours=-7))
    now = datetime.now(UTC)
    assert sign(SECRET, "msg_1", now.astimezone(zone), "{}") == sign(SECRET, "msg_1", now, "{}")
    assert event_body("job.failed", {}, now.astimezone(zone)) == event_body("job.failed", {}, now)


def test_an_event_has_type_time_and_data() -> None:
    at = datetime(2026, 11, 30, 1, 2, 3, 456789, tzinfo=UTC)
    body = event_body("job.queued", {"id": "j"}, at)
    assert body == '{"type": "job.queued", "timestamp": "2026-11-30T01:02:03.456Z", "data": {"id": "j"}}'
    with pytest.raises(ValueError, match="JSON compliant"):
        event_body("job.done", {"score": float("nan")}, at)


@pytest.mark.parametrize("secret", [SECRET, SECRET.removeprefix("whsec_"), f"{SECRET}  {OTHER}", "A" * 32, "A" * 35])
def test_secrets_that_are_taken(secret: str) -> None:
    check_secret(secret)
    assert Webhook(secret.split()[0]).verify("{}", sign(secret, "m", datetime.now(UTC), "{}")) == {}


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("QUFB", "has 3 bytes, and 24 to 64 are allowed"),
        ("whsec_", "has 0 bytes"),
        ("A" * 100, "has 75 bytes"),
        ("correct horse", "number 1 of the 2 webhook secrets"),
        (f"{SECRET} short", "number 2 of the 2 webhook secrets"),
        ("pass-word-of-mine-with-dashes-in-it", "is not base64"),
        ("A" * 33, "is not base64"),
        ("ÄÖÜ" * 12, "is not base64"),
    ],
)
def test_secrets_that_are_refused_are_not_repeated(secret: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=r"openssl rand -base64 32$") as raised:
        check_secret(secret)
    assert said in str(raised.value)
    assert not secret.strip() or secret not in str(raised.value)
    assert raised.value.param == "webhook_secret"


def test_what_is_missing_to_sign_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "standardwebhooks", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'galago\[jobs\]'"):
        check_secret(SECRET)
