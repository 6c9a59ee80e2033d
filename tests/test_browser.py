"""Pages in a real browser: accessible in light and dark, whole on a phone, tables that sort.

Needs Chromium; the checks of WCAG also axe-core (``npm pack axe-core``), whose axe.min.js the
environment variable AXE names.
"""

import io
import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_publish import LINE, PUBLISHED

from cervix_utils.report import pages, plots
from tools import publish

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
AXE = Path(os.environ.get("AXE", ""))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine"),
]
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']}"
VIOLATIONS = f"""document.querySelectorAll("details").forEach(part => {{ part.open = true; }});
const found = (await axe.run(document, {RULES})).violations, told = rule => rule.nodes[0];
return found.map(rule => [rule.id, rule.nodes.length, told(rule).html]);"""


def dump(file: Path, *options: str) -> str:
    """The page as the browser has it after its scripts."""
    command = [BROWSER, "--headless", "--no-sandbox", "--virtual-time-budget=30000", "--dump-dom"]
    address = f"file://{file}"
    done = subprocess.run(
        [*command, *options, address], capture_output=True, text=True, timeout=180
    )
    return done.stdout


def ask(page: Path, script: str, *options: str, library: str = ""):
    """What a script answers on a page; its policy, which allows no other script, is taken off."""
    text = re.sub("<meta[^>]*Content-Security-Policy[^>]*>", "", page.read_text("utf-8"))
    body = f"""<script>{library.replace("</script>", "")}</script><script>
addEventListener("load", async () => {{ const answer = await (async () => {{ {script} }})();
const place = document.createElement("pre"); place.id = "answer";
place.textContent = JSON.stringify(answer); document.body.append(place); }});</script></body>"""
    copy = page.with_name(f"asked-{page.name}")
    copy.write_text(text.replace("</body>", body), "utf-8")
    (answer,) = re.findall('<pre id="answer">(.*?)</pre>', dump(copy, *options), re.DOTALL)
    return json.loads(unescape(answer))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A page with what pages hold: code, a figure, a wide and a long table, messages, an answer."""
    folder = tmp_path_factory.mktemp("pages")
    wide = pd.DataFrame(
        {f"a_long_name_{k}": ["0.697 (0.658 to 0.735) forest"] * 2 for k in range(9)}
    )
    long = pd.DataFrame({"epoch": range(1, 21), "train_loss": [10 - k / 3 for k in range(20)]})
    tables = wide, long, pages.provenance({"seed": 0})  # the last one has a head without rows
    data = [{"text/html": table.to_html()} for table in tables] + [{"image/svg+xml": LINE}]
    outputs = [new_output("display_data", data=each) for each in data]
    outputs.append(new_output("stream", name="stdout", text="a sentence that was printed " * 20))
    outputs.append(new_output("stream", name="stderr", text="a warning"))
    cells = [
        new_markdown_cell(
            "# Title\n\n**Question.** What?\n\n## Part\n\n`code` and a [link](#part-1)"
        )
    ]
    cells += [new_code_cell("import os  # why\nx = 'text' + str(1)", outputs=outputs)]
    cells += [new_markdown_cell("## Answer\n\nIt is so."), new_code_cell("1")]
    nbformat.write(new_notebook(cells=cells), folder / "03_x.ipynb")
    return pages.to_html(folder / "03_x.ipynb", folder / "03_x.html", ["02_x", "03_x", "04_x"])


@pytest.fixture(params=["page", "overview"])
def shown(request, made, tmp_path) -> Path:
    """A page of a notebook, and the published overview."""
    if request.param == "page":
        return made
    if not PUBLISHED.is_dir():
        pytest.skip("nothing was published yet")
    return Path(shutil.copy(PUBLISHED / "index.html", tmp_path / "index.html"))


@pytest.mark.skipif(not AXE.is_file(), reason="AXE names no axe.min.js")
@pytest.mark.parametrize("options", [(), ("--blink-settings=preferredColorScheme=0",)])
def test_pages_meet_wcag_aa(shown, options):
    assert ask(shown, VIOLATIONS, *options, library=AXE.read_text("utf-8")) == []


@pytest.mark.skipif(not AXE.is_file(), reason="AXE names no axe.min.js")
def test_the_check_is_not_blind(made, tmp_path):
    pale = made.read_text("utf-8").replace("--soft: #51606e", "--soft: #c1d0de")
    (tmp_path / "pale.html").write_text(pale, "utf-8")
    found = ask(tmp_path / "pale.html", VIOLATIONS, library=AXE.read_text("utf-8"))
    assert [rule[0] for rule in found] == ["color-contrast"]


@pytest.mark.parametrize("width", [500, 820, 1440])  # Chromium makes no window under 500
def test_nothing_runs_out_of_the_page(shown, width):
    script = """document.querySelectorAll("details").forEach(part => { part.open = true; });
    return [document.documentElement.scrollWidth, innerWidth];"""
    needed, there = ask(shown, script, f"--window-size={width},900")
    assert needed <= there


def test_the_script_of_a_page_runs_under_its_policy(made):
    assert 'class="number"' in dump(made) and 'class="number"' not in made.read_text("utf-8")


def test_a_long_table_is_sorted_and_filtered(made):
    script = """const table = document.querySelector("details.long table");
    const head = table.tHead.rows[0].cells;
    const first = () => table.tBodies[0].rows[0].cells[1].textContent;
    const seen = [first()];
    for (let n = 0; n < 2; n++) { head[1].click(); seen.push(first()); }
    const filter = document.querySelector("details.long input"); filter.value = "3.66";
    filter.dispatchEvent(new Event("input"));
    seen.push([...table.tBodies[0].rows].filter(row => !row.hidden).length, head[1].ariaSort);
    return seen;"""
    assert ask(made, script) == ["10.000000", "3.666667", "10.000000", 1, "descending"]


HOSTILE = "<img src=x onerror=alert(1)> & Zellkern ü"


def test_values_show_on_hover_as_text_alone(tmp_path):
    fig, ax = plt.subplots()
    table = pd.DataFrame({"value": [0.25, 0.75], "low": [0.2, 0.7], "high": [0.3, 0.8]})
    plots.with_intervals(ax, table.assign(name=[HOSTILE, "b"]), "name")
    text = io.StringIO()
    fig.savefig(text, format="svg")
    plt.close(fig)
    output = new_output("display_data", data={"image/svg+xml": text.getvalue()})
    book = new_notebook(cells=[new_markdown_cell("# T"), new_code_cell("1", outputs=[output])])
    nbformat.write(book, tmp_path / "01_x.ipynb")
    page = pages.to_html(tmp_path / "01_x.ipynb", tmp_path / "01_x.html")
    slim = tmp_path / "slim.html"
    slim.write_text(publish.slim_page(page.read_text("utf-8")), "utf-8")
    script = """const img = document.querySelector("figure img"), box = img.getBoundingClientRect();
    const tip = document.querySelector(".tip"), seen = new Set();
    for (let x = box.left; x < box.right; x += 4) for (let y = box.top; y < box.bottom; y += 4) {
      img.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
      if (!tip.hidden) seen.add(tip.textContent); }
    img.dispatchEvent(new PointerEvent("pointerleave"));
    return [...seen, tip.hidden, tip.children.length, img.naturalWidth > 0];"""
    told = [f"{HOSTILE}: 0.250 (0.200 to 0.300)", "b: 0.750 (0.700 to 0.800)"]
    for made in (page, slim):
        assert ask(made, script) == [*told, True, 0, True]


def test_a_figure_fills_the_window_and_escape_gives_the_page_back(made):
    script = """const zoom = document.querySelector(".zoom");
    const figure = document.querySelector("figure");
    zoom.click(); const seen = [getComputedStyle(figure).position];
    dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
    return [...seen, getComputedStyle(figure).position];"""
    assert ask(made, script) == ["fixed", "static"]
