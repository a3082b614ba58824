"""The image and its compose file, as far as can be told without a container engine."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from galago.server.settings import ServerSettings

Stages = dict[str, list[tuple[str, str]]]
IMAGES = ("cpu", "cuda")


def last(stage: list[tuple[str, str]], instruction: str) -> str:
    return [value for name, value in stage if name == instruction][-1]


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "packaging" / "compose.yaml").read_text())


def test_the_linter_has_nothing_to_say(root: Path) -> None:
    linter = Path(sys.executable).parent / "hadolint"
    ran = subprocess.run([linter, "--no-color", root / "packaging" / "Dockerfile"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_the_builder(root: Path, stages: Stages) -> None:
    copied = [shlex.split(v) for stage in stages.values() for name, v in stage if name == "COPY"]
    sources = {source for words in copied if not words[0].startswith("--from=") for source in words[:-1]}
    assert all((root / source).exists() for source in sources)
    first, *rules = [r for r in (root / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert first == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == sources


def test_stages_that_are_named_exist(stages: Stages) -> None:
    for stage in stages.values():
        for name, value in stage:
            named = [w for w in shlex.split(value.replace(",", " ")) if w.startswith(("--from=", "from="))]
            assert name not in ("COPY", "RUN") or {w.partition("from=")[2] for w in named} <= set(stages)
    assert list(stages)[-1] == "cpu", "the last stage is what is built by default"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_no_rights_and_keeps_models_in_its_volume(stages: Stages, image: str) -> None:
    user, _, group = last(stages[image], "USER").partition(":")
    assert int(user) > 0 and int(group) > 0
    words = [word for name, value in stages[image] if name == "ENV" for word in shlex.split(value)]
    settings = dict(word.split("=", 1) for word in words)
    volume = Path(last(stages[image], "VOLUME"))
    assert all(Path(settings[name]).is_relative_to(volume) for name in ("GALAGO_CACHE", "HF_HOME"))


def test_only_the_cpu_image_takes_pytorch_of_the_cpu(stages: Stages) -> None:
    builds = {image: last(stages[f"libraries-{image}"], "RUN") for image in IMAGES}
    assert {image: "whl/cpu torch" in build for image, build in builds.items()} == {"cpu": True, "cuda": False}
    for image in IMAGES:
        assert f"--from=libraries-{image} " in last(stages[image], "COPY")
        assert "-r requirements.txt" in builds[image] and "-c constraints.txt" in builds[image]


@pytest.mark.parametrize("file", ["compose.yaml", "meme-search.yaml"])
def test_the_compose_file_follows_the_published_schema(root: Path, tmp_path: Path, file: str) -> None:
    # Tags that say how two files are merged are not part of it.
    (tmp_path / file).write_text(
        re.sub(r" !override$", "", (root / "packaging" / file).read_text(), flags=re.MULTILINE)
    )
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    ran = subprocess.run([*checker, tmp_path / file], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_images_can_keep_jobs(root: Path, stages: Stages) -> None:
    """Their requirements are made by a line of Python, which runs here."""
    command = last(stages["environment"], "RUN").partition("&&")[2].partition(">")[0]
    program = shlex.split(command.replace("\\\n", ""))
    made = subprocess.run([sys.executable, *program[1:]], cwd=root, capture_output=True, text=True, check=True)
    names = {re.split(r"[>\[]", line)[0] for line in made.stdout.split()}
    assert {"torch", "fastapi", "sqlalchemy", "alembic", "standardwebhooks", "psycopg"} <= names


def test_the_generator_of_meme_search_is_a_command_that_runs(root: Path, tmp_path: Path) -> None:
    composed = (root / "packaging" / "meme-search.yaml").read_text().replace(" !override", "")
    service = yaml.safe_load(composed)["services"]["image_to_text_generator"]
    paths = {
        "/app/db/job_queue.db": str(tmp_path / "job_queue.db"),
        "8000": "8080",
        "${GALAGO_MODEL:-moondream2-int8}": "scenes",
    }
    args = [paths.get(arg, arg) for arg in service["command"]]
    host, told = _serve(
        [*args, "--image-root", str(tmp_path)],
        [word.replace(":8000/", ":8080/") for word in service["healthcheck"]["test"][1:]],
    )
    assert (host, told) == ("0.0.0.0", [0, 1]) and (tmp_path / "job_queue.db").exists()


def test_services_are_of_images_that_exist_and_keep_to_this_machine(
    root: Path, compose: dict[str, Any], stages: Stages
) -> None:
    services = compose["services"]
    assert {service["build"]["target"] for service in services.values()} == set(IMAGES)
    for name, service in services.items():
        folder = root / "packaging" / service["build"]["context"]
        assert (folder / service["build"]["dockerfile"]).samefile(root / "packaging" / "Dockerfile")
        ports = {int(value) for instruction, value in stages["runtime"] if instruction == "EXPOSE"}
        assert all(port.startswith("127.0.0.1:") and int(port.rsplit(":")[-1]) in ports for port in service["ports"])
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert set(mounted) <= set(compose["volumes"]) and last(stages["runtime"], "VOLUME") in mounted.values()
        assert service["environment"]["GALAGO_API_KEYS"] is None, "a key comes from outside, or there is none"
        assert service["mem_limit"] == service["memswap_limit"]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert ("deploy" in service) == ("cuda" in service.get("profiles", [])) == (name == "galago-cuda")


def test_nobody_is_killed_before_the_end_of_a_stop(root: Path, compose: dict[str, Any]) -> None:
    unit = (root / "packaging" / "galago.service").read_text()
    given = [service["stop_grace_period"] for service in compose["services"].values()]
    given += re.findall(r"^TimeoutStopSec=(.*)$", unit, re.MULTILINE)
    # Docker's own is 10 s.
    assert len(given) == 3 and all(ServerSettings().grace_s < int(seconds.rstrip("s")) <= 10 for seconds in given)


@pytest.mark.slow
def test_every_way_of_serving_is_a_command_that_runs(root: Path, stages: Stages, compose: dict[str, Any]) -> None:
    """And the health check tells a server that answers from one that is gone."""
    image = stages["cpu"]
    check = json.loads(last(image, "HEALTHCHECK").rpartition("CMD ")[2])
    unit = (root / "packaging" / "galago.service").read_text()
    started = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    entry = json.loads(last(image, "ENTRYPOINT"))
    (composed,) = {tuple(service["command"]) for service in compose["services"].values()}
    commands = [entry + json.loads(last(image, "CMD")), [*entry, *composed], shlex.split(started.partition("=")[2])]
    hosts = []
    for program, *args in commands:
        assert Path(program).name == "galago"
        chosen = [re.sub(r"\$\{GALAGO_MODEL.*\}", "scenes", arg) for arg in args]
        host, told = _serve(chosen, check)
        hosts.append(host)
        assert told == [0, 1], args
    assert hosts == ["0.0.0.0", "0.0.0.0", "127.0.0.1"]


def _serve(args: list[str], check: list[str]) -> tuple[str, list[int]]:
    """The host of a server with these arguments, and what a health check says while it runs and afterwards."""
    at = args.index("--port") + 1
    assert args[at] == "8080"
    command = [sys.executable, "-m", "galago.cli.app", *args[:at], "0", *args[at + 1 :]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((said for said in process.stderr if said.startswith("listening on http://")), "")
        host, _, port = line.split()[2].removeprefix("http://").rpartition(":")
        assert check[0] == "python" and ":8080/" in check[-1]
        asked = [sys.executable, *check[1:-1], check[-1].replace(":8080/", f":{port}/")]
        told = [subprocess.run(asked, stderr=subprocess.DEVNULL).returncode]
        process.terminate()
        process.wait()
        told.append(subprocess.run(asked, stderr=subprocess.DEVNULL).returncode)
    return host, told
