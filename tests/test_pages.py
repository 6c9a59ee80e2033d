"""Pages: self-contained, folded, escaped, and with the numbers that results.csv holds."""

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cervix_utils.report import pages, words

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(9)</script></svg>'
BAD = "<img src=x onerror=alert(1)>.jpg"
LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "xlink:href"}
LOADS |= {"ping"}
DISCLAIMER = "Research use only. This is not a medical device"


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
        return " ".join(
            data for path, data in self.texts if within in path and not set(path) & set(but)
        )


def output(data, **metadata):
    return new_output("display_data", data=data, metadata=metadata)


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def write(path: Path, *cells, duration=75.0):
    papermill = {"duration": duration, "end_time": "2026-01-02T03:04:05"}
    nbformat.write(new_notebook(cells=list(cells), metadata={"papermill": papermill}), path)
    return path


def render(path: Path, *cells) -> tuple[str, Page]:
    html = pages.to_html(write(path / "01_x.ipynb", *cells), path / "01_x.html").read_text("utf-8")
    return html, Page(html)


def problems(html: str) -> list[str]:
    """Everything in a page that would load something or run a script other than the page's own."""
    page, found = Page(html), []
    for tag, attrs in page.tags:
        found += [f"{tag} {k}" for k in attrs if k.startswith("on")]
        found += [
            f"{tag} {k}={attrs[k][:40]}"
            for k in LOADS & set(attrs)
            if not attrs[k].startswith("data:image/")
        ]
        found += [
            f"{tag}" for _ in [0] if tag in {"link", "iframe", "object", "embed", "base", "form"}
        ]
        found += [
            f"href {attrs['href']}"
            for _ in [0]
            if re.match(r"\s*(javascript|data):", attrs.get("href", ""))
        ]
    css = [data for path, data in page.texts if "style" in path] + [
        attrs.get("style") or "" for _, attrs in page.tags
    ]
    found += [rule for rule in css if re.search(r"@import|url\s*\(", rule)]
    scripts = [data for path, data in page.texts if "script" in path]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    policy = next(
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    found += (
        []
        if len(hashes) == 1 and f"script-src 'sha256-{hashes[0]}'" in policy
        else ["script not in the policy"]
    )
    found += [] if policy.startswith("default-src 'none'; img-src data:;") else [policy]
    return found


def test_problems_are_seen():
    """The check below is not blind."""
    page = '<meta http-equiv="Content-Security-Policy" content="x"><style>@import "a"</style><img src="http://a">'
    assert (
        len(problems(page + '<p onclick="b" style="background: url(c)"><a href="javascript:d">'))
        == 7
    )


def test_nothing_is_loaded_and_attacks_are_text(tmp_path):
    (tmp_path / "near.png").write_bytes(b"a picture")
    markdown = f"File {BAD} [x](javascript:alert(3)) ![y](http://evil.example/b.png) ![z](near.png)"
    sheet = '<style>@import "http://evil.example"</style>'
    outputs = [
        {"text/markdown": markdown},
        {"text/html": f'{sheet}<b onclick="alert(4)">{BAD}</b>'},
        {"text/html": pd.DataFrame({"file": [BAD]}).to_html()},
        {"text/plain": BAD},
        {"application/javascript": "alert(5)", "text/plain": "js"},
    ]
    alt = {"image/svg+xml": {"alt": f'"><b>{BAD}'}}
    pictures = "![x](http://evil.example/a.png) ![x](near.png)"
    html, page = render(
        tmp_path,
        new_markdown_cell(f"# Title {BAD}\n\n<script>alert(2)</script>\n\n{pictures}"),
        *[code("1", output(data)) for data in outputs],
        code(
            "2",
            new_output("stream", name="stdout", text=BAD),
            output({"image/svg+xml": SVG}, **alt),
        ),
    )
    assert problems(html) == []
    assert "evil.example" not in "".join(str(attrs) for _, attrs in page.tags)
    assert page.text().count(BAD) >= 4  # shown as it is: Markdown output, table, text, stream
    assert page.text("title") == f"Title {BAD}"
    assert page.all("img")[-1]["alt"] == f'"><b>{BAD}'
    assert (
        html.count(base64.b64encode(b"a picture").decode()) == 1
    )  # of the author's text, not of an output
    assert DISCLAIMER in page.text("aside")


def test_code_is_folded_and_contents_lead_to_headings(tmp_path):
    cells = [new_markdown_cell(t) for t in ("# A\n\n## Same", "## Same", "### Deep & <i>x</i>")]
    _, page = render(tmp_path, *cells, code("secret_code = 1"))
    assert "secret_code" in page.text("details") and "secret_code" not in page.text(
        "body", but=["details"]
    )
    assert [a for a in page.all("details") if a.get("class") == "code" and "open" in a] == []
    headings = [a["id"] for tag in ("h2", "h3") for a in page.all(tag)]
    links = [
        a["href"][1:]
        for a in page.all("a")
        if a["href"].startswith("#") and a.get("class") != "skip"
    ]
    assert len(set(headings)) == 3 and links == headings
    assert "Deep & x" in page.text("nav")


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    "address",
    ["//evil.example/x", "javascript:alert(1)", "data:text/html,x", r"\\evil.example\x", " //evil"],
)
def test_links_and_pictures_lead_only_where_they_may(tmp_path, address):
    html = f'<a href="{address}">here</a><img src="{address}"><a href="01_x.html#part-1">there</a>'
    text = f"[here]({address}) ![picture]({address})"
    cells = [new_markdown_cell(f"# T\n\n{text}"), code("1", output({"text/html": html}))]
    cells.append(code("2", output({"text/markdown": text})))
    html, page = render(tmp_path, *cells)
    links = {link.get("href", "") for link in page.all("a")}
    assert links <= {"", "#main", "index.html", "01_x.html#part-1"}
    assert page.all("img") == [] and problems(html) == []


