"""What may be shared of a report: numbers, drawn figures and pages; and that the published numbers follow from it."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from test_comparison import results
from test_metrics import drawn

from cervix_utils import metrics, paths, publishing, references, runs
from cervix_utils.datasets import CLASSES

PUBLISHED = paths.ROOT / "reports" / "published"
README = f"before\n{publishing.BEGIN}\nold\n{publishing.END}\nafter\n"


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Function: a finished report ``toy`` of one run and one reference; its notebook 5 had these parameters and output."""
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))

    def make(parameters=(), data=None):
        folder = tmp_path / "toy"
        run = folder / "runs" / "herlev" / "combined" / "paper-0"
        run.mkdir(parents=True)
        table = drawn("plain", 0)[0]
        recipe = {"task": "herlev", "pipeline": "combined", "protocol": "paper", "fold": 0}
        (run / "recipe.json").write_text(json.dumps(recipe))
        (run / "model.safetensors").write_bytes(b"weights")
        pd.DataFrame({"epoch": [1]}).to_csv(run / "history.csv", index=False)
        table.to_csv(run / "predictions.csv", index=False)
        references.write(folder, "herlev", "baseline_all_forest", "paper", 0, drawn("plain", 1)[0])
        found = [*runs.all_runs(folder / "runs", "herlev"), *references.all_references(folder, "herlev")]
        metrics.results(found, 20).to_csv(folder / "results.csv", index=False)
        (folder / "run.json").write_text("{}")
        cell = new_code_cell("", metadata={"tags": ["figure-leakage"]})
        cell.outputs = [new_output("display_data", data=data or {"image/svg+xml": "<svg>leak</svg>"})]
        explained = folder / "attribution" / "combined-paper-0"
        explained.mkdir(parents=True)
        (explained / "attribution.csv").write_text("id\n")
        (explained / "trained-integrated_gradients.npz").write_bytes(b"maps")
        for stem in ("04_explainability", "05_comparison"):
            book = new_notebook(cells=[cell], metadata={"papermill": {"parameters": dict(parameters)}})
            nbformat.write(book, folder / f"{stem}.ipynb")
            (folder / f"{stem}.html").write_text(stem)
        return folder

    return make


EXPLAINED = [
    "04_explainability.html",
    *(f"attribution/combined-paper-0/{name}" for name in ("attribution.csv", "recipe.json", "predictions.csv")),
]


def test_explanations_are_published_alone_beside_what_is_there(report, tmp_path, capsys):
    folder = report()
    for file in ("results.csv", "run.json"):
        (folder / file).unlink()  # a report that is not whole
    kept = tmp_path / "published" / "runs" / "kept.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    publishing.main(["explanations", "toy"])
    target = tmp_path / "published"
    assert capsys.readouterr().out.strip() == str(target)
    found = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    assert found == {*EXPLAINED, "figures/leakage.svg", "runs/kept.csv"}
    (folder / "attribution" / "combined-paper-0" / "attribution.csv").unlink()
    with pytest.raises(
        SystemExit, match=r"no 04_explainability.html with its attribution.csv: make reports CONFIG=toy"
    ):
        publishing.main(["explanations", "toy"])


def test_the_command_line_says_what_is_missing(report):
    (report() / "results.csv").unlink()
    with pytest.raises(SystemExit, match=r"results.csv is missing: make reports CONFIG=toy first"):
        publishing.main(["publish", "toy"])


def test_pages_of_adopted_folds_stay_and_others_go(report, tmp_path):
    run = report() / "runs" / "herlev" / "combined" / "paper-0"
    target, page = publishing.publish("toy"), "03_herlev_resnet101_paper-0.html"
    others = [
        "03_herlev_resnet101_grouped-0.html",
        "02_colposcopy_resnet50_paper-0.html",
        "03_old.html",
    ]  # without runs

    def published_again():
        for name in (page, *others):
            (target / name).write_text("old")
        publishing.publish("toy")
        return {file.name for file in target.glob("*.html")} - {"04_explainability.html", "05_comparison.html"}

    assert published_again() == {page} and (target / page).read_text() == "old"
    second = run.parents[1] / "regression" / "paper-0"
    second.mkdir(parents=True)
    for name in publishing.TABLES:
        (second / name).write_bytes((run / name).read_bytes())
    assert published_again() == set()  # the page does not show the second network
    assert published_again() == {page}  # both are published now
    (run / "predictions.csv").write_text((run / "predictions.csv").read_text() + "\n")
    assert published_again() == set()
    for suffix in (".html", ".ipynb"):  # a page of the report replaces a kept one
        made = (tmp_path / "toy" / "05_comparison").with_suffix(suffix).read_text()
        (tmp_path / "toy" / page).with_suffix(suffix).write_text(made)
    assert published_again() == {page} and (target / page).read_text() == "05_comparison"


