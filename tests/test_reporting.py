"""Reports: self-contained, folded, escaped, and with the numbers that results.csv holds."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cervix_utils import paths, rendering, reporting

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(9)</script></svg>'
BAD = "<img src=x onerror=alert(1)>.jpg"
LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href", "ping"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, text by enclosing tag, CSS and scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "link", "br", "hr", "input", "col"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self, within="main", but=()):
        return " ".join(data for path, data in self.texts if within in path and not set(path) & set(but))


def output(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def write(path: Path, *cells, duration=75.0):
    papermill = {"duration": duration, "end_time": "2026-01-02T03:04:05"}
    nbformat.write(new_notebook(cells=list(cells), metadata={"papermill": papermill}), path)
    return path


def render(path: Path, *cells) -> tuple[str, Page]:
    html = rendering.to_html(write(path / "01_x.ipynb", *cells), path / "01_x.html").read_text("utf-8")
    return html, Page(html)


def problems(html: str) -> list[str]:
    """Everything in a page that would load something or run a script other than the page's own."""
    page, found = Page(html), []
    for tag, attrs in page.tags:
        found += [f"{tag} {k}" for k in attrs if k.startswith("on")]
        found += [f"{tag} {k}={attrs[k][:40]}" for k in LOADS & set(attrs) if not attrs[k].startswith("data:image/")]
        found += [f"{tag}" for _ in [0] if tag in {"link", "iframe", "object", "embed", "base", "form"}]
        found += [f"href {attrs['href']}" for _ in [0] if re.match(r"\s*(javascript|data):", attrs.get("href", ""))]
    css = [data for path, data in page.texts if "style" in path] + [attrs.get("style") or "" for _, attrs in page.tags]
    found += [rule for rule in css if re.search(r"@import|url\s*\(", rule)]
    scripts = [data for path, data in page.texts if "script" in path]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    found += [] if len(hashes) == 1 and f"script-src 'sha256-{hashes[0]}'" in policy else ["script not in the policy"]
    found += [] if policy.startswith("default-src 'none'; img-src data:;") else [policy]
    return found


def test_problems_are_seen():
    """The check below is not blind."""
    page = '<meta http-equiv="Content-Security-Policy" content="x"><style>@import "a"</style><img src="http://a">'
    assert len(problems(page + '<p onclick="b" style="background: url(c)"><a href="javascript:d">')) == 7


def test_nothing_is_loaded_and_attacks_are_text(tmp_path):
    (tmp_path / "near.png").write_bytes(b"a picture")
    outputs = [
        {"text/markdown": f"File {BAD} [x](javascript:alert(3)) ![y](http://evil.example/b.png) ![z](near.png)"},
        {"text/html": f'<style>@import "http://evil.example"</style><b onclick="alert(4)">{BAD}</b>'},
        {"text/html": pd.DataFrame({"file": [BAD]}).to_html()},
        {"text/plain": BAD},
        {"application/javascript": "alert(5)", "text/plain": "js"},
    ]
    alt = {"image/svg+xml": {"alt": f'"><b>{BAD}'}}
    html, page = render(
        tmp_path,
        new_markdown_cell(
            f"# Title {BAD}\n\n<script>alert(2)</script>\n\n![x](http://evil.example/a.png) ![x](near.png)"
        ),
        *[code("1", output(data)) for data in outputs],
        code("2", new_output("stream", name="stdout", text=BAD), output({"image/svg+xml": SVG}, **alt)),
    )
    assert problems(html) == []
    assert "evil.example" not in "".join(str(attrs) for _, attrs in page.tags)
    assert page.text().count(BAD) >= 4  # shown as it is: Markdown output, table, text, stream
    assert page.text("title") == f"Title {BAD}"
    assert page.all("img")[-1]["alt"] == f'"><b>{BAD}'
    assert html.count(base64.b64encode(b"a picture").decode()) == 1  # of the author's text, not of an output
    assert rendering.DISCLAIMER in page.text("aside")


def test_code_is_folded_and_contents_lead_to_headings(tmp_path):
    cells = [new_markdown_cell(t) for t in ("# A\n\n## Same", "## Same", "### Deep & <i>x</i>")]
    _, page = render(tmp_path, *cells, code("secret_code = 1"))
    assert "secret_code" in page.text("details") and "secret_code" not in page.text("body", but=["details"])
    assert [a for a in page.all("details") if a.get("class") == "code" and "open" in a] == []
    headings = [a["id"] for tag in ("h2", "h3") for a in page.all(tag)]
    links = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#") and a.get("class") != "skip"]
    assert len(set(headings)) == 3 and links == headings
    assert "Deep & x" in page.text("nav")