def test_frames_scripts_and_widgets_of_outputs_leave_no_trace(tmp_path):
    frame = new_output("display_data", data={"text/html": "<i>x</i>"})
    frame.metadata["text/html"] = {"isolated": True}
    remote = output({"image/png": "iVBOR"}, filenames={"image/png": "http://evil.example/a.png"})
    widget = output({"application/vnd.jupyter.widget-view+json": {"model_id": "m"}})
    html, page = render(tmp_path, code("1", frame, remote, widget))
    assert problems(html) == [] and page.all("iframe") == []
    assert "evil.example" not in html


def test_parameters_are_labelled_and_absolute_paths_cut(tmp_path):
    cells = [
        new_markdown_cell("# T"),
        code("root = 'demo'", tags=["parameters"]),
        code('root = "/home/alice/My Data/cervix"\nlr = 0.1', tags=["injected-parameters"]),
    ]
    html, page = render(tmp_path, *cells)
    labels = [text for path, text in page.texts if path[-1:] == ("summary",)]
    assert [text for text in labels if "arameters" in text] == [
        "Parameters",
        "Parameters of this run",
    ]
    assert "alice" not in html and "cervix" in page.text("details")


PACKAGES = "/home/alice/my code/.venv/lib/python3.11/site-packages"
WARNING = f"""{PACKAGES}/sklearn/_logistic.py:469: ConvergenceWarning: lbfgs failed to converge
  n_iter_i = _check_optimize_result(
C:\\Users\\alice\\study.py:7: UserWarning: <b>my</b> own data in '/home/alice/x.csv', a/b and //
"""


def test_warnings_are_shown_folded_and_name_no_folder(tmp_path):
    cells = [new_markdown_cell("# T"), code("w", stream("out"), stream(WARNING, "stderr"))]
    html, page = render(tmp_path, *cells)
    shown = page.text("details")
    assert "_logistic.py:469: ConvergenceWarning: lbfgs failed to converge" in shown
    assert "study.py:7: UserWarning: <b>my</b> own data in 'x.csv', a/b and //" in shown
    assert "alice" not in html and "out" not in shown
    assert [a for a in page.all("details") if a.get("class") == "messages"] == [
        {"class": "messages"}
    ]
    assert "Messages of the software (3 lines)" in page.text("summary")


def test_a_notebook_that_stopped_says_so(tmp_path):
    error = new_output("error", ename="E", evalue="v", traceback=["tr_<b>"])
    html, _ = render(tmp_path, code("1/0", error))
    whole, _ = render(tmp_path, code("1"))
    assert "tr_&lt;b&gt;" in html and "stopped with an error" in html
    assert "stopped with an error" not in whole


