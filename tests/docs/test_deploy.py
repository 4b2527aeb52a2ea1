"""The unit, the image and the manifest of the page on deploying agree with the code."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eventlane import Limits
from eventlane.cli import parser
from tests.docs.documents import ROOT, blocks_of

BLOCKS = {each.detail: each.text for each in blocks_of("docs/howto/deploy.md") if each.detail}
UNIT, IMAGE, MANIFEST = BLOCKS["shop.service"], BLOCKS["Dockerfile"], BLOCKS["shop.yaml"]
DRAINED_S = 2 * Limits().drain_s + 5
"""When a supervisor kills what has not drained."""


def one(pattern: str, text: str) -> str:
    [found] = re.findall(pattern, text, re.MULTILINE)
    assert isinstance(found, str)
    return found


def commands() -> dict[str, list[str]]:
    listed = one(r"args: \[(.*)\]", MANIFEST).split(", ")
    return {
        "unit": shlex.split(one(r"^ExecStart=(.*)$", UNIT)),
        "image": json.loads(one(r"^CMD (.*)$", IMAGE)),
        "manifest": [each.strip('"') for each in listed],
    }


@pytest.mark.parametrize("where", ["unit", "image", "manifest"])
def test_the_command_is_one_that_there_is(where: str) -> None:
    program, *arguments = commands()[where]
    assert Path(program).name == "eventlane"
    options = parser().parse_args(arguments)
    assert (options.place, options.workers) == ("shop:app", 4)
    assert options.health == ("127.0.0.1:8080" if where == "unit" else "0.0.0.0:8080")


def test_whoever_stops_it_waits_until_it_has_drained() -> None:
    assert int(one(r"^TimeoutStopSec=(\d+)$", UNIT)) > DRAINED_S
    assert int(one(r"terminationGracePeriodSeconds: (\d+)", MANIFEST)) > DRAINED_S
    page = (ROOT / "docs/howto/deploy.md").read_text("utf-8")
    assert int(one(r"docker stop --time (\d+)", page)) > DRAINED_S


def test_probes_ask_for_pages_that_there_are() -> None:
    assert set(re.findall(r"path: (/\w+)", MANIFEST)) == {"/live", "/ready"}
    assert "http://127.0.0.1:8080/ready" in IMAGE


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    # What it starts has to be there.
    unit = tmp_path / "shop.service"
    unit.write_text(UNIT.replace("/srv/shop/.venv/bin/eventlane", sys.executable))
    found = subprocess.run(
        [tool, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (found.returncode, found.stderr) == (0, "")