def test_a_report_without_notebook_4_leaves_the_published_explanations(report, tmp_path):
    folder = report()
    target = publishing.publish("toy")
    for name in ("attribution-nulls", "photographs-mean-maps", "reliability"):
        (target / "figures" / f"{name}.svg").write_text("old")
    for suffix in (".html", ".ipynb"):
        (folder / "04_explainability").with_suffix(suffix).unlink()
    (target / "04_explainability.html").write_text("old")
    shutil.rmtree(folder / "attribution")
    publishing.publish("toy")
    assert (target / "04_explainability.html").read_text() == "old"
    assert all((target / name).is_file() for name in EXPLAINED)
    assert {file.stem for file in target.glob("figures/*")} == {"attribution-nulls", "photographs-mean-maps", "leakage"}
    book = nbformat.read(paths.NOTEBOOKS / "04_explainability.ipynb", as_version=4)
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", []) if tag.startswith("figure-")]
    assert tags and all(tag.removeprefix("figure-").startswith(publishing.EXPLAINING) for tag in tags)


def test_numbers_figures_and_pages_are_copied_and_models_and_maps_stay(report, tmp_path):
    report()
    (tmp_path / "published").mkdir()
    for old in ("README.md", "03_old.html", "tries.csv"):
        (tmp_path / "published" / old).write_text("kept?")
    target = publishing.publish("toy")
    found = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    run = "runs/herlev/combined/paper-0"
    assert found == {
        *(f"{run}/{name}" for name in ("recipe.json", "history.csv", "predictions.csv")),
        "references/herlev/baseline_all_forest/paper-0.csv",
        *("results.csv", "run.json", "05_comparison.html", "figures/leakage.svg", "README.md", "tries.csv"),
        *EXPLAINED,
    }
    assert (target / "figures" / "leakage.svg").read_text() == "<svg>leak</svg>"
    assert publishing.publish("toy") == target  # again, over what is there


@pytest.mark.parametrize(
    ("parameters", "data", "words"),
    [
        ({"show_cells": True}, None, "was made with pictures"),
        ({"show_photographs": True}, None, "was made with pictures"),
        ({}, {"image/png": "iVBOR"}, "holds a bitmap"),
    ],
)
def test_reports_with_pictures_are_refused_and_nothing_is_written(report, tmp_path, parameters, data, words):
    report(parameters, data)
    with pytest.raises(publishing.PublishError, match=words):
        publishing.publish("toy")
    assert not (tmp_path / "published").exists()


def test_pictures_in_notebook_4_alone_leave_what_is_published_as_it_was(report, tmp_path):
    folder = report()
    book = nbformat.read(folder / "04_explainability.ipynb", as_version=4)
    book.metadata["papermill"] = {"parameters": {"show_cells": True}}
    nbformat.write(book, folder / "04_explainability.ipynb")
    kept = tmp_path / "published" / "runs" / "kept.csv"
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    for publish in (publishing.publish, publishing.publish_explanations):
        with pytest.raises(publishing.PublishError, match=r"04_explainability.html was made with pictures"):
            publish("toy")
    assert [file.name for file in (tmp_path / "published").rglob("*") if file.is_file()] == ["kept.csv"]


@pytest.mark.parametrize("name", ["results.csv", "run.json", "05_comparison.ipynb"])
def test_what_is_missing_is_named(report, name):
    (report() / name).unlink()
    with pytest.raises(publishing.PublishError, match=f"{name} is missing: make reports CONFIG=toy"):
        publishing.publish("toy")


def test_the_table_of_the_readme_has_a_line_a_number_and_the_best_baseline():
    text = publishing.with_table(README, results())
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    assert (
        "| cells, combined | 1 | accuracy | 0.745 | 0.740 (0.700 to 0.780) | 0.580 (0.500 to 0.660) | 0.550 (0.500 to 0.600) all forest |"
        in text
    )
    assert "|  |  | MSE of the score | 0.51 | 0.500 (0.400 to 0.600) | – | 0.700 (0.600 to 0.800) size forest |" in text
    assert "without_nucleus" not in text and "baseline" not in text
    assert publishing.with_table(text, results()) == text


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(publishing.PublishError, match="needs one line"):
        publishing.with_table("no marks", results())