def test_figures_are_images_with_a_text(tmp_path):
    _, page = render(
        tmp_path, new_markdown_cell("# T\n\n## ROC"), code("f", output({"image/svg+xml": SVG}))
    )
    (figure,) = page.all("img")
    drawn = base64.b64decode(figure["src"].removeprefix("data:image/svg+xml;base64,"))
    assert drawn.decode() == SVG
    assert figure["alt"] == "Figure: ROC" and page.all("svg") == []


def test_tables_scroll_and_show_a_dash_for_nan(tmp_path):
    table = pd.DataFrame({"a": [1.5, None], "b": ["NaN?", "x"]}).to_html()
    written = new_markdown_cell("# T\n\n|a|\n|-|\n|1|")
    html, page = render(tmp_path, written, code("t", output({"text/html": table})))
    tables = [at for at, (tag, _) in enumerate(page.tags) if tag == "table"]
    assert len(tables) == 2 and all(page.tags[at - 1][1]["class"] == "scroll" for at in tables)
    cells = '<td>1.5</td> <td>NaN?</td> <td class="none">–</td> <td>x</td>'
    assert " ".join(re.findall("<td[^>]*>.*?</td>", html)[1:]) == cells


def test_tables_have_words_of_the_field_and_long_ones_are_folded(tmp_path):
    table = pd.DataFrame({"metric": ["f1_macro", "kappa_quadratic"], "pipeline": ["sgd", "modern"]})
    table["train_loss"] = ["0.697 (0.658 to 0.735) forest", "a_word_of_ours"]
    long = pd.DataFrame({"paper": range(pages.LONG + 1)})
    outputs = [output({"text/html": frame.to_html()}) for frame in (table, long)]
    html, page = render(tmp_path, new_markdown_cell("# T\n\n## Rows"), code("t", *outputs))
    assert rows_of(html)[:3] == [
        ["metric", "pipeline", "training loss"],
        ["F1, macro", "paper C as written", "0.697 (0.658 to 0.735) forest"],
        ["quadratic kappa", "modern recipe", "a_word_of_ours"],
    ]
    assert '0.697 <span class="ci">(0.658 to 0.735)</span> forest' in html
    assert rows_of(html)[3] == ["published"]
    folded = [text for path, text in page.texts if path[-2:] == ("details", "summary")]
    assert "Rows: table of 13 rows" in folded and html.count('class="long"') == 1


def test_the_answer_stands_before_the_way_to_it(tmp_path):
    texts = ["# T", "## Way", "## Answer\n\nIt is", "more"]
    cells = [new_markdown_cell(text) for text in texts]
    cells[2:2] = [code("way = 1")]
    _, page = render(tmp_path, *cells, code("answer = 1"), code("pages.provenance(settings)"))
    shown = page.text()
    places = [shown.index(word) for word in ("It is", "more", "Way", "way")]
    assert places == sorted(places)
    sources = [shown.index(word) for word in ("answer", "way", "provenance")]
    assert sources == sorted(sources) and sources[0] < shown.index("Way")


def test_a_drawing_says_what_it_shows(tmp_path):
    texts = "<text>0.5</text><text>AUC of &amp; that</text>"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg">{texts}</svg>'
    _, page = render(tmp_path, new_markdown_cell("# T"), code("f", output({"image/svg+xml": svg})))
    assert page.all("img")[0]["alt"] == "Figure: T – it shows: AUC of & that"


def test_a_figure_has_the_caption_of_its_cell_as_text(tmp_path):
    cell = code("f", output({"image/svg+xml": SVG}))
    cell.metadata["caption"] = f"What to see {BAD}"
    html, page = render(tmp_path, new_markdown_cell("# T"), cell, code("g", *cell.outputs))
    assert page.text("figcaption") == f"What to see {BAD}" and len(page.all("figure")) == 2
    assert len(page.all("figcaption")) == 1 and problems(html) == []


def test_texts_at_points_are_titles_and_never_links_or_markup(tmp_path):
    text = "a&lt;script&gt;alert(1)&lt;/script&gt;: 0.5"
    drawn = f"""<a xlink:href='{text}' target="_blank"><g><use x="1" y="2"/></g></a>"""
    drawn += '<a xlink:href="javascript:alert(2)"><use x="3" y="4"/></a>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg">{drawn}</svg>'
    html, page = render(
        tmp_path, new_markdown_cell("# T"), code("f", output({"image/svg+xml": svg}))
    )
    shown = base64.b64decode(page.all("img")[0]["src"].partition(",")[2]).decode()
    assert f"<g><title>{text}</title><g><use" in shown and "<a " not in shown
    assert problems(html) == [] and page.all("title") == [{}]
    assert "a<script>alert(1)</script>: 0.5" in page.all("img")[0]["alt"]


