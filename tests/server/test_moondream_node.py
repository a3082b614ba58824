"""Moondream's own client for Node against `galago serve` with the bundled model."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1

pytestmark = pytest.mark.skipif(
    not (shutil.which("npm") and shutil.which("node")), reason="needs Node (apt install npm)"
)

CIRCLE = next(thing for thing in scene_at(7, 1396, V1).things if thing.name == "circle")
WITHOUT_SHARP = """
const Module = require("module"), load = Module._load;
Module._load = function (name, ...rest) {
  // It converts images from files; those given by URL do not pass through it.
  return name === "sharp" ? () => { throw new Error("sharp is not installed"); } : load.call(this, name, ...rest);
};
"""
PROGRAM = """
const { vl } = require("moondream");
const [endpoint, file] = process.argv.slice(2);
const image = { imageUrl: "data:image/png;base64," + require("fs").readFileSync(file).toString("base64") };
const whole = async (parts) => { let text = ""; for await (const part of parts) text += part; return text; };
(async () => {
  const client = new vl({ endpoint });
  const said = {
    caption: (await client.caption({ image, length: "short" })).caption,
    streamed: await whole((await client.caption({ image, length: "short", stream: true })).caption),
    answer: (await client.query({ image, question: "What color is the circle?" })).answer,
    answered: await whole((await client.query({ image, question: "What color is the circle?", stream: true })).answer),
    reasoned: await client.query({ image, question: "How many yellow shapes are there?", reasoning: true }),
    objects: (await client.detect({ image, object: "circle" })).objects,
    points: (await client.point({ image, object: "circle" })).points,
  };
  const refused = (error) => error.message;
  said.segment = await client.segment({ image, object: "circle" }).catch(refused);
  said.wrong = await client.caption({ image: { imageUrl: "data:image/png;base64,AAAA" } }).catch(refused);
  said.empty = await client.detect({ image, object: "" }).catch(refused);
  console.log(JSON.stringify(said));
})();
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What a program that uses every method was told."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    run: dict[str, Any] = {"cwd": folder, "capture_output": True, "text": True, "timeout": 120}
    # sharp's set-up fetches a library from elsewhere, which may be out of reach.
    done = subprocess.run(["npm", "install", "--ignore-scripts", "moondream@0.2.0"], **run)
    if done.returncode:
        pytest.skip(f"needs the registry of npm: the client cannot be installed: {done.stderr[-200:]}")
    (folder / "without-sharp.js").write_text(WITHOUT_SHARP)
    (folder / "program.js").write_text(PROGRAM)
    picture = Path(__file__).parents[2] / "examples" / "scene.png"
    command = [sys.executable, "-m", "galago.server", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"listening on (\S+)", line)))
            node = ["node", "-r", "./without-sharp.js", "program.js", f"{address}/v1", str(picture)]
            done = subprocess.run(node, **run)
        finally:
            server.terminate()
            server.stderr.read()
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)


def test_text(said: dict[str, Any]) -> None:
    assert said["answer"].strip() == said["answered"].strip() == CIRCLE.color
    assert CIRCLE.color in said["caption"] and said["caption"] == said["streamed"]
    assert said["reasoned"]["answer"].strip().isdecimal() and said["reasoned"]["reasoning"]["text"]


def test_places(said: dict[str, Any]) -> None:
    [box], [point] = said["objects"], said["points"]
    assert box["x_min"] < point["x"] < box["x_max"] and box["y_min"] < point["y"] < box["y_max"]


def test_refusals(said: dict[str, Any]) -> None:
    assert "501" in said["segment"] and "400" in said["wrong"] and "400" in said["empty"]
