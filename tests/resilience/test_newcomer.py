"""From a clone to a page about an image of one's own, by the commands of README, in a browser.

With ``NEWCOMER=full`` it is the whole demo with an environment of its own, as somebody new has it;
else the environment that runs the tests is lent to the clone, and the demo is cut to one network a
collection. Both print the minutes of each step.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw
from snake import SMALL
from test_browser import BROWSER, ask

from cervix_utils import paths
from cervix_utils.data import datasets

FULL = os.environ.get("NEWCOMER") == "full"
pytestmark = [
    pytest.mark.resilience,
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine"),
    pytest.mark.skipif(not (paths.ROOT / ".git").exists(), reason="no checkout that can be cloned"),
]
SEEN = """const heads = [...document.querySelectorAll("main h2")];
const answer = heads.find(head => head.innerText === "Answer");
const requests = performance.getEntriesByType("resource").map(entry => entry.name);
return [document.querySelector("main").innerText, answer.getBoundingClientRect().top,
  innerHeight, requests.filter(name => !name.startsWith("data:"))];"""


def draw_cell(file: Path) -> Path:
    """A picture of one's own: a nucleus in a cell on a bluish slide."""
    picture = Image.new("RGB", (96, 88), (160, 150, 172))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((8, 8, 86, 78), fill=(120, 130, 158))
    pen.ellipse((32, 28, 62, 56), fill=(60, 50, 95))
    file.parent.mkdir(parents=True)
    picture.save(file)
    return file


@pytest.fixture(scope="module")
def visit(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """The clone with the page about one's own image, and the minutes of each step."""
    place = tmp_path_factory.mktemp("newcomer")
    clone, minutes = place / "cervix-notebooks", {}
    foreign = ("CERVIX_", "PYTHONPATH")
    alone = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    lent = [] if FULL else ["-o", ".venv/.done"]  # the environment is there: nothing is installed
    make = ["make", *lent]

    def step(name: str, *command: str) -> None:
        start = time.monotonic()
        folder = clone if clone.is_dir() else place
        own = alone if FULL else alone | {"PYTHONPATH": str(clone)}
        done = subprocess.run(
            command, cwd=folder, env=own, capture_output=True, text=True, timeout=3600
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        minutes[name] = (time.monotonic() - start) / 60

    step("git clone", "git", "clone", "-q", str(paths.ROOT), clone.name)
    readme = (clone / "README.md").read_text("utf-8")
    said = re.search(r"^ +make case RUN=(\S+)<id> IMAGES=\S+", readme, re.MULTILINE)
    assert re.search(r"^ +make reports  ", readme, re.MULTILINE) and said
    if FULL:
        step("the environment", "make", ".venv/.done")
    else:
        (clone / ".venv").symlink_to(sys.prefix)
    step("make reports", *make, "reports", *([] if FULL else [f"SET={' '.join(SMALL)}"]))
    (run,) = (folder.relative_to(clone) for folder in clone.glob(f"{said[1]}*"))
    picture = draw_cell(place / "my pictures" / "my cell.png")
    step("make case", *make, "case", f"RUN={run}", f"IMAGES={picture.parent}")
    return clone, minutes


def test_the_answer_for_an_image_of_ones_own_is_seen_at_once(visit, capsys):
    clone, minutes = visit
    start = time.monotonic()
    page = clone / "reports/case/07_own_images.html"
    text, top, height, requests = ask(page, SEEN, "--window-size=1280,900")
    minutes["the page in a browser"] = (time.monotonic() - start) / 60
    classes = "|".join(name.replace("_", " ") for name in datasets.get("herlev").classes)
    probabilities = ", ".join([rf"(?:{classes}) [01]\.\d\d"] * 5)
    answer = re.search(rf"my cell\.png: (?:{classes}) \({probabilities}\); (.*)", text)
    assert answer and re.match(r"severity \d\.\d\d \(\d\.\d\d to \d\.\d\d\); ", answer[1])
    assert "drawn pictures: nothing here means anything" in text
    assert 0 <= top < height  # no scrolling
    assert requests == []
    with capsys.disabled():
        told = ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
        print(f"\nminutes ({'whole demo' if FULL else 'cut demo'}): {told}")


def test_the_table_has_the_image(visit):
    table = pd.read_csv(visit[0] / "reports/case/own_images.csv")
    assert list(table["id"]) == ["my cell.png"]
    assert table.filter(like="p_").sum(axis=1).round(4).tolist() == [1]


def test_a_request_would_be_seen(tmp_path):
    """The check above is not blind."""
    page = tmp_path / "page.html"
    page.write_text('<body><main><h2>Answer</h2><img src="http://127.0.0.1:9/x"></main></body>')
    assert ask(page, SEEN)[3] == ["http://127.0.0.1:9/x"]