def test_tags_parameters_and_stderr(tmp_path):
    def out(text, name="stdout"):
        return new_output("stream", name=name, text=text)

    cells = [
        new_markdown_cell("# T"),
        code("root = 'demo'", tags=["parameters"]),
        code('root = "/home/alice/My Data/cervix"\nlr = 0.1', tags=["injected-parameters"]),
        code("in_gone = 1", out("out_stays"), tags=["remove-input"]),
        code("in_stays = 1", out("out_gone"), tags=["remove-output"]),
        code("cell_gone = 1", out("cell_out_gone"), tags=["remove-cell"]),
        code("w", out("a_warning", "stderr")),
    ]
    html, page = render(tmp_path, *cells)
    words = ["in_gone", "out_stays", "in_stays", "out_gone", "cell_gone", "cell_out_gone", "a_warning"]
    assert [word for word in words if word in html] == ["out_stays", "in_stays"]
    assert "Parameters of this run" in page.text("summary") and "Parameters and their defaults" in page.text("summary")
    assert "alice" not in html and "cervix" in page.text("details")
    failed, _ = render(tmp_path, *cells, code("1/0", new_output("error", ename="E", evalue="v", traceback=["tr_<b>"])))
    assert "a_warning" in failed and "tr_&lt;b&gt;" in failed and "stopped with an error" in failed
    assert "stopped with an error" not in html


def test_figures_are_images_with_a_text(tmp_path):
    _, page = render(tmp_path, new_markdown_cell("# T\n\n## ROC"), code("f", output({"image/svg+xml": SVG})))
    (figure,) = page.all("img")
    assert base64.b64decode(figure["src"].removeprefix("data:image/svg+xml;base64,")).decode() == SVG
    assert figure["alt"] == "Figure: ROC" and page.all("svg") == []