def test_lines_printed_one_by_one_are_one_block(tmp_path):
    lines = [stream(f"{name} {k}\n", name) for k in (1, 2) for name in ("stdout", "stderr")]
    _, page = render(tmp_path, code("p", *lines))
    blocks = [text for path, text in page.texts if path[-1:] == ("pre",)]
    assert [text for text in blocks if "std" in text] == [
        "stdout 1\nstdout 2\n",
        "stderr 1\nstderr 2\n",
    ]


def test_style_sheets_go():
    sheets = ("<style>#T_a {background: url(http://a)}</style>x", "<b>x</b><STYLE a>b {}\n</Style>")
    for html in sheets:
        assert re.sub("</?b>", "", pages.clean_html(html)) == "x"
    assert "red" in pages.clean_html('<b style="color: red">1</b>')


def test_pages_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    notebook, kept = write(tmp_path / "n.ipynb", new_markdown_cell("# T")), tmp_path / "a.html"
    kept.write_text("before")

    def full(self, *_args, **_kwargs):
        self.touch()
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        pages.to_html(notebook, kept)
    monkeypatch.undo()
    assert kept.read_text() == "before"
    assert {file.name for file in tmp_path.iterdir()} == {"a.html", "n.ipynb"}


HOME = {"data_root": "/home/alice/data/cervix", "weights": r"C:\Users\alice\w.pth"}
SETTINGS = {**HOME, "seed": 7, "report_name": "paper", "precision": "auto"}


def trained(weights: str) -> SimpleNamespace:
    recipe = {"weights": weights, "device": "cpu", "computed_in": "bf16"}
    return SimpleNamespace(recipe=recipe)


def test_provenance_tells_all_but_paths(monkeypatch):
    runs = {"combined": trained("/home/alice/w/r50.safetensors"), "sgd": trained("<b>imagenet")}
    table = pages.provenance(SETTINGS, {"herlev": "f" * 12}, runs)
    facts, html = table.data["value"].to_dict(), table.to_html()
    assert facts["data"] == "cervix" and facts["seed"] == "7" and facts["configuration"] == "paper"
    assert facts["initial weights, combined"] == "r50.safetensors"
    assert facts["trained on, sgd"] == "cpu in bf16"
    assert facts["data fingerprint, herlev"] == "f" * 12
    assert re.match(r"\d+\.\d+", facts["torch"])
    assert "alice" not in html and "/home" not in html and "&lt;b&gt;imagenet" in html
    monkeypatch.setenv("USER", "alice")
    facts = pages.provenance({"data_root": "/home/alice", "seed": 0}).data["value"]
    assert facts["data"] == "folder"
    drawn = pages.provenance({"data_root": "demo", "seed": 0}).data["value"]
    assert drawn["data"] == "demo (drawn pictures)"


def test_commit_is_that_of_this_checkout_only(tmp_path, monkeypatch):
    monkeypatch.setattr(pages.paths, "ROOT", tmp_path)
    assert pages.commit() == "unknown"

    def git(*arguments):
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-m", "first")
    git("tag", "v1")
    clean = pages.commit()
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (tmp_path / "a.py").write_text("2")
    assert pages.commit() == f"{clean} + uncommitted changes"
    monkeypatch.setattr(pages.paths, "ROOT", tmp_path / "installed")  # inside another's checkout
    (tmp_path / "installed").mkdir()
    assert pages.commit() == "unknown"
    monkeypatch.setattr(pages.paths, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert pages.commit() == "unknown"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("combined", "classification + regression"),
        ("auc_light_dysplastic", "AUC, light dysplastic"),
        ("mse", "MSE of the score"),
        ("grouped", "grouped split"),
        ("baseline_all_logistic", "logistic regression on all features"),
        ("Type_1", "Type 1"),
        ("combined_seed1", "classification + regression, seed 1"),
        ("regression_without_nucleus", "regression, without nucleus"),
        ("regression_weight", "weight of the regression term"),
    ],
)
def test_every_name_has_words_for_people(name, words):
    assert pages.label(name) == words


def test_raw_names_in_a_sentence_are_spelled_out_and_nothing_else():
    text = "**sgd** and combined_seed1 beat logistic regression; modern 0.9 (0.1 to 1.0)."
    assert words.spelled(text) == (
        "**paper C as written** and classification + regression, seed 1 beat logistic regression; "
        "modern recipe 0.9 (0.1 to 1.0)."
    )


