"""Recipes do what they say: their snippets run, as they stand, against a real server with the bundled model."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import NO_CLIENT

from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1

ADDRESS = "http://127.0.0.1:8080"
TEXT = (Path(__file__).parents[2] / "packaging" / "recipes.md").read_text()
# The picture is scene 1396 of seed 7, so the truth about it is known.
COLOR = next(thing.color for thing in scene_at(7, 1396, V1).things if thing.name == "circle")


@dataclass(frozen=True)
class Snippet:
    section: str
    language: str
    text: str


def snippets(section: str | None = None, language: str | None = None) -> list[Snippet]:
    found = []
    for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0]
        found += [Snippet(title, kind, text) for kind, text in re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)]
    return [s for s in found if section in (None, s.section) and language in (None, s.language)]


def run(command: list[str], root: Path, **environment: str) -> str:
    # A proxy of this machine is not to be asked for its own address.
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, env=env)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("snippet", snippets(language="python"), ids=lambda snippet: snippet.section)
def test_python(snippet: Snippet, url: str, root: Path) -> None:
    for node in ast.walk(ast.parse(snippet.text)):
        for name in [node.module] if isinstance(node, ast.ImportFrom) else getattr(node, "names", []):
            if (name if isinstance(name, str) else name.name) == "moondream":
                pytest.importorskip("moondream", reason=NO_CLIENT)
    assert ADDRESS in snippet.text
    said = run([sys.executable, "-c", snippet.text.replace(ADDRESS, url)], root)
    assert said.count(COLOR) == 2, said  # at once, and streamed


def test_there_is_a_snippet_for_each_client() -> None:
    with_python = {snippet.section for snippet in snippets(language="python")}
    assert with_python == {"The openai client", "The moondream client", "LangChain"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (apt install curl)")
def test_curl(url: str, root: Path) -> None:
    (snippet,) = snippets("curl", "sh")
    said = run(["bash", "-euc", snippet.text.replace(ADDRESS, url)], root)
    assert COLOR in said.partition("data: ")[0] and said.rstrip().endswith("data: [DONE]")


def test_llm(url: str, root: Path, tmp_path: Path) -> None:
    (settings,), (command,) = snippets("llm", "yaml"), snippets("llm", "sh")
    assert ADDRESS in settings.text
    (tmp_path / "extra-openai-models.yaml").write_text(settings.text.replace(ADDRESS, url))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert COLOR in run(["bash", "-euc", command.text], root, LLM_USER_PATH=str(tmp_path), PATH=path)


def test_links_and_flags_are_of_things_that_exist(root: Path, serve_help: str) -> None:
    links = [link for link in re.findall(r"\]\((.*?)\)", TEXT) if "://" not in link]
    assert links and all((root / "packaging" / link).exists() for link in links)
    assert "packaging/recipes.md" in (root / "README.md").read_text()
    commands = [s for snippet in snippets(language="sh") for s in snippet.text.splitlines() if s.startswith("galago ")]
    flags = {word for text in [*commands, *re.findall(r"`(--[^`]*)`", TEXT)] for word in re.findall(r"--[a-z-]+", text)}
    assert "--host" in flags and all(flag in serve_help for flag in flags - {"--no-deps"}), flags


# --- what clients send that are not installed here -------------------------------------------


def test_home_assistant(url: str, picture: dict[str, Any]) -> None:
    """The requests of LLM Vision: its setting up, and its questions."""

    def images(*messages: dict[str, Any], **settings: Any) -> int:
        body = {"model": "scenes", "messages": list(messages), **settings}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer x"}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert isinstance(answer.json()["choices"][0]["message"]["content"], str)
        return answer.json()["usage"]["prompt_tokens_details"]["image_tokens"]

    assert images({"role": "user", "content": [{"type": "text", "text": "Hi"}]}) == 0
    asked = [
        {"type": "text", "text": "Image 1:"},
        {"type": "image_url", "image_url": picture},
        {"type": "text", "text": "What color is the circle?"},
    ]
    system = {"role": "system", "content": "You analyze images."}
    sampling = {"max_completion_tokens": 30, "temperature": 0.5, "top_p": 0.9}
    assert images(system, {"role": "user", "content": asked}, **sampling) > 0


def test_open_webui(url: str, picture: dict[str, Any]) -> None:
    key = {"Authorization": "Bearer none"}
    listed = httpx.get(f"{url}/v1/models", headers=key).json()["data"]
    content = [{"type": "text", "text": "What color is the circle?"}, {"type": "image_url", "image_url": picture}]
    body = {"stream": True, "model": listed[0]["id"], "messages": [{"role": "user", "content": content}]}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=key, timeout=60) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert reply.status_code == 200 and lines[-1] == "data: [DONE]" and len(lines) > 2