published = pytest.mark.skipif(not (PUBLISHED / "results.csv").exists(), reason="nothing was published yet")


@published
@pytest.mark.slow
@pytest.mark.parametrize("folder", [PUBLISHED, PUBLISHED / "larger"], ids=lambda folder: folder.name)
def test_published_results_follow_from_the_published_predictions(folder):
    settings = json.loads((PUBLISHED / "run.json").read_text())["configuration"]
    found, against = references.everything(folder)
    again = metrics.results([*found, *against], settings["n_boot"], settings["seed"]).round(6)
    kept = pd.read_csv(folder / "results.csv", dtype={"fold": str})
    pd.testing.assert_frame_equal(again, kept, check_dtype=False, atol=2e-6, rtol=0)


@published
def test_published_parts_share_no_image_and_grouped_ones_no_group():
    folders = PUBLISHED / "runs", PUBLISHED / "larger" / "runs"
    found = [run for task in CLASSES for folder in folders for run in runs.all_runs(folder, task)]
    assert len({run.folder.parents[3] for run in found}) == len(folders)
    for run in found:
        assert not run.predictions["id"].duplicated().any()
        parts = {name: set(rows["group"]) for name, rows in run.predictions.groupby("part")}
        assert parts.keys() == {"train", "valid", "test"}
        if run.recipe["protocol"] == "grouped":
            assert (
                not parts["train"] & parts["test"]
                and not parts["train"] & parts["valid"]
                and not parts["valid"] & parts["test"]
            )
        if run.recipe["task"] == "herlev":
            assert np.isfinite(run.predictions["score"]).all()


@published
def test_published_files_hold_no_picture_no_model_and_name_no_folder_of_a_machine():
    kinds = {file.suffix for file in PUBLISHED.rglob("*") if file.is_file()}
    assert kinds <= {".csv", ".json", ".md", ".svg", ".html"}
    for file in PUBLISHED.rglob("*"):
        if file.is_file():
            text = file.read_text(errors="replace")
            assert "data:image/png" not in text and "data:image/jpeg" not in text and "<image" not in text, file
            assert str(Path.home()) + "/" not in text and str(paths.ROOT) not in text, file


@published
@pytest.mark.parametrize("folder", sorted((PUBLISHED / "attribution").glob("*")), ids=lambda folder: folder.name)
def test_published_attributions_are_of_test_images_once_a_method_and_have_converged(folder):
    table = pd.read_csv(folder / "attribution.csv")
    part = runs.read_table(folder / "predictions.csv").set_index("id")["part"]
    assert (table["id"].map(part) == "test").all()
    assert not table.duplicated(["network", "method", "baseline", "id"]).any()
    gradients = table[(table["method"] == "integrated_gradients") & (table["baseline"] != "average")]
    off = gradients["scores"] - gradients["start_scores"]
    assert len(gradients) and gradients["deltas"].abs().max() <= 0.1 and np.isfinite(off).all()
    for form in ("signed", "absolute", "positive"):
        usable = table[table[f"{form}_usable"].astype(bool)]
        total = usable[[f"{form}_at_{region}" for region in ("nucleus", "cytoplasm", "background", "unknown")]].sum(
            axis=1
        )
        np.testing.assert_allclose(total, 1, atol=1e-4 * (1 + usable[f"{form}_at_nucleus"].abs().max()))


@published
def test_the_readme_shows_the_published_results():
    readme = (paths.ROOT / "README.md").read_text()
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    assert publishing.with_table(readme, kept) == readme


def test_several_figures_of_one_cell_are_numbered(tmp_path):
    drawn = [new_output("display_data", data={"image/svg+xml": f"<svg>{n}</svg>"}) for n in range(3)]
    cells = [new_code_cell("", metadata={"tags": tags}, outputs=out) for tags, out in (
        (["figure-reliability"], drawn[:2]), (["thumbnail", "figure-risk"], drawn[2:]), (["thumbnail"], drawn))]  # fmt: skip
    nbformat.write(new_notebook(cells=cells), tmp_path / "book.ipynb")
    expected = {"reliability-1": "<svg>0</svg>", "reliability-2": "<svg>1</svg>", "risk": "<svg>2</svg>"}
    assert publishing.figures(tmp_path / "book.ipynb") == expected
