"""What may be shared of a report: numbers, drawn figures and pages; and that the published numbers follow from it."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from test_comparison import results
from test_metrics import drawn

from cervix_utils import datasets, jobs, metrics, networks, paths, publishing, recipes, references, runs, splits
from cervix_utils.datasets import CLASSES

PUBLISHED = paths.ROOT / "reports" / "published"
ASKED = {"data_root": "", "valid_fraction": 0.4}  # of a few images a small share holds no image of some class
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
        for stem in ("04_explainability", "05_comparison"):
            book = new_notebook(cells=[cell], metadata={"papermill": {"parameters": dict(parameters)}})
            nbformat.write(book, folder / f"{stem}.ipynb")
            (folder / f"{stem}.html").write_text(stem)
        return folder

    return make


@pytest.fixture
def evaluation(tmp_path, monkeypatch, tiny_demo):
    """Function: publishes a run of ``config/demo.yaml`` on a few drawn cells, with two references, and returns its folder.

    Keyword arguments replace fields of recipe.json, None leaves one out; ``asked`` are the overrides of the configuration.
    """
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    monkeypatch.setenv("CERVIX_DATA", str(tiny_demo))

    def make(asked=(), **changed):
        settings = jobs.plan("demo", {**ASKED, **dict(asked)})[0] | {"protocol": "paper", "fold": 0}
        recipe = recipes.herlev(settings, "combined")
        table = splits.with_groups(datasets.load(settings["data_root"], "herlev")[0], recipe.phash_distance)
        split = splits.assign_parts(table, "herlev", "paper", 0, recipe.n_folds, recipe.valid_fraction, recipe.seed)
        weights = networks.describe_weights(recipe.weights, recipe.architecture)
        facts = {**asdict(recipe), "weights": weights, "initialisation": weights, "key": "abc"}
        facts |= {"data_fingerprint": datasets.fingerprint(split), **changed}
        predictions = references.as_predictions(split, np.full((len(split), 5), 0.2), "herlev")
        run = paths.run_dir(tmp_path / "published" / "runs", "herlev", "combined", "paper", 0)
        run.mkdir(parents=True)
        (run / "recipe.json").write_text(json.dumps({key: facts[key] for key in facts if facts[key] is not None}))
        pd.DataFrame({"epoch": [1]}).to_csv(run / "history.csv", index=False)
        predictions.to_csv(run / "predictions.csv", index=False)
        for name in ("baseline_priors", "combined_without_cell"):
            references.write(tmp_path / "published", "herlev", name, "paper", 0, predictions)
        return run

    return make


def content(folder):
    """Path -> bytes of every file below a folder; empty where there is none."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


ADOPTED = [
    "runs/herlev/combined/paper-0",
    "references/herlev/baseline_priors/paper-0.csv",
    "references/herlev/combined_without_cell/paper-0.csv",
]


@pytest.mark.parametrize("folds", [[0], [1]])
def test_a_published_run_of_todays_recipe_is_adopted_with_its_references(evaluation, tmp_path, capsys, folds):
    evaluation()
    asked = ASKED | {"herlev_folds": folds}
    assert publishing.adopt("demo", asked) == [tmp_path / "demo" / name for name in ADOPTED]
    assert content(tmp_path / "demo") == content(tmp_path / "published")
    names = ["herlev combined paper-0", "herlev baseline_priors paper-0", "herlev combined_without_cell paper-0"]
    assert capsys.readouterr().out.splitlines() == [f"{name}  adopted" for name in names]
    found, against = references.everything(tmp_path / "demo")  # as notebooks 5 and 6 see them
    assert [one.name for one in (*found, *against)] == names
    assert runs.find(found[0].folder, "abc") is None  # without weights its fold is trained again when asked for
    assert publishing.adopt("demo", asked) == []
    assert capsys.readouterr().out.splitlines() == [f"{name}  not adopted: one is there already" for name in names]


def test_a_field_that_an_old_recipe_lacks_counts_as_off(evaluation):
    evaluation(progressive=None, stain=None, window=None, balanced=None)
    assert len(publishing.adopt("demo", ASKED)) == 3


@pytest.mark.parametrize(
    ("changed", "asked", "words"),
    [
        ({"epochs": 3}, {}, "epochs: published 3, today 10"),
        ({"stain": 0.3, "std": [1, 1, 1]}, {}, "stain: published 0.3, today 0.0; std: published [1, 1, 1], today [0.2"),
        ({"progressive": None}, {"herlev_progressive": True}, "progressive: published without it, today True"),
        ({"initialisation": "resnet101, x"}, {}, "initialisation: published resnet101, x, today resnet101, random"),
        ({"data_fingerprint": "0123456789ab"}, {}, "data_fingerprint: published 0123456789ab, today "),
        ({"n_folds": 20}, {"herlev_n_folds": 20}, "split: class "),
    ],
)
def test_a_run_of_another_recipe_or_of_other_data_is_refused_with_the_reason(
    evaluation, tmp_path, capsys, changed, asked, words
):
    evaluation(**changed)
    assert publishing.adopt("demo", ASKED | asked) == []
    run, baseline, blanked = capsys.readouterr().out.splitlines()
    assert run.startswith(f"herlev combined paper-0  not adopted: {words}")
    assert baseline == "herlev baseline_priors paper-0  not adopted: no run of these test images is there"
    assert blanked == "herlev combined_without_cell paper-0  not adopted: the run of combined was not adopted"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("column", ["part", "group", "label"])
