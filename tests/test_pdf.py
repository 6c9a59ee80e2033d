"""One PDF of a report: every page once and in order, links that lead to their place, and one clear
line where it cannot be made."""

import re
import shutil
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from test_publish import PUBLISHED, published

from cervix_utils import paths
from tools import pdf

PAGE = "<html><head><title>{0}</title></head><body><main id='main'><h2 id='a'>{0}</h2>{1}</main>"
LINKS = """<a href="#a">here</a> <a href="01_x.html#a">there</a> <a href="index.html">top</a>
<a href="run.json">file</a> <a href="https://doi.org/10.1">paper</a>"""


@pytest.fixture
def report(tmp_path, monkeypatch) -> Path:
    """A report of an overview, two pages and a model card, with a name that needs care."""
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    folder = tmp_path / "my report"
    folder.mkdir()
    for name in ("model_card_x", "02_y", "index", "01_x"):
        (folder / f"{name}.html").write_text(PAGE.format(name, LINKS) + "<footer>end</footer>")
    (folder / "notes.html").write_text("no page of the report")
    return folder


def test_pages_stand_in_order_and_links_lead_to_their_place(report):
    soup = BeautifulSoup(pdf.joined(report), "html.parser")
    order = ["index", "01_x", "02_y", "model_card_x"]
    assert [part["id"] for part in soup.select("main")] == order
    links = [link.get("href") for link in soup.select_one("main#\\30 2_y").select("a")]
    assert links == ["#02_y-a", "#01_x-a", "#index", None, "https://doi.org/10.1"]
    assert soup.select("main ~ footer") and soup.title.get_text() == "index"


@published
def test_every_link_within_the_published_pages_has_its_place():
    soup = BeautifulSoup(pdf.joined(PUBLISHED), "html.parser")
    ids = [part["id"] for part in soup.select("[id]")]
    assert len(soup.select("main")) == len(list(PUBLISHED.glob("*.html"))) and len(ids) > 100
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in soup.select("main a[href]")]
    inside = {link[1:] for link in links if link.startswith("#")}
    assert {page.stem for page in PUBLISHED.glob("0*.html")} <= inside <= set(ids)
    assert all(link.startswith(("#", "https://")) for link in links)


def said(name: str) -> str:
    with pytest.raises(SystemExit) as error:
        pdf.main(name)
    return str(error.value)


def test_what_is_missing_is_one_clear_line(report, tmp_path, monkeypatch):
    assert "index.html is missing: make reports CONFIG=other first" in said("other")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert said(report.name).startswith("there is no chromium or chromium-browser or google-chrome")
    monkeypatch.setenv("CHROME", str(tmp_path / "browser"))
    assert f"there is no {tmp_path}/browser here" in said(report.name)


def test_a_browser_that_fails_leaves_no_pdf(report, tmp_path, monkeypatch):
    (tmp_path / "browser").write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    (tmp_path / "browser").chmod(0o755)
    monkeypatch.setenv("CHROME", str(tmp_path / "browser"))
    before = sorted(report.iterdir())
    assert "made no PDF: no display" in said(report.name)
    assert sorted(report.iterdir()) == before


@pytest.mark.browser
@pytest.mark.skipif(not any(map(shutil.which, pdf.BROWSERS)), reason="no Chromium on this machine")
def test_chromium_prints_each_page_on_sheets_of_its_own(report, capsys):
    pdf.main(report.name)
    made = Path(capsys.readouterr().out.strip())
    content = made.read_bytes()
    assert made == paths.reports_dir(report.name) / "my report.pdf" and content[:5] == b"%PDF-"
    assert len(re.findall(rb"/Type /Page\b", content)) == 4
    assert content.count(b"/URI (https://doi.org/10.1)") == 4 and b"file://" not in content