def test_tables_scroll_and_show_a_dash_for_nan(tmp_path):
    table = pd.DataFrame({"a": [1.5, None], "b": ["NaN?", "x"]}).to_html()
    html, page = render(tmp_path, new_markdown_cell("# T\n\n|a|\n|-|\n|1|"), code("t", output({"text/html": table})))
    tables = [at for at, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert len(tables) == 2 and all(page.tags[at - 1][1]["class"] == "scroll" for at in tables)
    cells = '<td>1.5</td> <td>NaN?</td> <td class="none">–</td> <td>x</td>'
    assert " ".join(re.findall("<td[^>]*>.*?</td>", html)[1:]) == cells


def test_lines_printed_one_by_one_are_one_block(tmp_path):
    lines = [new_output("stream", name=name, text=f"{name} {k}\n") for k in (1, 2) for name in ("stdout", "stderr")]
    _, page = render(tmp_path, code("p", *lines))
    assert [text for path, text in page.texts if path[-1:] == ("pre",) and "stdout" in text] == ["stdout 1\nstdout 2\n"]


def test_style_sheets_go():
    for html in ("<style>#T_a {background: url(http://a)}</style>x", "<b>x</b><STYLE scoped>body {}\n</Style>"):
        assert re.sub("</?b>", "", rendering.safe_html(html)) == "x"
    assert "red" in rendering.safe_html('<b style="color: red">1</b>')


def test_pages_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    notebook, kept = write(tmp_path / "n.ipynb", new_markdown_cell("# T")), tmp_path / "a.html"
    kept.write_text("before")

    def full(self, *_args, **_kwargs):
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        rendering.to_html(notebook, kept)
    monkeypatch.undo()
    assert kept.read_text() == "before" and {p.name for p in tmp_path.iterdir()} == {"a.html", "n.ipynb"}


HOME = {"data_root": "/home/alice/data/cervix", "weights": r"C:\Users\alice\w.pth"}
SETTINGS = {**HOME, "seed": 7, "report_name": "paper"}


def test_provenance_tells_all_but_paths(tmp_path, monkeypatch):
    start = {"combined": "/home/alice/weights/r50.safetensors", "regression": "imagenet"}
    facts = reporting.provenance(SETTINGS, {"herlev": "f" * 64}, start, "cpu")
    assert facts["data"] == "cervix" and facts["seed"] == "7" and facts["configuration"] == "paper"
    assert facts["initialisation, combined"] == "r50.safetensors" and facts["initialisation, regression"] == "imagenet"
    assert facts["data fingerprint, herlev"] == "f" * 16 and re.match(r"\d+\.\d+", facts["torch"])
    for text in (facts.to_string(), facts._repr_html_()):
        assert "alice" not in text and "/home" not in text
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert reporting.commit() == "unknown"
    monkeypatch.setenv("USER", "alice")
    assert reporting.provenance({"data_root": "/home/alice"}, {}, "none", "cpu")["data"] == "folder"


def test_commit_is_that_of_this_checkout_only(tmp_path, monkeypatch):
    def answers(dirty, top=reporting.paths.ROOT):
        return lambda command, **_: dirty if "status" in command else f"{top}\n{'0123456789' * 4}\n"

    for said, expected in (("", "012345678901"), (" M a.py\n", "012345678901 + uncommitted changes")):
        monkeypatch.setattr(reporting.subprocess, "check_output", answers(said))
        assert reporting.commit() == expected
    monkeypatch.setattr(reporting.subprocess, "check_output", answers("", tmp_path))
    assert reporting.commit() == "unknown"


@pytest.mark.parametrize(
    ("value", "expected"),
    [("/data/x/", "x"), ("~/a/b", "b"), ("../c/d", "d"), (r"\\host\e\f", "f"), ("demo", "demo"), (0.5, 0.5),
     ("see /home/alice/w.pth", "see w.pth"), ("train/valid", "train/valid"), ("https://a.org/b/c", "https://a.org/b/c"),
     ({"k": ["/a/b", 1]}, {"k": ["b", 1]})],
)  # fmt: skip
def test_public(value, expected):
    assert paths.public(value) == expected


@pytest.fixture
def report(tmp_path):
    """A report folder: one fold under the paper's protocol, two grouped ones."""
    rows = [
        ("herlev", "combined", "paper", 0, 230, "accuracy", 0.787, 0.731, 0.842, 0.745),
        ("herlev", "combined", "grouped", 0, 231, "accuracy", 0.50, 0.10, 0.90, None),
        ("herlev", "combined", "grouped", 1, 229, "accuracy", 0.60, 0.20, 0.95, None),
        ("herlev", "combined", "grouped", "mean", 460, "accuracy", 0.55, 0.45, 0.65, None),
        ("herlev", "combined", "grouped", "pooled", 460, "accuracy", 0.99, 0.98, 1.0, None),
        ("herlev", "baseline_size_forest", "grouped", 0, 231, "accuracy", 0.30, 0.2, 0.4, None),
        ("herlev", "baseline_all_forest", "grouped", 0, 231, "accuracy", 0.40, 0.3, 0.5, None),
        ("herlev", "combined_without_cell", "grouped", 0, 231, "accuracy", 0.70, 0.6, 0.8, None),
        ("colposcopy", "sgd", "paper", 0, 444, "f1_macro", 0.55, None, None, 0.79),
    ]
    columns = ["task", "pipeline", "protocol", "fold", "n_test", "metric", "value", "low", "high", "paper"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "results.csv", index=False)
    title = new_markdown_cell(f"# Cells {BAD}")
    for stem in ("03_cells_paper-0", "03_cells_grouped-1", "01_data"):
        cells = [code("f", output({"image/svg+xml": SVG.replace("9", "7")}))]
        cells += [code("f", output({"image/svg+xml": SVG}), tags=["thumbnail"])] if stem != "01_data" else []
        rendering.to_html(write(tmp_path / f"{stem}.ipynb", title, *cells), tmp_path / f"{stem}.html")
    (tmp_path / "09_no_notebook.html").write_text("")
    seconds = reporting.notebook_seconds(tmp_path)
    reporting.write_run_json(tmp_path / "run.json", SETTINGS, {"herlev": "f" * 64}, seconds)
    return tmp_path


def rows_of(html: str) -> dict[str, str]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    cells = [
        [" ".join(re.sub("<[^>]+>", " ", c).split()) for c in re.findall(r"<t[hd][ >].*?</t[hd]>", r, re.DOTALL)]
        for r in rows
    ]
    return {row[0]: row[1:] for row in cells}


def test_overview_shows_the_numbers(report):
    html = reporting.write_index(report, "paper").read_text("utf-8")
    rows = rows_of(html)
    networks, best = re.split("Best baseline without a network", html)
    cells = rows_of(networks)["Accuracy, five grades"]
    assert cells == ["0.745", "0.79 (0.73–0.84)", "0.55 (0.45–0.65) mean of 2 folds"]
    assert rows_of(best)["Accuracy, five grades"] == ["–", "–", "0.40 (0.30–0.50)"]
    assert "without_cell" not in html
    assert rows["Classification + regression"] == ["", "230 test images", "2 folds of 229–231 test images"]
    assert rows["F1, mean of the classes"] == ["0.79", "0.55"]  # no interval, and no grouped column
    assert problems(html) == [] and "demonstration" not in html
    assert rendering.DISCLAIMER in Page(html).text("aside")
    assert "alice" not in html and "f" * 64 in html


def test_overview_groups_pages_and_takes_tagged_thumbnails_only(report):
    page = Page(reporting.write_index(report, "<b>demo").read_text("utf-8"))
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["01_data.html", "03_cells_grouped-1.html", "03_cells_paper-0.html"]
    assert "grouped, fold 1" in page.text("li") and "1 min 15 s" in page.text("li")
    assert len([a for a in page.all("li") if a.get("class") == "card"]) == 2
    (thumbnail,) = page.all("img")
    assert base64.b64decode(thumbnail["src"].partition(",")[2]).decode() == SVG
    assert page.text("h3").count(BAD) == 2 and page.text("h1") == "Cervical screening images: report “<b>demo”"


def test_demo_is_said_to_mean_nothing_and_an_empty_folder_has_a_page(tmp_path):
    html = reporting.write_index(tmp_path, "demo").read_text("utf-8")
    assert "mean nothing medically" in html and "No report has been made yet" in html
    assert problems(html) == []


def test_run_json(report):
    run = json.loads((report / "run.json").read_text())
    assert run["seconds"] == {"01_data": 75.0, "03_cells_grouped-1": 75.0, "03_cells_paper-0": 75.0}
    assert run["configuration"] == {**SETTINGS, "data_root": "cervix", "weights": "w.pth"}
    assert run["data_fingerprint"] == {"herlev": "f" * 64} and {"python", "torch"} <= set(run["versions"])