@pytest.mark.parametrize("lines", [12, 13])
def test_a_long_log_and_a_table_by_epochs_are_folded(tmp_path, lines):
    losses = pd.DataFrame({"train_loss": [1.0]}, index=pd.Index([1], name="epoch"))
    log, table = stream("a line\n" * lines), output({"text/html": losses.to_html()})
    _, page = render(tmp_path, new_markdown_cell("# T"), code("1", log), code("2", table))
    folded = [text for path, text in page.texts if path[-2:] == ("details", "summary")]
    assert ("Printed on the way: 13 lines" in folded) == (lines == 13)
    assert "T: table of 1 rows" in folded


ROWS = [
    ("herlev", "combined", "paper", 0, 230, "accuracy", 0.787, 0.731, 0.842, 0.745),
    ("herlev", "combined", "grouped", 0, 231, "accuracy", 0.50, 0.10, 0.90, 0.745),
    ("herlev", "combined", "grouped", 1, 229, "accuracy", 0.60, 0.20, 0.95, 0.745),
    ("herlev", "combined", "grouped", "mean", 460, "accuracy", 0.55, 0.45, 0.65, 0.745),
    ("herlev", "combined", "grouped", "pooled", 460, "accuracy", 0.99, 0.98, 1.0, 0.745),
    ("herlev", "combined", "grouped", 0, 231, "auc_normal", 0.9, 0.8, 1.0, 0.91),
    ("herlev", "combined", "grouped", 0, 231, "mse", 0.8, 0.7, 0.9, 0.51),
    ("herlev", "baseline_size_forest", "grouped", 0, 231, "accuracy", 0.30, 0.2, 0.4, None),
    ("herlev", "baseline_all_forest", "grouped", 0, 231, "accuracy", 0.40, 0.3, 0.5, None),
    ("herlev", "combined_without_cell", "grouped", 0, 231, "accuracy", 0.70, 0.6, 0.8, None),
    ("colposcopy", "sgd", "paper", 0, 444, "f1_macro", 0.55, 0.5, 0.6, 0.79),
]
COLUMNS = ["task", "pipeline", "protocol", "fold", "n_test", "metric"]
COLUMNS += ["value", "low", "high", "paper"]
APART = pd.DataFrame(
    [
        ("herlev", "grouped", "combined", "mse", 0.80, 0.70, -0.10, -0.20, 0.01),
        ("herlev", "grouped", "combined_whole", "mse", 0.70, 0.60, -0.10, -0.15, -0.05),
        ("herlev", "paper", "combined", "mse", 0.50, 0.40, -0.10, -0.15, -0.05),
        ("herlev", "grouped", "combined", "accuracy", 0.5, 0.6, 0.10, 0.05, 0.15),
        ("herlev", "grouped", "regression", "mse", 0.80, 0.99, 0.19, 0.10, 0.30),
    ],
    columns=[
        "task",
        "protocol",
        "pipeline",
        "metric",
        "first",
        "second",
        "difference",
        "low",
        "high",
    ],
)
STEMS = ["01_data", "03_cells_paper-0", "03_cells_grouped-1", "05_comparison"]
TABLES = ["herlev-paper-0", "herlev-grouped-1", "colposcopy-paper-0"]


