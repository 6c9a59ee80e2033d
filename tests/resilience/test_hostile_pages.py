"""Pages and tables made of hostile file names: in a browser no script runs and nothing is asked of
any host; a spreadsheet finds no formula."""

import csv
import functools
import http.server
import os
import shutil
import subprocess
import threading

import nbformat
import numpy as np
import pytest
import trees
from nbformat.v4 import new_code_cell

from cervix_utils import paths
from cervix_utils.data import datasets, splits
from cervix_utils.report import pages
from workflow import jobs

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
MARK = "document.title='HACKED'"
SCRIPTS = [  # no slash can be in a file name
    f'<img src=x onerror="{MARK}">',
    f"<script>{MARK}<",
    f"<svg onload={MARK}>",
    f'"><img src=y onerror={MARK}>',
    f"'><iframe srcdoc='<script>{MARK}<'>",
    f"[x](javascript:{MARK})",
    "![x](remote.png)",
    f"<details open ontoggle={MARK}>",
    "<style>@import 'z.css'; * {background: url(w.png)}",
    f"{{{{ {MARK} }}}}",
    f"$$\\href{{javascript:{MARK}}}{{x}}$$",
    "<base href=elsewhere>",
    "<meta http-equiv=refresh content=0;url=away>",
    f"<a href=# onfocus={MARK} autofocus>",
]
SHOW = [
    "display(table); print(table.to_string())",
    "display(left_out.style); display(left_out); print(left_out.to_string())",
    "display(Markdown('\\n'.join(map(str, left_out['file']))))",
    "plt.plot([1]); plt.title(left_out['file'].iloc[0].replace('$', '')); plt.show()",
    "raise ValueError(' '.join(left_out['file']))",
]


@pytest.fixture
def hostile(tmp_path):
    """A data root whose files have names of scripts and formulas, used and not used."""
    rng = np.random.default_rng(21)
    trees.write_good(tmp_path / "data/herlev", rng, "herlev", 14)
    trees.write_good(tmp_path / "data/mobileodt", rng, "colposcopy", 14)
    names = [*SCRIPTS, *(os.fsdecode(name) for name in trees.NAMES if b"\xff" not in name)]
    for stem in names:
        used = tmp_path / "data/herlev/normal_columnar" / f"{stem}-1-2.png"
        trees._picture(rng).save(used)
        (used.parent / f"{stem}.txt").write_text("not used")
    return tmp_path / "data"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and notes what it is asked for."""

    def __init__(self, folder):
        self.asked = []
        handler = functools.partial(Handler, directory=str(folder))
        super().__init__(("127.0.0.1", 0), handler)


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_arguments):
        pass


def opened(page) -> tuple[str, list[str]]:
    """The document of a page after its scripts have run, and what the server was asked for."""
    with Server(page.parent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/{page.name}"
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += ["--virtual-time-budget=5000", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        server.shutdown()
        return done.stdout, [path for path in server.asked if "favicon" not in path]


@pytest.mark.resilience
@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_no_script_of_a_file_name_runs_and_nothing_is_asked_for(hostile, tmp_path):
    book = nbformat.read(paths.NOTEBOOKS / "01_data_exploration.ipynb", as_version=4)
    place = next(k for k, cell in enumerate(book.cells) if "left_out" in cell.source) + 1
    book.cells[place:place] = [new_code_cell(source) for source in SHOW[:-1]]
    book.cells.append(new_code_cell(SHOW[-1]))
    nbformat.write(book, tmp_path / "01.ipynb")
    with pytest.raises(SystemExit, match="FAILED"):
        jobs.execute(tmp_path / "01.ipynb", tmp_path / "out/01.ipynb", {"data_root": str(hostile)})
    page = pages.to_html(tmp_path / "out/.01.partial.ipynb", tmp_path / "out/01.html")
    assert "document.title" in page.read_text()  # as text
    document, asked = opened(page)
    assert "HACKED</title>" not in document and asked == ["/01.html"]
    print(f"{len(SCRIPTS)} scripts in names: none ran, requests: {asked}")


def test_the_browser_would_notice(tmp_path):
    if not BROWSER:
        pytest.skip("needs Chromium")
    (tmp_path / "bad.html").write_text(f"<title>x</title>{SCRIPTS[0]}")
    document, asked = opened(tmp_path / "bad.html")
    assert "HACKED" in document.split("</title>")[0] and "/x" in asked


def test_a_spreadsheet_finds_no_formula(hostile, tmp_path):
    table, left = datasets.load(str(hostile), "herlev")
    assert len(table) > 7 * 14 + 30 and len(left) >= 40
    grouped = splits.with_groups(table, 8)
    split = splits.assign_parts(grouped, "herlev", "paper", 0)
    split[["id", "group", "part", "label"]].to_csv(tmp_path / "x.csv", index=False)
    with (tmp_path / "x.csv").open(newline="") as opened_file:
        cells = [cell for row in csv.reader(opened_file) for cell in row]
    assert len(cells) > 400 and not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
