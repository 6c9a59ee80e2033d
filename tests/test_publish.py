"""What may be shared of a report: numbers, drawn figures and pages; and that the published numbers
follow from it."""

import base64
import io
import json
import lzma
import re
import shutil
from dataclasses import asdict
from itertools import product
from pathlib import Path
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import toys
from nbformat.v4 import new_code_cell, new_notebook, new_output
from test_metrics import drawn
from test_pages import Page, links_of, problems

from cervix_utils import paths
from cervix_utils.data import tables
from cervix_utils.evaluation import baselines, metrics
from cervix_utils.report import pages
from tools import publish

PUBLISHED = paths.ROOT / "reports" / "published"
README = f"before\n{publish.BEGIN}\nold\n{publish.END}\nafter\n"
RUN = json.dumps(
    {
        "name": "toy",
        "date": "2026-01-02T03:04",
        "commit": "unknown",
        "seconds": {},
        "configuration": {"seed": 0},
        "data_fingerprint": {},
        "versions": {},
    }
)
LINES = '<svg xmlns="http://www.w3.org/2000/svg"><style></style><path d="M 0 0 L 9 9"/></svg>'


def figure(kind: str) -> str:
    """A small figure as the notebooks have it: SVG, of lines or of an image."""
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "x"}):
        fig, ax = plt.subplots(figsize=(2, 2))
        if kind == "image":
            ax.imshow(np.random.default_rng(0).random((8, 8)))
        else:
            ax.scatter(np.linspace(0, 1, 40), np.linspace(0, 1, 40) ** 2, label="Kendall's tau")
            ax.plot([0, 1], [0, 1], "--", clip_on=True)
            ax.set_title("50 % #1 'and' so on")
        text = io.StringIO()
        fig.savefig(text, format="svg")
        plt.close(fig)
    return text.getvalue()


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Function: a finished report ``toy`` of one run and one baseline; its notebooks 4 and 5 had
    these parameters and outputs."""
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))

    def make(parameters=(), data=None, stems=("04_explainability", "05_comparison")):
        folder = tmp_path / "toy"
        frame = drawn("plain", 0).assign(run="paper-0-abc")
        frame.loc[frame.index[:9], "part"] = "train"
        baseline = drawn("plain", 1).assign(pipeline="baseline_all_forest")
        both = pd.concat([frame, baseline], ignore_index=True)
        metrics.write(both, paths.predictions_file(folder, "herlev", "paper", 0))
        run = folder / "runs" / "herlev" / "combined" / "paper-0-abc"
        run.mkdir(parents=True)
        recipe = {"task": "herlev", "pipeline": "combined", "protocol": "paper", "fold": 0}
        recipe |= {"epochs": 3, "weights": "/home/alice/w.pth"}
        (run / "recipe.json").write_text(json.dumps(recipe))
        (run / "model.safetensors").write_bytes(b"weights")
        pd.DataFrame({"epoch": [1, 2]}).to_csv(run / "history.csv", index=False)
        metrics.results(both, 20).to_csv(folder / "results.csv", index=False)
        (folder / "differences.csv").write_text("metric,protocol,pipeline\n")
        (folder / "run.json").write_text(RUN)
        (folder / "attribution.csv").write_text("id,x\nNA,0.10\n")
        (folder / "attribution").mkdir()
        (folder / "attribution" / "maps.npz").write_bytes(b"maps")
        for stem in stems:
            cell = new_code_cell("", metadata={"tags": ["thumbnail"]})
            shown = data or {"image/svg+xml": LINES}
            cell.outputs = [new_output("display_data", data=shown) for _ in range(2)]
            papermill = {"parameters": dict(parameters), "duration": 1.0}
            book = new_notebook(cells=[cell], metadata={"papermill": papermill})
            nbformat.write(book, folder / f"{stem}.ipynb")
            pages.to_html(folder / f"{stem}.ipynb", folder / f"{stem}.html")
        return folder

    return make


def content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


NUMBERS = {
    "index.html",
    "results.csv",
    "differences.csv",
    "run.json",
    "recipes.jsonl",
    "histories.csv",
    "herlev.csv.xz",
}
EXPLAINED = {"04_explainability.html", "attribution.csv.xz"}


def test_numbers_and_pages_are_copied_and_models_and_maps_stay(report, tmp_path):
    folder, target = report(), tmp_path / "published"
    target.mkdir()
    for old in ("README.md", "03_old.html", "tries.csv", "colposcopy.csv.xz", "larger.csv.xz"):
        (target / old).write_text("kept?")
    assert publish.publish("toy") == target
    kept = {"README.md", "tries.csv", "larger.csv.xz"}
    assert set(content(target)) == NUMBERS | EXPLAINED | kept | {"05_comparison.html"}
    assert (target / "results.csv").read_bytes() == (folder / "results.csv").read_bytes()
    frames = metrics.read_file(target / "herlev.csv.xz"), metrics.read(folder)["herlev"]
    pd.testing.assert_frame_equal(*(frame[frame["part"] != "train"] for frame in frames))
    numbers = [frame[frame["part"] == "train"].filter(regex="^p_|^score$") for frame in frames]
    np.testing.assert_allclose(*numbers, atol=0.01 + 1e-9)  # two digits, and of a row still 1
    np.testing.assert_allclose(numbers[0], numbers[0].round(2), rtol=1e-12)
    assert len(numbers[0]) == 9 and not np.allclose(*numbers, atol=1e-4)
    (line,) = (target / "recipes.jsonl").read_text().splitlines()
    recipe = json.loads(line)
    assert recipe["predictions"] == "herlev.csv.xz" and recipe["run"] == "paper-0-abc"
    assert (recipe["epochs"], recipe["weights"]) == (3, "w.pth")
    history = pd.read_csv(target / "histories.csv")
    assert list(history["epoch"]) == [1, 2] and set(history["run"]) == {"paper-0-abc"}
    assert lzma.decompress((target / "attribution.csv.xz").read_bytes()) == b"id,x\nNA,0.10\n"
    first = content(target)
    publish.publish("toy")  # again, over what is there
    assert content(target) == first and not list(tmp_path.glob(".*"))


def test_of_notebooks_2_and_3_the_first_fold_is_published(report, tmp_path):
    folds = [f"03_herlev_resnet101_{place}" for place in ("grouped-0", "paper-0", "paper-1")]
    report(stems=(*folds, "05_comparison"))
    target = publish.publish("toy")
    assert sorted(page.stem for page in target.glob("0*.html")) == [*folds[:2], "05_comparison"]


def test_a_report_without_notebook_4_leaves_the_published_explanations(report, tmp_path):
    folder = report()
    target = publish.publish("toy")
    (target / "04_explainability.html").write_text("old")
    for file in ("04_explainability.html", "04_explainability.ipynb", "attribution.csv"):
        (folder / file).unlink()
    publish.publish("toy")
    assert (target / "04_explainability.html").read_text() == "old"
    assert (target / "attribution.csv.xz").is_file()


def test_notebook_8_of_another_report_goes_beside_what_is_published(report, tmp_path):
    folder = report(stems=("05_comparison", "08_elsewhere"))
    target = publish.publish("toy")
    before = content(target)
    asked = drawn("plain", 2).assign(run="paper-0-abc")
    asked.loc[asked.index[:9], "part"] = "train"
    for name in ("herlev", "herlev_after"):  # the first has the name of a published table
        metrics.write(asked, folder / "elsewhere" / f"{name}.csv")
    (folder / "elsewhere.csv").write_text("benign,value\nleft out,0.8\n")
    publish.add_elsewhere(folder)
    after = content(target)
    added = {f"elsewhere/{name}.csv.xz" for name in ("herlev", "herlev_after")}
    added |= {"08_elsewhere.html", "elsewhere.csv"}
    assert set(after) == set(before) | added
    assert {name: after[name] for name in before} == before
    frame = metrics.read_file(target / "elsewhere" / "herlev_after.csv.xz")
    wanted = asked[asked["part"] == "test"]
    assert frame["id"].tolist() == wanted["id"].tolist() and len(wanted) < len(asked)
    np.testing.assert_allclose(frame["score"], wanted["score"], atol=6e-6)
    publish.publish("toy")  # again: what is of the other report stays
    assert set(content(target)) == set(after)


@pytest.mark.parametrize("broken", ["copy", "table", "size"])
def test_what_is_published_stays_when_publishing_fails(report, tmp_path, monkeypatch, broken):
    report()
    target = publish.publish("toy")
    (target / "03_page.html").write_text("old")
    before = content(target)

    def full(*_arguments, **_options):
        raise OSError("disk full")

    if broken == "copy":
        monkeypatch.setattr(publish.shutil, "copyfile", full)
    elif broken == "table":
        monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    else:
        monkeypatch.setattr(publish, "BYTES", 100)
    with pytest.raises((OSError, publish.PublishError), match=r"disk full|too much"):
        publish.publish("toy")
    assert content(target) == before
    assert {folder.name for folder in tmp_path.iterdir()} == {"toy", "published"}


@pytest.mark.parametrize("files", [publish.FILES, publish.FILES + 1])
def test_more_files_than_git_should_carry_are_refused(tmp_path, files):
    for k in range(files):
        (tmp_path / f"{k}.txt").write_text("")
    if files > publish.FILES:
        with pytest.raises(publish.PublishError, match=r"41 files.*at most 40"):
            publish.check_size(tmp_path)
    else:
        publish.check_size(tmp_path)


IMAGE, LINE = figure("image"), figure("line")
HIDDEN = f'<svg><use href="data:image/svg+xml;base64,{base64.b64encode(IMAGE.encode()).decode()}"/>'
BITMAPS = {
    "a picture shown": {"image/png": "iVBOR"},
    "an image in a figure": {"image/svg+xml": IMAGE},
    "an image in a figure in a figure": {"image/svg+xml": HIDDEN},
    "a picture in a table": {"text/html": '<img src="data:image/jpeg;base64,/9j/4AA">'},
    "a readable address": {"text/html": f"<img src='data:image/svg+xml,{quote(IMAGE)}'>"},
}


@pytest.mark.parametrize("name", BITMAPS)
def test_pages_with_a_bitmap_are_refused_and_nothing_is_written(report, tmp_path, name):
    report((), BITMAPS[name])
    with pytest.raises(publish.PublishError, match="holds a bitmap"):
        publish.publish("toy")
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("name", BITMAPS)
def test_a_bitmap_is_found_in_the_page_alone(report, name):
    """The page is read itself, whatever the notebook beside it says."""
    folder = report((), BITMAPS[name])
    made = (folder / "05_comparison.html").read_text("utf-8")
    report_again = new_notebook(metadata={"papermill": {"parameters": {}}})
    nbformat.write(report_again, folder / "05_comparison.ipynb")
    with pytest.raises(publish.PublishError, match="holds a bitmap"):
        publish.check_page(folder / "05_comparison.html")
    (folder / "05_comparison.html").write_text(re.sub(r'src="[^"]*"', "", made))
    publish.check_page(folder / "05_comparison.html")


def test_lines_and_words_are_no_bitmap():
    assert "<image" in IMAGE and "<image" not in LINE
    assert not publish.holds_bitmap(LINE)
    assert not publish.holds_bitmap("masks named &lt;image&gt;-d.bmp beside the images")
    page = base64.b64encode(LINE.encode()).decode()
    assert not publish.holds_bitmap(f'<img src="data:image/svg+xml;base64,{page}">')


@pytest.mark.parametrize("key", ["show_cells", "show_photographs"])
def test_reports_with_pictures_are_refused_and_nothing_is_written(report, tmp_path, key):
    report({key: True})
    with pytest.raises(publish.PublishError, match=f"made with pictures: set {key} to false"):
        publish.publish("toy")
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize("name", [*publish.RECORDS, "05_comparison.ipynb"])
def test_what_is_missing_is_named(report, name):
    (report() / name).unlink()
    with pytest.raises(publish.PublishError, match=f"{name} is missing: make reports CONFIG=toy"):
        publish.publish("toy")


# Small figures


def numbers_of(svg: str) -> np.ndarray:
    """All coordinates of a drawing, in order."""
    root = ElementTree.fromstring(svg)
    values = [element.get(key, "") for element in root.iter() for key in ("d", "x", "y")]
    return np.array(re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", " ".join(values)), dtype=float)


def looks_of(svg: str) -> list[str]:
    """Style of each drawn element in order, through classes."""
    rules = dict(re.findall(r"\.(s\d+)\{([^}]*)\}", svg))
    elements = [e for e in ElementTree.fromstring(svg).iter() if not e.tag.endswith("}g")]
    return [rules.get(element.get("class"), element.get("style", "")) for element in elements]


def test_a_slim_figure_is_the_same_drawing():
    svg = publish.slim(LINE)
    assert len(svg) < 0.6 * len(LINE)
    np.testing.assert_allclose(numbers_of(svg), numbers_of(LINE), rtol=6e-4, atol=1e-9)
    plain = re.sub(r"<metadata>.*?</metadata>", "", LINE, flags=re.DOTALL)
    assert looks_of(svg) == [look.replace("'", "") for look in looks_of(plain)]
    assert "50 % #1 'and' so on" in svg
    targets = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    assert targets and targets == set(re.findall(r' id="([\w.-]+)"', svg))


def test_a_slim_page_is_the_same_page(tmp_path):
    code = new_code_cell("from numpy import pi  # 3\nprint('n', pi)")
    code.outputs = [new_output("display_data", data={"image/svg+xml": LINE})]
    nbformat.write(new_notebook(cells=[code]), tmp_path / "a.ipynb")
    page = pages.to_html(tmp_path / "a.ipynb", tmp_path / "a.html").read_text("utf-8")
    slim = publish.slim_page(page)
    assert problems(slim) == [] and len(slim) < len(page)
    for tag in ("main", "details", "style", "script"):
        assert "".join(Page(slim).text(tag).split()) == "".join(Page(page).text(tag).split())
    (figure,) = Page(slim).all("img")
    assert figure["alt"] == Page(page).all("img")[0]["alt"]
    drawing = unquote(figure["src"].removeprefix("data:image/svg+xml,"))
    np.testing.assert_allclose(numbers_of(drawing), numbers_of(LINE), rtol=6e-4, atol=1e-9)


# README


def rows(values: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(values, columns=metrics.COLUMNS)


RESULTS = rows(
    [
        ("herlev", "combined", "paper", "0", 230, "accuracy", 0.74, 0.70, 0.78, 0.745),
        ("herlev", "combined", "grouped", "0", 230, "accuracy", 0.58, 0.50, 0.66, 0.745),
        ("herlev", "combined", "paper", "0", 230, "mse", 0.50, 0.40, 0.60, 0.51),
        ("herlev", "combined_without_cell", "grouped", "0", 230, "accuracy", 0.2, 0.1, 0.3, np.nan),
        ("herlev", "baseline_all_forest", "grouped", "0", 230, "accuracy", 0.55, 0.5, 0.6, np.nan),
    ]
)  # fmt: skip


def test_the_table_of_the_readme_has_a_line_a_number_and_the_best_baseline():
    text = publish.with_table(README, RESULTS)
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    accuracy = "| classification + regression | accuracy | 1 | 0.745 | 0.740 (0.700 to 0.780) "
    accuracy += "| 0.580 (0.500 to 0.660) | 0.550 (0.500 to 0.600) random forest on all features |"
    assert accuracy in text.splitlines()
    error = "|  | MSE of the score |  | 0.51 | 0.500 (0.400 to 0.600) | not run | – |"
    assert error in text.splitlines() and "**Herlev cells**" in text
    assert "without" not in text.replace("without a network", "") and "baseline" not in text
    assert publish.with_table(text, RESULTS) == text


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(publish.PublishError, match="needs one line"):
        publish.with_table("no marks", RESULTS)


def test_the_command_publishes_and_makes_the_table(report, tmp_path, monkeypatch, capsys):
    folder = report()
    monkeypatch.setattr(publish.paths, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    publish.main(["toy"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "published")
    made = (tmp_path / "README.md").read_text()
    assert "| classification + regression | accuracy | 1 |" in made
    (tmp_path / "README.md").write_text(README)
    publish.main([])
    assert (tmp_path / "README.md").read_text() == made
    (folder / "results.csv").unlink()
    with pytest.raises(SystemExit, match=r"results.csv is missing: make reports CONFIG=toy first"):
        publish.main(["toy"])


def test_networks_are_added_under_a_name_of_their_own(report, tmp_path):
    report()
    target, folder = publish.publish("toy"), tmp_path / "whole" / "paper-0-def"
    run = json.loads((target / "run.json").read_text())
    run["configuration"] |= {"n_boot": 20}
    (target / "run.json").write_text(json.dumps(run))
    frame = drawn("plain", 2)
    rows = frame[[*tables.columns("herlev")]].round(6)
    recipe = asdict(toys.recipe_of()) | {"parts": {"test": len(rows)}}
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))
    rows.to_csv(folder / "predictions.csv", index=False)
    pd.DataFrame({"epoch": [1], "train_loss": [0.5]}).to_csv(folder / "history.csv", index=False)
    publish.add(folder.parent, "combined_whole")
    added = metrics.read_file(target / "herlev.csv.xz").query("pipeline == 'combined_whole'")
    assert list(added["run"].unique()) == ["paper-0-def"] and len(added) == len(rows)
    results = pd.read_csv(target / "results.csv", dtype={"fold": str})
    again = metrics.results(added, 20, 0)
    kept = results.query("pipeline == 'combined_whole'")
    np.testing.assert_allclose(kept["value"], again["value"], atol=1e-6)
    assert {"combined", "combined_whole"} <= set(results["pipeline"])
    lines = [json.loads(x) for x in (target / "recipes.jsonl").read_text().splitlines()]
    assert [line["pipeline"] for line in lines] == ["combined", "combined_whole"]
    assert set(pd.read_csv(target / "histories.csv")["run"]) == {"paper-0-abc", "paper-0-def"}
    with pytest.raises(publish.PublishError, match="has a pipeline 'combined_whole' already"):
        publish.add(folder.parent, "combined_whole")
    with pytest.raises(publish.PublishError, match="holds no run folders"):
        publish.add(tmp_path, "other")


# What is published

published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="nothing was published yet")
TABLES = ["herlev", "colposcopy"]


@pytest.fixture(scope="module")
def frames() -> dict[str, pd.DataFrame]:
    """Task -> published predictions, averages of them included."""
    tables = {name: metrics.read_file(PUBLISHED / f"{name}.csv.xz") for name in TABLES[:2]}
    return {name: pd.concat([table, baselines.averages(table)]) for name, table in tables.items()}


def same(again: pd.DataFrame, kept: pd.DataFrame, columns: list[str]) -> None:
    keys = [*metrics.KEYS, "fold", "metric", *columns]
    again, kept = (table[keys].reset_index(drop=True) for table in (again.round(6), kept))
    pd.testing.assert_frame_equal(again, kept, check_dtype=False, atol=2e-6, rtol=0)


@published
@pytest.mark.slow
def test_every_published_value_follows_from_the_published_predictions(frames):
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    same(metrics.results(frames, 2, 0), kept, ["n_test", "value", "paper"])


@published
@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "pipeline"), [("herlev", "average_with_baseline"), ("colposcopy", "modern")]
)
def test_published_intervals_follow_from_the_published_predictions(frames, task, pipeline):
    settings = json.loads((PUBLISHED / "run.json").read_text())["configuration"]
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    rows = frames[task].query("pipeline == @pipeline")
    again = metrics.results(rows, settings["n_boot"], settings["seed"])
    kept = kept.query("task == @task and pipeline == @pipeline")
    same(again, kept, ["value", "low", "high"])


@published
@pytest.mark.slow
def test_values_of_another_hospital_follow_from_the_published_predictions():
    kept = pd.read_csv(PUBLISHED / "elsewhere.csv", dtype={"fold": str})
    rows = metrics.read_file(PUBLISHED / "elsewhere" / "herlev_on_sipakmed.csv.xz")
    ties = "baseline_all_logistic"  # saturates: five digits make ties of it
    kept, rows = (table[table["pipeline"] != ties] for table in (kept, rows))
    kind, keys = rows["id"].str.partition("/")[0], [*metrics.KEYS, "fold", "metric"]
    for benign, classes in {"counted as normal": [], "left out": ["metaplastic"]}.items():
        seen = rows[~kind.isin(classes)]
        again = metrics.results(seen, 2, 0, ["sensitivity", "specificity"]).set_index(keys)
        wanted = kept[kept["benign"] == benign].set_index(keys)
        assert set(wanted.index) == set(again.index) and len(wanted) > 100
        np.testing.assert_allclose(again.loc[wanted.index, "value"], wanted["value"], atol=1e-5)


@published
@pytest.mark.parametrize("name", TABLES)
def test_published_parts_share_no_image_and_grouped_ones_no_group(name):
    frame = metrics.read_file(PUBLISHED / f"{name}.csv.xz")  # refuses an image twice in a fold
    networks = frame[frame["run"] != ""]
    for (_, protocol, _), rows in networks.groupby(["pipeline", "protocol", "fold"]):
        parts = {part: set(group) for part, group in rows.groupby("part")["group"]}
        assert parts.keys() in ({"train", "valid", "test"}, {"train", "test"})
        if protocol == "grouped":
            assert sum(map(len, parts.values())) == rows["group"].nunique()
    assert set(frame.loc[frame["run"] == "", "part"]) <= {"test"}


@published
def test_every_published_network_has_its_recipe_and_history():
    lines = (PUBLISHED / "recipes.jsonl").read_text().splitlines()
    keys = ["predictions", "run", "task", "pipeline", "protocol", "fold"]
    recipes = pd.DataFrame(map(json.loads, lines))
    histories = pd.read_csv(PUBLISHED / "histories.csv")
    frames = {name: metrics.read_file(PUBLISHED / f"{name}.csv.xz") for name in TABLES}
    used = [frame.assign(predictions=f"{name}.csv.xz") for name, frame in frames.items()]
    used = pd.concat(used)[keys].query("run != ''").drop_duplicates()
    sets = [set(table[keys].itertuples(index=False, name=None)) for table in (recipes, used)]
    assert sets[0] == sets[1] == set(histories[keys].itertuples(index=False, name=None))
    assert len(recipes) == len(sets[0])
    epochs = histories.groupby(keys).size().reset_index(name="n")
    assert (epochs.merge(recipes, on=keys)["n"] == epochs.merge(recipes, on=keys)["epochs"]).all()


@published
def test_published_files_are_few_small_and_of_known_kinds():
    publish.check_size(PUBLISHED)
    kinds = {file.suffix for file in PUBLISHED.rglob("*") if file.is_file()}
    assert kinds <= {".csv", ".xz", ".json", ".jsonl", ".md", ".svg", ".html"}


@published
def test_published_files_hold_no_bitmap_and_name_no_folder_of_a_machine():
    for file in PUBLISHED.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            text = (lzma.decompress(content) if file.suffix == ".xz" else content).decode("utf-8")
            assert not publish.holds_bitmap(text), file
            assert str(Path.home()) + "/" not in text and str(paths.ROOT) not in text, file


@published
@pytest.mark.parametrize("page", sorted(PUBLISHED.glob("*.html")), ids=lambda page: page.stem)
def test_published_pages_load_nothing_and_their_figures_are_whole(page):
    text = page.read_text("utf-8")
    assert problems(text) == []
    sources = [image["src"] for image in Page(text).all("img")]
    assert len(sources) >= (1 if page.stem == "index" else 2)
    for source in sources:
        root = ElementTree.fromstring(unquote(source.removeprefix("data:image/svg+xml,")))
        assert root.tag.endswith("svg")


@published
@pytest.mark.parametrize("page", sorted(PUBLISHED.glob("*.html")), ids=lambda page: page.stem)
def test_every_link_of_a_published_page_leads_somewhere(page):
    wanted = links_of(page)
    assert wanted and [name for name in wanted if not (PUBLISHED / name).exists()] == []


@published
def test_the_published_overview_is_that_of_the_published_numbers(tmp_path):
    shutil.copytree(PUBLISHED, tmp_path / "published")
    again = publish.write_index(tmp_path / "published").read_text("utf-8")
    assert again == (PUBLISHED / "index.html").read_text("utf-8")


@published
def test_published_attributions_are_of_test_images_once_a_method_and_have_converged():
    table = pd.read_csv(PUBLISHED / "attribution.csv.xz")
    cells = metrics.read_file(PUBLISHED / "herlev.csv.xz")
    explained = "pipeline == 'combined_whole' and protocol == 'grouped' and fold == 0"
    cells = cells.query(explained).set_index("id")["part"]
    assert (table["id"].map(cells) == "test").all()
    assert not table.duplicated(["network", "method", "baseline", "id"]).any()
    gradients = table[table["method"] == "integrated_gradients"]
    off = gradients["score"] - gradients["start_score"]
    assert len(gradients) and gradients["delta"].abs().max() <= 0.1 and np.isfinite(off).all()
    regions = ("nucleus", "cytoplasm", "background", "unknown")
    for form in ("signed", "absolute", "positive"):
        usable = table[table[f"{form}_usable"].astype(bool)]
        total = usable[[f"{form}_at_{region}" for region in regions]].sum(axis=1)
        allowed = 1e-4 * (1 + usable[f"{form}_at_nucleus"].abs().max())
        np.testing.assert_allclose(total, 1, atol=allowed)


@published
def test_the_readme_shows_what_sixteen_networks_say():
    table = pd.read_csv(PUBLISHED / "attribution_networks.csv").query("fold == 'all'")
    readme = (PUBLISHED / "README.md").read_text()
    for form, name in product(["signed", "absolute"], ["rise", "beyond area", "trend, area held"]):
        shown = table[[f"{form} {name}{end}" for end in ("", " low", " high")]].to_numpy()
        texts = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*row) for row in shown)
        assert f"| {form} {name} | {texts} |" in readme
    assert len(table) == 8 and not table["delta above 0.1"].any()
    given = table.drop_duplicates("initial weights").set_index("initial weights")
    none, imagenet, smooth = (given.loc[k] for k in ("none", "ImageNet", "ImageNet, smoothed"))
    graded = f"accuracy {none['accuracy']:.3f} and MSE {none['mse']:.2f}"
    assert f"{graded} against {imagenet['accuracy']:.3f} and {imagenet['mse']:.2f}" in readme
    assert f"accuracy {smooth['accuracy']:.3f} and MSE {smooth['mse']:.2f}." in readme


@published
def test_published_differences_are_those_of_the_published_means():
    apart = pd.read_csv(PUBLISHED / "differences.csv")
    means = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str}).query("fold == 'mean'")
    means = means.set_index([*metrics.KEYS, "metric"])["value"]
    for column, pipeline in (("first", "other"), ("second", "pipeline")):
        places = apart[["task", pipeline, "protocol", "metric"]].itertuples(index=False, name=None)
        np.testing.assert_allclose(apart[column], means.loc[list(places)], atol=2e-6)
    readme = (PUBLISHED / "README.md").read_text()
    for pipeline in ("combined_whole", "regression_whole"):  # trained alike, but for the loss
        like = apart[apart["pipeline"] == pipeline]
        assert set(like["other"]) == {"classification_whole"}
        assert set(like["protocol"]) == {"grouped"}
        row = like.set_index("metric").loc["mse"]
        assert "{difference:+.3f} ({low:+.3f} to {high:+.3f})".format(**row) in readme


@published
def test_the_readme_shows_the_published_results():
    readme = (paths.ROOT / "README.md").read_text()
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    assert publish.with_table(readme, kept) == readme


@published
def test_the_readme_of_the_published_results_names_files_that_are_there():
    readme = (PUBLISHED / "README.md").read_text()
    listed = re.findall(r"^    ([\w.-]+\.(?:csv(?:\.xz)?|jsonl?))(?=[ ,])", readme, re.MULTILINE)
    assert len(listed) >= 8
    assert [name for name in listed if not (PUBLISHED / name).is_file()] == []
    named = re.findall(r"reports/published/([\w.-]+\.\w+)|\]\(([\w.-]+\.html)\)", readme)
    assert [name for name in map("".join, named) if not (PUBLISHED / name).is_file()] == []