@pytest.fixture
def report(tmp_path):
    """A report folder with what the notebooks leave, and pages and tables of an earlier call."""
    results = pd.DataFrame(ROWS, columns=COLUMNS).sort_values("task", kind="stable")
    results.to_csv(tmp_path / "results.csv", index=False)
    APART.to_csv(tmp_path / "differences.csv", index=False)
    for stem in [*STEMS, "03_cells_grouped-2"]:
        cells = [code("f", output({"image/svg+xml": SVG.replace("9", "7")}))]
        if stem.startswith("03"):
            cells += [code("f", output({"image/svg+xml": SVG}), tags=["thumbnail"])]
        file = write(tmp_path / f"{stem}.ipynb", new_markdown_cell(f"# {stem[:2]} {BAD}"), *cells)
        book = nbformat.read(file, as_version=4)
        book.metadata.papermill["parameters"] = {"page_names": TABLES} if stem[:2] == "05" else {}
        nbformat.write(book, file)
        pages.to_html(file, tmp_path / f"{stem}.html")
    (tmp_path / "predictions").mkdir()
    for table in [*TABLES, "herlev-grouped-2"]:
        task = table.split("-")[0]
        run = tmp_path / "runs" / task / "combined" / f"{table}-x"
        run.mkdir(parents=True)
        recipe = {"pipeline": "combined", "protocol": "paper", "fold": 0, "epochs": len(table)}
        recipe["weights"] = f"/home/alice/{BAD}w.pth"
        (run / "recipe.json").write_text(json.dumps(recipe))
        rows = [("combined", run.name, "a"), ("combined", run.name, "b"), ("baseline", "", "a")]
        frame = pd.DataFrame(rows, columns=["pipeline", "run", "id"])
        frame.to_csv(tmp_path / "predictions" / f"{table}.csv", index=False)
    for file in ("attribution.csv", "model_card_gone.html", "notes.txt"):
        (tmp_path / file).write_text("")
    pages.write_run_json(tmp_path, SETTINGS, {"herlev": "f" * 12}, STEMS)
    return tmp_path


