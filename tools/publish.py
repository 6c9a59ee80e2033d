"""A finished report -> reports/published, which git carries; and its table -> README.md.

``python -m tools.publish NAME``. Without a name what follows from the published numbers alone is
made again: README's table, its figure and the index of the published pages. ``python -m
tools.publish FOLDER PIPELINE`` adds the networks of a folder of runs under another name,
``python -m tools.publish reports/NAME`` notebook 8 of a report.
"""

import base64
import html
import json
import lzma
import re
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd

from cervix_utils import paths
from cervix_utils.data import datasets
from cervix_utils.evaluation import metrics
from cervix_utils.report import pages
from cervix_utils.report.words import label
from cervix_utils.training import runs

FILES, BYTES = 40, 6_000_000  # what reports/published may hold at most
PAGES = r"0[2-6]_(?!.*-[1-9]).*"  # of notebooks that can be without pictures; the first fold
ELSEWHERE = "08_elsewhere.html"
RECORDS = "results.csv", "differences.csv", "run.json"
MADE = r"(0[2-6]_.*|index)\.html|({})\.csv\..*"
MADE = MADE.format("|".join(["attribution", *datasets.DATASETS]))
# pipelines and metrics of README's table; the index has all
LEADING = ("combined", "combined_whole", "modern", "sgd")
SHORT = ("accuracy", "binary_accuracy", "mse", "auc_mean", "log_loss")
XZ = {"method": "xz", "preset": 9 | lzma.PRESET_EXTREME}
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
ADDRESS = r"data:image/svg\+xml[^,]*;base64,([\w+/=]+)"
ID, LINK = r' id="([\w.-]+)"', r'(?<=href="#)[\w.-]+|(?<=url\(#)[\w.-]+'
IN_ADDRESS = str.maketrans({"%": "%25", "#": "%23", '"': "'", "&": "&amp;"})
PLAIN = r'<span class="(?:n|p|o|w|nn|bp|fm|vm|nc|ne|kt)">(.*?)</span>'  # code that has no colour


class PublishError(ValueError):
    """A report is not fit to be published; the message says what is missing or too much."""


# The gate


def holds_bitmap(text: str) -> bool:
    """Whether SVG or HTML holds a bitmap, also within SVG in ``data:`` addresses, at any depth."""
    text = unquote(html.unescape(text))
    bitmap = r"<(\w+:)?image[\s/]|data:image/(?!svg\+xml)"
    if re.search(bitmap, text, re.IGNORECASE):
        return True
    codes = re.findall(ADDRESS, text)
    return any(holds_bitmap(base64.b64decode(code).decode(errors="replace")) for code in codes)


def check_page(page: Path) -> None:
    """Raise PublishError where a page or the notebook beside it was made with, or has, pictures."""
    book = pages.read(page.with_suffix(".ipynb"))
    parameters = book.metadata.get("papermill", {}).get("parameters", {})
    keys = [dataset.show_key for dataset in datasets.DATASETS.values()]
    if shown := [key for key in keys if parameters.get(key)]:
        raise PublishError(f"{page.name} was made with pictures: set {shown[0]} to false")
    outputs = json.dumps([cell.get("outputs", []) for cell in book.cells])
    other = re.search(r'"image/(?!svg\+xml)', outputs)
    if other or holds_bitmap(outputs) or holds_bitmap(page.read_text("utf-8")):
        raise PublishError(f"{page.name} holds a bitmap: only drawn lines and areas may be shared")


def check_size(folder: Path) -> None:
    """Raise PublishError where a folder has more files or bytes than git should carry."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    if len(sizes) > FILES or sum(sizes) > BYTES:
        total = f"{len(sizes)} files, {sum(sizes):,} bytes"
        raise PublishError(f"too much to publish ({total}): at most {FILES} and {BYTES:,}")


# Small files


def slim(svg: str) -> str:
    """The same drawing in half the bytes: four digits a number, one name for each look."""
    svg = re.sub(r"<\?xml.*?\?>|<!.*?>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\d+\.\d\d+(?=[^<>]*>)", lambda number: f"{float(number[0]):.4g}", svg)
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><").replace("<g/>", "")
    svg = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r" ?([A-Za-z]) ?", r"\1", path[0]), svg)
    names = {name: f"i{k}" for k, name in enumerate(dict.fromkeys(re.findall(LINK, svg)))}
    svg = re.sub(ID, lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = re.sub(LINK, lambda m: names[m[0]], svg)
    svg = re.sub(r'="[^"<>]*"', lambda value: value[0].replace("'", ""), svg)  # names of fonts
    looks = Counter(re.findall(r' style="([^"]*)"', svg)).most_common()
    looks = {look: f"s{k}" for k, (look, n) in enumerate(looks) if n > 1}
    for look, name in looks.items():
        svg = svg.replace(f' style="{look}"', f' class="{name}"')
    rules = "".join(f".{name}{{{look}}}" for look, name in looks.items())
    return svg.replace("</style>", f"{rules}</style>", 1)


def _address(match: re.Match) -> str:
    """A figure's address in a page: slim, and readable instead of base64."""
    return "data:image/svg+xml," + slim(base64.b64decode(match[1]).decode()).translate(IN_ADDRESS)


