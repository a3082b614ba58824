"""Ollama's own client for JavaScript against `galago serve` with the bundled model."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not (shutil.which("npm") and shutil.which("node")), reason="needs Node (apt install npm)"
)

PROGRAM = """
import { Ollama } from "ollama";
import { readFileSync } from "fs";
const [host, file] = process.argv.slice(2);
const ollama = new Ollama({ host });
const images = [readFileSync(file).toString("base64")];
const message = { role: "user", content: "What color is the circle?", images };
const whole = async (parts, of) => { let text = ""; for await (const part of parts) text += of(part); return text; };
const chat = (more) => ollama.chat({ model: "scenes", messages: [message], ...more });
const format = { type: "object", properties: { color: { enum: ["blue", "red"] } }, required: ["color"],
  additionalProperties: false };
console.log(JSON.stringify({
  whole: (await chat()).message.content,
  streamed: await whole(await chat({ stream: true }), (part) => part.message.content),
  generated: (await ollama.generate({ model: "scenes:latest", prompt: message.content, images })).response,
  fitting: JSON.parse((await chat({ format })).message.content),
  listed: (await ollama.list()).models.map((model) => model.name),
  shown: (await ollama.show({ model: "scenes" })).capabilities,
  pulled: await whole(await ollama.pull({ model: "scenes", stream: true }), (part) => part.status.slice(0, 1)),
  missing: await ollama.chat({ model: "nope", messages: [message] }).catch((error) => error.message),
  unloaded: (await ollama.generate({ model: "scenes", prompt: "", keep_alive: 0 })).done_reason,
  running: (await ollama.ps()).models,
}));
"""


def test_its_client(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(["npm", "install", "ollama@0.6.3"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"needs the registry of npm: the client cannot be installed: {done.stderr[-200:]}")
    (tmp_path / "program.js").write_text(PROGRAM)
    picture = Path(__file__).parents[2] / "examples" / "scene.png"
    command = [sys.executable, "-m", "galago.server", "scenes", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"listening on (\S+) with", line)))
            node = ["node", "program.js", address, str(picture)]
            done = subprocess.run(node, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        finally:
            server.terminate()
            server.stderr.read()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "whole": "blue",
        "streamed": "blue",
        "generated": "blue",
        "fitting": {"color": "blue"},
        "listed": ["scenes:latest"],
        "shown": ["completion", "vision"],
        "pulled": "ppvws",
        "missing": "model 'nope' not found",
        "unloaded": "unload",
        "running": [],
    }