def rows_of(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub("<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_the_overview_shows_the_numbers(report):
    html = pages.write_index(report, "paper", STEMS).read_text("utf-8")
    pipeline, best = "classification + regression", "best without a network, grouped"
    forest = "0.400 (0.300 to 0.500) random forest on all features"
    value, grouped = "0.787 (0.731 to 0.842)", "0.550 (0.450 to 0.650)"
    expected = [
        ["pipeline", "metric", "folds", "published", "random split", "grouped split", best],
        [pipeline, "accuracy", "1 to 2", "0.745", value, grouped, forest],
        [pipeline, "MSE of the score", "1", "0.51", "not run", "0.800 (0.700 to 0.900)", "–"],
        ["pipeline", "metric", "folds", "published", "random split", best],
        ["paper C as written", "F1, macro", "1", "0.79", "0.550 (0.500 to 0.600)", "–"],
    ]
    assert rows_of(html)[:5] == expected
    findings = " ".join(Page(html).text("ol").split())
    assert "as published, within the uncertainty where no relative" not in findings
    assert f"Accuracy {grouped} then, {value} on random images, 0.745 published" in findings
    assert "the published accuracy is not reached" in findings  # 0.745 lies above 0.450 to 0.650
    assert f"Without any network: {forest.replace(') ', '), ')}." in findings
    assert "without_cell" not in html and "0.99" not in html
    assert problems(html) == [] and "demonstration" not in html
    assert DISCLAIMER in Page(html).text("aside")
    assert "alice" not in html and "f" * 12 in html


def test_the_overview_says_of_every_pair_what_the_constraint_changes(report):
    def said() -> list[str]:
        html = pages.write_index(report, "paper", STEMS).read_text("utf-8")
        rows = [" ".join(item.text.split()) for item in BeautifulSoup(html, "html.parser")("li")]
        return [row for row in rows if "regression constraint" in row]

    first, second = said()  # of the grouped split and the squared error alone
    place = "the squared error on slides never seen"
    assert f"does not clearly change {place} (classification + regression)" in first
    assert "0.700 with it, 0.800 without" in first
    assert f"constraint lowers {place} (both, whole" in second
    assert "-0.100 (-0.150 to -0.050) on the same" in second
    APART.assign(low=0.1, high=0.2).to_csv(report / "differences.csv", index=False)
    assert all(f"constraint raises {place}" in row for row in said())
    APART[:0].to_csv(report / "differences.csv", index=False)
    assert said() == []


def test_the_overview_groups_pages_and_takes_tagged_figures_only(report):
    page = Page(pages.write_index(report, "<b>demo", STEMS).read_text("utf-8"))
    links = [a["href"] for a in page.all("a") if re.match(r"\d", a["href"])]
    assert links == [f"{stem}.html" for stem in sorted(STEMS)]
    assert "grouped split, fold 1" in page.text("li") and "1 min 15 s" in page.text("li")
    assert len([a for a in page.all("li") if a.get("class") == "card"]) == 3
    glance, thumbnail = page.all("img")
    assert base64.b64decode(thumbnail["src"].partition(",")[2]).decode() == SVG
    assert "random split, classification + regression: 0.787 (0.731 to 0.842)" in glance["alt"]
    assert "published, paper C as written" not in glance["alt"]  # no accuracy was measured
    assert page.text("h3").count(BAD) == 3
    assert page.text("h1") == "Cervical screening images: report “<b>demo”"


def test_a_report_keeps_only_the_pages_and_tables_of_its_configuration(report):
    pages.write_index(report, "paper", STEMS)
    found = {str(file.relative_to(report)) for file in report.rglob("*") if file.is_file()}
    stale = {"03_cells_grouped-2.ipynb", "03_cells_grouped-2.html", "attribution.csv"}
    stale |= {"predictions/herlev-grouped-2.csv", "model_card_gone.html"}
    assert not stale & found
    assert {f"{stem}.{kind}" for stem in STEMS for kind in ("html", "ipynb")} <= found
    assert {f"predictions/{table}.csv" for table in TABLES} <= found
    assert "notes.txt" in found
    assert len(list(report.glob("runs/*/*/*/recipe.json"))) == len(TABLES) + 1  # runs stay


def links_of(file: Path) -> list[str]:
    """Relative addresses that a page leads to, without the part of the page."""
    found = [a["href"].partition("#")[0] for a in Page(file.read_text("utf-8")).all("a")]
    return [address for address in found if address and "://" not in address]


def test_every_link_of_a_report_leads_somewhere(report):
    for stem in STEMS:
        pages.to_html(report / f"{stem}.ipynb", report / f"{stem}.html", STEMS)
    pages.write_index(report, "paper", STEMS)
    for page in report.glob("*.html"):
        assert [name for name in links_of(page) if not (page.parent / name).is_file()] == []
    first, *_, last = sorted(STEMS)
    assert links_of(report / f"{first}.html") == ["index.html", f"{sorted(STEMS)[1]}.html"] * 2
    assert links_of(report / f"{last}.html") == ["index.html", f"{sorted(STEMS)[-2]}.html"] * 2
    assert "index.html" in links_of(report / "model_card_herlev.html")


def test_tables_stay_where_no_page_names_any(report):
    pages.write_index(report, "paper", [stem for stem in STEMS if stem[:2] != "05"])
    assert len(list((report / "predictions").glob("*.csv"))) == len(TABLES) + 1


def test_attributions_stay_where_notebook_4_is_asked_for(report):
    explained = report / "04_explainability.ipynb"
    explained.write_text((report / "01_data.ipynb").read_text())
    pages.write_index(report, "paper", [*STEMS, explained.stem])
    assert (report / "attribution.csv").is_file()


def test_a_model_card_names_data_recipes_and_numbers_of_the_runs_in_use(report):
    pages.write_index(report, "paper", STEMS)
    html = (report / "model_card_herlev.html").read_text("utf-8")
    facts = {row[0]: row[1:] for row in rows_of(html)}
    assert problems(html) == [] and "alice" not in html and BAD not in html
    assert facts["Networks trained"] == ["2"]  # that of a fold not asked for any more is left out
    assert facts["Epochs"] == [f"{len('herlev-grouped-1')}, {len('herlev-paper-0')}"]
    assert facts["Initial weights"] == ["&lt;img src=x onerror=alert(1)&gt;.jpgw.pth"]
    assert facts["Architecture"] == ["not recorded"]
    assert facts["Pipelines"] == ["classification + regression"]
    assert facts["Fingerprint"] == ["f" * 12] and "NiSIS 2005" in facts["Source"][0]
    assert "light dysplastic, moderate dysplastic" in facts["Classes, in order of severity"][0]
    assert any("0.550 (0.450 to 0.650)" in row for row in rows_of(html))
    assert DISCLAIMER in Page(html).text("aside")
    assert {file.name for file in report.glob("model_card_*")} == {
        "model_card_herlev.html",
        "model_card_colposcopy.html",
    }


@pytest.mark.parametrize("name", ["index.html", "model_card_herlev.html"])
def test_the_demo_is_said_to_mean_nothing(report, name):
    pages.write_run_json(report, {**SETTINGS, "data_root": "demo"}, {}, STEMS)
    pages.write_index(report, "mine", STEMS)
    assert "demonstration run" in (report / name).read_text("utf-8")


def test_run_json(report):
    run = json.loads((report / "run.json").read_text())
    assert run["seconds"] == dict.fromkeys(STEMS, 75.0)
    assert run["configuration"] == {**SETTINGS, "data_root": "cervix", "weights": "w.pth"}
    assert run["data_fingerprint"] == {"herlev": "f" * 12}
    assert {"python", "torch"} <= set(run["versions"])