def slim_page(page: str) -> str:
    """A page with slim figures and styles, and without the marks of code that have no colour."""
    page = re.sub(PLAIN, r"\1", re.sub(ADDRESS, _address, page))
    return re.sub("(?s)<style>.*?</style>", lambda m: re.sub(r"\s*([{};])\s*", r"\1", m[0]), page)


# What is published


def _pack(table: pd.DataFrame, file: Path) -> None:
    """Write predictions; what networks say of images that they were trained on has two digits, as
    no number follows from it."""
    own = table["part"] == "train"
    p, score = (table.loc[own].filter(regex=name) for name in ("^p_", "^score$"))
    # rounded as sums over the first classes, so that a row still sums to 1
    table.loc[own, p.columns] = np.diff(p.cumsum(axis=1).round(2), prepend=0).round(2)
    table.loc[own, score.columns] = score.round(2)
    table.to_csv(file, index=False, compression=XZ)


def _told(folders: Sequence[Path], **changes: str) -> tuple[str, pd.DataFrame]:
    """recipes.jsonl and histories.csv: one line a run, one row an epoch."""
    recipes, histories = [], []
    for folder in folders:
        recipe = paths.public(json.loads((folder / "recipe.json").read_text())) | changes
        place = {"predictions": f"{recipe['task']}.csv.xz", "run": folder.name}
        place |= {key: recipe[key] for key in ("task", "pipeline", "protocol", "fold")}
        recipes.append(json.dumps(place | recipe) + "\n")
        history = pd.read_csv(folder / "history.csv")
        histories.append(pd.DataFrame([place]).merge(history, how="cross"))
    return "".join(recipes), pd.concat(histories)


@contextmanager
def _changed(target: Path, ignore: Callable | None = None) -> Iterator[Path]:
    """A copy of ``target`` to change, which takes its place at the end; a failure leaves the old
    one as it was."""
    draft, old = (target.with_name(f".published.{uuid.uuid4().hex}") for _ in range(2))
    try:
        target.mkdir(exist_ok=True)
        shutil.copytree(target, draft, ignore=ignore)
        yield draft
        check_size(draft)
        target.rename(old)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old)


def add(folder: Path, pipeline: str) -> None:
    """Put the networks of run folders in ``folder``, one task's, beside the published ones, as
    ``pipeline``: their predictions, numbers, recipes and histories."""
    target = paths.reports_dir("published")
    places = sorted(file.parent for file in folder.glob("*/recipe.json"))
    if not places:
        raise PublishError(f"{folder} holds no run folders: give reports/<name>/runs/<task>/<...>")
    added = runs.table(map(runs.read, places)).assign(pipeline=pipeline).round(6)
    file = target / f"{added['task'].iloc[0]}.csv.xz"
    known = metrics.read_file(file)
    if pipeline in set(known["pipeline"]):
        raise PublishError(f"{file.name} has a pipeline '{pipeline}' already: name another")
    both = metrics.check_predictions(pd.concat([known, added], ignore_index=True), file)
    settings = json.loads((target / "run.json").read_text())["configuration"]
    numbers = metrics.results(added, settings["n_boot"], settings["seed"])
    recipes, histories = _told(places, pipeline=pipeline)
    with _changed(target) as draft:
        _pack(both, draft / file.name)
        for name, table in (("results", numbers), ("histories", histories)):
            old = pd.read_csv(draft / f"{name}.csv", dtype=str, keep_default_na=False)
            table = pd.concat([old, table.round(6)])
            if name == "results":
                table = table.sort_values([*metrics.KEYS, "fold", "metric"])
            table.to_csv(draft / f"{name}.csv", index=False)
        with (draft / "recipes.jsonl").open("a") as opened:
            opened.write(recipes)


def _write_page(page: Path, draft: Path, stems: Sequence[str]) -> None:
    """The page of a report among the pages ``stems``, slim."""
    made = pages.to_html(page.with_suffix(".ipynb"), draft / page.name, stems)
    made.write_text(slim_page(made.read_text("utf-8")), "utf-8")