def test_a_run_on_another_split_is_refused(evaluation, capsys, column):
    file = evaluation() / "predictions.csv"
    table = runs.read_table(file)
    table.loc[[0, 1], column] = {"label": "normal"}.get(column, "none")  # the first two are carcinomas
    table.to_csv(file, index=False)
    assert publishing.adopt("demo", ASKED) == []
    words = f"not adopted: split: 2 of {len(table)} images have another group, part or label today"
    assert words in capsys.readouterr().out


def test_nothing_that_exists_is_overwritten_and_references_follow_its_test_images(evaluation, tmp_path, capsys):
    published = evaluation()
    own = tmp_path / "demo" / ADOPTED[0]
    own.mkdir(parents=True)
    for file in published.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    (own / "predictions.csv").write_text((own / "predictions.csv").read_text().replace("0.2,", "0.20,"))  # trained here
    before = content(own)
    assert publishing.adopt("demo", ASKED) == [tmp_path / "demo" / ADOPTED[1]]
    assert "combined_without_cell paper-0  not adopted: the run of combined was not" in capsys.readouterr().out
    (tmp_path / "demo" / ADOPTED[1]).write_text("own")
    assert publishing.adopt("demo", ASKED) == []
    assert content(own) == before and (tmp_path / "demo" / ADOPTED[1]).read_text() == "own"
    (tmp_path / "demo" / ADOPTED[1]).unlink()
    (own / "predictions.csv").write_text((own / "predictions.csv").read_text().replace(",test,", ",valid,"))
    assert publishing.adopt("demo", ASKED) == []


def test_weights_are_known_by_name_and_content_wherever_they_lie(evaluation, tmp_path, capsys):
    files = [tmp_path / folder / "w.pth" for folder in ("there", "here", "other")]
    for file, data in zip(files, (b"same", b"same", b"else")):
        file.parent.mkdir()
        file.write_bytes(data)
    evaluation({"weights_resnet50": str(files[0]), "weights_resnet101": "grown"})
    asked = ASKED | {"weights_resnet101": "grown"}
    assert publishing.adopt("demo", asked | {"weights_resnet50": str(files[2])}) == []
    said = capsys.readouterr().out
    assert "not adopted: initialisation: published resnet101 grown from: resnet50, state dict w.pth (sha256 " in said
    assert str(tmp_path) not in said and "weights:" not in said
    assert len(publishing.adopt("demo", asked | {"weights_resnet50": str(files[1])})) == 3


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
        return {file.name for file in target.glob("*.html")} - {"05_comparison.html"}

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


def test_the_command_line_takes_what_make_reports_takes(evaluation, tmp_path, tiny_demo):
    evaluation({"herlev_lr": 0.001})
    few = [f"data_root={tiny_demo}", "valid_fraction=0.4"]
    publishing.main(["adopt", "demo", *few, "herlev_lr=1e-3", "herlev_folds=[1]"])
    assert (tmp_path / "demo" / ADOPTED[0]).is_dir()
    with pytest.raises(SystemExit, match=r"unknown key 'herlev_fold'.*did you mean 'herlev_folds'"):
        publishing.main(["adopt", "demo", *few, "herlev_fold=[1]"])
    with pytest.raises(SystemExit, match=r"results.csv is missing: make reports CONFIG=demo first"):
        publishing.main(["publish", "demo"])
    command = ["make", "-n", "adopt", "CONFIG=cpu", "DATA=/data", "SET=seed=1 herlev_folds=[1]"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout
    assert "publishing adopt cpu data_root=/data seed=1 herlev_folds=[1]\n" in done


def test_numbers_figures_and_pages_are_copied_and_models_and_attributions_stay(report, tmp_path):
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


@pytest.mark.parametrize("name", ["results.csv", "run.json", "05_comparison.ipynb"])
def test_what_is_missing_is_named(report, name):
    (report() / name).unlink()
    with pytest.raises(publishing.PublishError, match=f"{name} is missing: make reports CONFIG=toy"):
        publishing.publish("toy")


def test_the_table_of_the_readme_has_a_line_a_number_and_the_best_baseline():
    text = publishing.with_table(README, results())
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "| cells, combined | accuracy | 0.745 | 0.740 (0.700 to 0.780) | 0.580 (0.500 to 0.660) | 0.550 (0.500 to 0.600) all forest |"
        in text
    )
    assert "|  | MSE of the score | 0.51 | 0.500 (0.400 to 0.600) | – | 0.700 (0.600 to 0.800) size forest |" in text
    assert "without_nucleus" not in text and "baseline" not in text
    assert publishing.with_table(text, results()) == text


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(publishing.PublishError, match="needs one line"):
        publishing.with_table("no marks", results())


published = pytest.mark.skipif(not (PUBLISHED / "results.csv").exists(), reason="nothing was published yet")


@published
@pytest.mark.slow
def test_published_results_follow_from_the_published_predictions():
    settings = json.loads((PUBLISHED / "run.json").read_text())["configuration"]
    found, against = references.everything(PUBLISHED)
    again = metrics.results([*found, *against], settings["n_boot"], settings["seed"]).round(6)
    kept = pd.read_csv(PUBLISHED / "results.csv", dtype={"fold": str})
    pd.testing.assert_frame_equal(again, kept, check_dtype=False, atol=2e-6, rtol=0)


@published
def test_published_parts_share_no_image_and_grouped_ones_no_group():
    found = [run for task in CLASSES for run in runs.all_runs(PUBLISHED / "runs", task)]
    assert found
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
