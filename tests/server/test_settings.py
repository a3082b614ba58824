"""Where settings come from, which of several has the last word, and how mistakes are told."""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from galago import Limits
from galago.cli.app import main
from galago.cli.server_flags import ServerFlags
from galago.errors import InvalidRequest
from galago.server.setting_sources import read_settings
from galago.server.settings import ServerSettings

WORD = st.text("abcxyz019", min_size=1, max_size=12)
# A right value of each setting.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "model": st.lists(WORD, min_size=1, max_size=3),
    "host": WORD,
    "port": st.integers(0, 65535),
    "profile": st.sampled_from(["standard", "optimized"]),
    "precision": st.sampled_from(["float32", "bfloat16", "float16", "int8", "int4"]),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1", "mps"]),
    "revision": WORD,
    "threads": st.integers(1, 256),
    "max_memory_gb": st.floats(0.001, 4096),
    "decode_memory_mb": st.floats(0.001, 4096),
    "max_batch_size": st.integers(1, 1000),
    "max_queue": st.integers(0, 1000),
    "max_connections": st.integers(1, 10_000),
    "timeout": st.floats(1e-6, 86400),
    "body_limit_mb": st.floats(1e-6, 4096),
    "grace_s": st.integers(0, 3600),
    "api_keys": st.lists(WORD, min_size=1, max_size=3),
    "cors_origins": st.lists(WORD.map("https://{}.org".format) | st.just("*"), min_size=1, max_size=3),
    "several_images": st.sampled_from(["refuse", "sheet"]),
    "max_image_side": st.integers(64, 10_000),
    "detail": st.sampled_from(["low", "high"]),
    "remote_images": st.booleans(),
    "allow_image_hosts": st.lists(WORD, min_size=1, max_size=3),
    "jobs": st.booleans(),
    "jobs_db": WORD,
    "jobs_keep_s": st.floats(0, 1e9),
    "allow_callback_hosts": st.lists(WORD, min_size=1, max_size=3),
    "webhook_secret": WORD,
    "meme_search": st.booleans(),
    "image_root": WORD,
    "callback_url": WORD.map("http://{}:3000/image_cores".format),
    "job_delay": st.floats(0, 3600),
    "meme_search_legacy": st.booleans(),
    "strict_model_names": st.booleans(),
    "assistant_compat": st.booleans(),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log_format": st.sampled_from(["text", "json"]),
    "log_content": st.booleans(),
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def as_text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def as_flag(name: str, value: Any) -> tuple[str, list[str]]:
    """The flag, and the arguments that give the value."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        flag = f"--{dashed}" if value else f"--no-{dashed}"
        return flag, [flag]
    if isinstance(value, list):
        flag = "--" + dashed.removesuffix("s")
        return flag, [part for one in value for part in (flag, one)]
    return f"--{dashed}", [f"--{dashed}", str(value)]


def as_shown(name: str, value: Any) -> Any:
    if name not in ("api_keys", "jobs_db", "webhook_secret"):
        return list(value) if isinstance(value, tuple) else value
    keys = value if isinstance(value, list | tuple) else [value]
    hidden = [None if key is None else "…" + (key[-4:] if len(key) > 8 else "") for key in keys]
    return hidden if name == "api_keys" else hidden[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "given.toml"


def test_every_setting_has_a_flag_and_a_test() -> None:
    names = {f.name for f in fields(ServerSettings)}
    assert {f.name for f in fields(ServerFlags)} == names == {*VALUES, "api_key_file"}


def test_bounds_of_the_engine_are_its_own_by_default() -> None:
    usual = Limits()
    assert (ServerSettings().max_queue, ServerSettings().max_batch_size) == (usual.waiting, usual.running)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(in_file=SOME, in_environment=SOME, in_flags=SOME)
def test_flags_go_before_the_environment_before_the_file(
    file: Path, in_file: dict[str, Any], in_environment: dict[str, Any], in_flags: dict[str, Any]
) -> None:
    # Of these values JSON's form is TOML's too.
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in in_file.items()))
    flags = [as_flag(name, value) for name, value in in_flags.items()]
    variables = {f"GALAGO_{name.upper()}": as_text(value) for name, value in in_environment.items()}
    out = StringIO()
    with patch.dict(os.environ, variables), redirect_stdout(out), redirect_stderr(StringIO()):
        arguments = [part for _, parts in flags for part in parts]
        assert main(["config", "--json", "--config", str(file), *arguments]) == 0
    expected = {name: (value, "default") for name, value in asdict(ServerSettings()).items()}
    expected |= {name: (value, f"given.toml: {name}") for name, value in in_file.items()}
    expected |= {name: (value, f"GALAGO_{name.upper()}") for name, value in in_environment.items()}
    expected |= {name: (value, as_flag(name, value)[0]) for name, value in in_flags.items()}
    found = {name: (told["value"], told["from"]) for name, told in json.loads(out.getvalue()).items()}
    assert found == {name: (as_shown(name, value), origin) for name, (value, origin) in expected.items()}


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("Yes", True), ("on", True), ("0", False), ("NO", False), (" off ", False)]
)
def test_words_for_true_and_false(text: str, value: bool) -> None:
    assert read_settings(environment={"GALAGO_LOG_CONTENT": text}).settings.log_content is value


def test_other_forms_of_the_same(tmp_path: Path) -> None:
    file = tmp_path / "forms.toml"
    file.write_text('model = "scenes-int8"\nlog_level = "WARNING"\ntimeout = 30\n')
    found = read_settings(config=file, environment={"GALAGO_PORT": ""})
    assert (found.settings.model, found.settings.log_level) == (("scenes-int8",), "warning")
    assert (found.settings.timeout, found.settings.port, found.origins["port"]) == (30, 8080, "default")
    for host in ("::1", "[::1]", "fe80::1%eth0", "box.lan"):
        assert read_settings({"host": host}, environment={}).settings.host == host.strip("[]")


WRONG: list[tuple[str, Any, str]] = [
    ("model", [], "names or paths of models, one at least"),
    ("model", ["scenes", ""], "names or paths"),
    ("model", 5, "names or paths"),
    ("host", "", "a host name or an address"),
    ("host", "http://localhost", "a host name or an address"),
    ("host", "127.0.0.1:9000", "without a port"),
    ("host", "[::1]:9000", "without a port"),
    ("allow_image_hosts", ["camera:8080"], "without a scheme, a port"),
    ("port", 65536, "a whole number in 0..65535, not 65536"),
    ("port", -1, "0..65535"),
    ("port", 80.5, "0..65535"),
    ("port", True, "0..65535"),
    ("port", "8080", "0..65535"),
    ("profile", "fast", "standard or optimized, not 'fast'"),
    ("precision", "int3", "float32, bfloat16, float16, int8 or int4"),
    ("device", "abacus", "auto, cpu, cuda"),
    ("threads", 0, "a whole number >= 1"),
    ("max_memory_gb", 0, "a number above 0"),
    ("max_memory_gb", 10**400, "a number above 0"),
    ("max_batch_size", 0, "a whole number in 1..1024"),
    ("max_batch_size", 10**30, "a whole number in 1..1024"),
    ("max_queue", -1, "a whole number in 0..100000"),
    ("host", "a\0b", "a host name"),
    ("max_connections", 0, "a whole number in 1..100000"),
    ("timeout", 0, "a number above 0, at most 86400"),
    ("timeout", 86401, "86400"),
    ("timeout", float("nan"), "a number above 0"),
    ("max_memory_gb", float("inf"), "a number above 0"),
    ("body_limit_mb", -1, "a number above 0"),
    ("grace_s", 3601, "a whole number in 0..3600"),
    ("cors_origins", ["example.org"], "https://example.org"),
    ("cors_origins", ["https://example.org/path"], "https://example.org"),
    ("allow_image_hosts", ["http://camera"], "without a scheme"),
    ("remote_images", "yes", "true or false"),
    ("log_level", "loud", "debug, info, warning or error"),
    ("log_format", "xml", "text or json"),
]


def as_toml(value: Any) -> str:
    return str(value) if isinstance(value, float) else json.dumps(value)


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_what_is_wrong_is_told_of_its_source(tmp_path: Path, name: str, value: Any, allowed: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(f"{name} = {as_toml(value)}\n")
    with pytest.raises(InvalidRequest) as raised:
        read_settings({name: getattr(ServerSettings(), name)}, file, {})  # a right flag does not hide it
    assert str(raised.value).startswith(f"wrong.toml: {name} must be") and allowed in str(raised.value)
    assert raised.value.param == name
    with pytest.raises(InvalidRequest, match=f"^{name} must be"):
        ServerSettings(**{name: tuple(value) if isinstance(value, list) else value})


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PORT", "x"),
        ("PORT", "99999"),
        ("TIMEOUT", "soon"),
        ("TIMEOUT", "inf"),
        ("LOG_CONTENT", "perhaps"),
        ("CORS_ORIGINS", "https://a.org,,https://b.org"),
        ("MODEL", ","),
        ("GRACE_S", "1.5"),
    ],
)
def test_what_is_wrong_in_the_environment(variable: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^GALAGO_{variable} must be"):
        read_settings(environment={f"GALAGO_{variable}": text})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "port = ", "a.toml is not valid TOML"),
        ("a.toml", "api_key = ['secret']", "no setting 'api_key'; did you mean api_keys?"),
        ("a.toml", "[server]\nport = 1", "no setting 'server'"),
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", "[]", "a.json must hold a JSON object"),
        ("a.yaml", "port: 1", ".toml or .json"),
        ("a.toml", b"\xff", "not UTF-8"),
        ("a.toml", None, "No such file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str | bytes | None, said: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidRequest) as raised:
        read_settings(config=file, environment={})
    assert said in str(raised.value) and name in str(raised.value)


def test_variables_that_are_nearly_right_are_told() -> None:
    environment = dict.fromkeys(("GALAGO_PROT", "GALAGO_API_KEY", "GALAGO_KERNEL", "galago_port"), "1")
    environment |= dict.fromkeys(("GALAGO_CACHE", "GALAGO_KERNELS", "GALAGO_NO_KERNELS", "GALAGO_ZOO"), "1")
    warnings = read_settings(environment=environment).warnings
    assert [(w.split()[0], w.split()[-1]) for w in warnings] == [
        ("GALAGO_API_KEY", "GALAGO_API_KEYS?"),
        ("GALAGO_KERNEL", "GALAGO_KERNELS?"),
        ("GALAGO_PROT", "GALAGO_PORT?"),
    ]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys.txt"
    file.touch(0o600)
    file.write_text("# of the office\nfirst-key\n\nsecond,key  # of the door\nfirst-key\n")
    return file


def test_a_file_of_keys_adds_to_them(keys: Path) -> None:
    found = read_settings({"api_key_file": str(keys)}, environment={"GALAGO_API_KEYS": "zeroth-key, first-key"})
    assert found.settings.api_keys == ("zeroth-key", "first-key", "second,key")
    assert found.origins["api_keys"] == "GALAGO_API_KEYS, keys.txt"
    assert found.warnings == () and "first" not in repr(found)
    keys.chmod(0o644)
    [warning] = read_settings({"api_key_file": str(keys)}, environment={}).warnings
    assert "keys.txt" in warning and "chmod 600" in warning


def test_keys_in_a_file_that_everybody_can_read(tmp_path: Path) -> None:
    file = tmp_path / "open.toml"
    file.write_text('api_keys = ["first-key"]')
    file.chmod(0o644)
    [warning] = read_settings(config=file, environment={}).warnings
    assert "open.toml" in warning
    file.chmod(0o600)
    assert read_settings(config=file, environment={}).warnings == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no key"), ("# none\n", "holds no key"), ("good\nmy secret\n", "line 2"), (None, "No such file")],
)
def test_a_file_without_good_keys(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "keys.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidRequest) as raised:
        read_settings({"api_key_file": str(file)}, environment={})
    assert said in str(raised.value) and str(raised.value).startswith("--api-key-file")
    assert "my secret" not in str(raised.value)


def test_a_key_that_is_wrong_is_not_shown() -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_settings(environment={"GALAGO_API_KEYS": "my secret"})
    assert "GALAGO_API_KEYS" in str(raised.value) and "secret" not in str(raised.value)