def add_elsewhere(source: Path) -> None:
    """Put notebook 8 of the report in ``source`` beside the published pages: what it predicted of
    test images, its numbers and its page."""
    page, target = source / ELSEWHERE, paths.reports_dir("published")
    check_page(page)
    stems = {file.stem for file in target.glob("0*.html")} | {page.stem}
    with _changed(target) as draft:
        (draft / "elsewhere").mkdir(exist_ok=True)
        for file in (source / "elsewhere").glob("*.csv"):
            rows = metrics.read_file(file).query("part == 'test'").round(5)
            rows.to_csv(draft / "elsewhere" / f"{file.name}.xz", index=False, compression=XZ)
        shutil.copyfile(source / "elsewhere.csv", draft / "elsewhere.csv")
        _write_page(page, draft, sorted(stems))


def _fill(draft: Path, source: Path, html_pages: Sequence[Path]) -> None:
    """Write all that is published of the report ``source`` into a folder."""
    for file in RECORDS:
        shutil.copyfile(source / file, draft / file)
    tables = metrics.read(source)
    for task, frame in tables.items():
        _pack(frame, draft / f"{task}.csv.xz")
    places = [place for task in tables for place in pages.run_folders(source, task)]
    recipes, histories = _told(places)
    (draft / "recipes.jsonl").write_text(recipes)
    histories.to_csv(draft / "histories.csv", index=False)
    for page in html_pages:
        _write_page(page, draft, [page.stem for page in html_pages])
    if (file := source / "attribution.csv").is_file():
        (draft / f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
    write_index(draft)


def write_index(folder: Path) -> Path:
    """The overview of the pages in ``folder``; the figures of its cards stay in the pages."""
    index = pages.write_overview(folder, json.loads((folder / "run.json").read_text())["name"])
    text = re.sub(r'<div class="thumb">.*?</div>', "", index.read_text("utf-8"), flags=re.DOTALL)
    with paths.whole(index) as draft:
        draft.write_text(slim_page(text), "utf-8")
    return index


def publish(name: str) -> Path:
    """Put what may be shared of ``reports/<name>`` in the place of ``reports/published``.

    Models and pictures stay behind. The new folder is made beside the old one and then takes its
    place, so that a failure leaves the old one as it was. Files that this does not make are kept,
    and those of notebook 4 where the report has none. Raises PublishError where the report is not
    whole, was made with pictures, or is too large.
    """
    source, target = paths.reports_dir(name), paths.reports_dir("published")
    for file in (*RECORDS, "05_comparison.ipynb"):
        if not (source / file).is_file():
            raise PublishError(f"{source / file} is missing: make reports CONFIG={name} first")
    html_pages = [page for page in sorted(source.glob("*.html")) if re.fullmatch(PAGES, page.stem)]
    list(map(check_page, html_pages))
    kept = r"(?!)" if any("04_" in page.name for page in html_pages) else r"04_.*|attribution.*"

    def replaced(folder: str, names: list[str]) -> list[str]:
        here = names if Path(folder) == target else []
        return [file for file in here if re.fullmatch(MADE, file) and not re.match(kept, file)]

    with _changed(target, replaced) as draft:
        _fill(draft, source, html_pages)
    return target


def results_table(results: pd.DataFrame) -> str:
    """README's short tables in Markdown, of ``pages.headline``: LEADING and SHORT alone. A pipeline
    is named in its first row."""
    lines = []
    for dataset, table in pages.headline(results):
        shown = table["metric"].isin(map(label, SHORT))
        table = table[shown & table["pipeline"].isin(map(label, LEADING))].copy()
        again = table["pipeline"].duplicated()
        table.loc[again, ["pipeline", "folds"]] = ""
        rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
        lines += [f"**{dataset.title}**", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines).strip()


def with_table(readme: str, results: pd.DataFrame) -> str:
    """The text of a README with the tables of ``results`` between its two marks."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise PublishError(f"README.md needs one line '{BEGIN}' and one line '{END}'")
    made = f"{BEGIN}\n\n{results_table(results)}\n\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: made, readme, flags=re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """Publish what is named, if anything, and make README's table; SystemExit with what is
    wrong."""
    try:
        if len(arguments) == 2:
            add(Path(arguments[0]), arguments[1])
        elif arguments and (Path(arguments[0]) / ELSEWHERE).is_file():
            add_elsewhere(Path(arguments[0]))
        elif arguments:
            print(publish(arguments[0]))
        folder, readme = paths.reports_dir("published"), paths.ROOT / "README.md"
        results = pd.read_csv(folder / "results.csv", dtype={"fold": str})
        made = {readme: with_table(readme.read_text(), results)}
        made[paths.ROOT / "docs" / "findings.svg"] = slim(pages.glance(results))
        write_index(folder)
        for file, text in made.items():
            with paths.whole(file) as draft:
                draft.write_text(text)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
