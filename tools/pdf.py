"""A finished report -> one PDF of its overview, pages and model cards: ``make pdf CONFIG=demo``.

Chromium prints it: chromium, chromium-browser or google-chrome on the path, or CHROME=/path.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bs4 import BeautifulSoup

from cervix_utils import paths

BROWSERS = "chromium", "chromium-browser", "google-chrome"
SHEET = "@page {size: A4; margin: 14mm; @bottom-center {content: counter(page); font-size: 8pt}}"
SHEET += "@media print {main + main {break-before: page} h2 {break-before: auto !important}}"
FLAGS = "--headless", "--disable-gpu", "--no-pdf-header-footer", "--generate-pdf-document-outline"


def joined(folder: Path) -> str:
    """The report's pages as one, the overview first: ids are made unique, links between pages lead
    to their place in it, and those to other files are taken off."""
    files = sorted([*folder.glob("[0-9][0-9]_*.html"), *folder.glob("model_card_*.html")])
    stems = {file.name: file.stem for file in [folder / "index.html", *files]}
    soups = [BeautifulSoup((folder / name).read_text("utf-8"), "html.parser") for name in stems]
    for name, soup in zip(stems, soups):
        for part in soup.main.select("[id]"):
            part["id"] = f"{stems[name]}-{part['id']}"
        for link in soup.main.select("a[href]"):
            page, _, place = link["href"].partition("#")
            if (page or name) in stems:
                link["href"] = "#" + "-".join(filter(None, [stems[page or name], place]))
            elif "://" not in page:
                del link["href"]
        soup.main["id"] = stems[name]
    soups[0].main.insert_after(*(soup.main for soup in soups[1:]))
    soups[0].head.append(soups[0].new_tag("style", string=SHEET))
    return str(soups[0])


def main(name: str) -> None:
    """Write reports/<name>/<name>.pdf and print its path; SystemExit with what is missing."""
    folder = paths.reports_dir(name)
    known = [os.environ["CHROME"]] if os.environ.get("CHROME") else BROWSERS
    chrome = next(filter(None, map(shutil.which, known)), None)
    if not (folder / "index.html").is_file():
        sys.exit(f"{folder}/index.html is missing: make reports CONFIG={name} first")
    if not chrome:
        sys.exit(f"there is no {' or '.join(known)} here: install it, or give CHROME=/path/to/it")
    made = folder / f"{name}.pdf"
    with paths.whole(made) as draft, TemporaryDirectory(dir=folder) as place:
        page = Path(place, "report.html")
        page.write_text(joined(folder), "utf-8")
        flags = [*FLAGS, f"--user-data-dir={place}", f"--print-to-pdf={draft}"]
        flags += ["--no-sandbox"] if os.getuid() == 0 else []
        done = subprocess.run([chrome, *flags, page.as_uri()], capture_output=True, text=True)
        if not draft.is_file():
            sys.exit(f"{chrome} made no PDF: {done.stderr.strip()[-300:]}")
    print(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
