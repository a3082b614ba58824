"""Whatever the OpenAPI document allows or forbids, the server answers as the document says."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app

HOOKS = Path(__file__).parents[1] / "support" / "schemathesis_hooks.py"
EXAMPLES = 20
"""of each operation; without --phases there are 4,000 requests more, in minutes"""
# Paths without /v1 are the same routes again; what is at an address is not for a schema to say.
LEFT_OUT = ".*_unprefixed|page_fetch"
# right_requests_are_accepted is that check, but for the requests of which schemathesis_hooks tells.
REPLACED = "positive_data_acceptance"
CONFIG = f"""
hooks = "{HOOKS}"
[checks.not_a_server_error]
# Segmentation is offered by no model, and a time limit may be as short as the client likes.
expected-statuses = ["2xx", "4xx", 501, 504]
"""


@pytest.mark.slow
def test_every_route_keeps_to_its_description(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(create_app(ModelPool(keep_alive=None, options={"device": "cpu"}))) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all"]
        command += ["--exclude-checks", REPLACED, "--phases", "fuzzing", "--max-examples", str(EXAMPLES)]
        # How quick a busy machine makes up bodies is not asked.
        command += ["--suppress-health-check", "too_slow"]
        command += ["--exclude-operation-id-regex", LEFT_OUT, "--seed", "1", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[:9000] + done.stdout[-2000:] + done.stderr[-2000:]
