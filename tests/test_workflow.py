"""The whole way, as a newcomer goes it: Snakemake on the demo, interrupted, changed, and given bad
input; then the notebooks one by one, by nbval."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest
from snake import SNAKEMAKE, succeeds
from test_notebooks import NOTEBOOKS, code_cells

from cervix_utils import paths
from cervix_utils.training import runs

PAGES = [
    "01_data_exploration",
    *(f"02_colposcopy_resnet50_{protocol}-0" for protocol in ("grouped", "paper")),
    *(f"03_herlev_resnet101_{protocol}-0" for protocol in ("grouped", "paper")),
    "04_explainability",
    "05_comparison",
    "06_calibration",
    "08_elsewhere",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that is killed once the first network is kept, then started again: (folder, log,
    left)."""
    reports = tmp_path_factory.mktemp("reports")
    process = subprocess.Popen(
        [*SNAKEMAKE, "--cores", "2", "--nolock", "--config", "name=demo"],
        cwd=paths.ROOT,
        env=os.environ | {"CERVIX_REPORTS": str(reports), "PYTHONPATH": str(paths.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    until = time.monotonic() + 600
    while not list((reports / "demo/runs/herlev").glob("*/[!.]*/recipe.json")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {path.name for path in (reports / "demo").iterdir()}
    return reports / "demo", succeeds(reports), left


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_finished_and_resumes(demo):
    folder, log, left = demo
    assert not left & {f"{page}.ipynb" for page in PAGES if page[:2] == "03"}
    assert not left & {"index.html", "results.csv", "run.json"}
    assert "read from the finished run" in log
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_progress_names_notebook_epoch_and_time_to_go(demo):
    log = demo[1]
    assert all(f"--- {page} done" in log for page in PAGES if page[:2] in ("03", "04", "05", "06"))
    assert re.search(
        r"combined grouped-0  epoch 8/8  train \d.*accuracy \d\.\d+  \d+ s, 0 s to go", log
    )


@pytest.mark.slow
def test_the_report_folder_holds_what_was_promised(demo):
    folder = demo[0]
    cards = {"model_card_herlev", "model_card_colposcopy"}
    assert {path.stem for path in folder.glob("*.html")} == {"index", *cards, *PAGES}
    assert {path.stem for path in folder.glob("*.ipynb")} == set(PAGES)
    record = json.loads((folder / "run.json").read_text())
    assert {"versions", "commit", "configuration", "seconds", "data_fingerprint"} <= set(record)
    results = pd.read_csv(folder / "results.csv")
    names = "task pipeline protocol fold n_test metric value low high paper"
    assert list(results) == names.split()
    keys = results[["task", "pipeline", "protocol", "fold", "metric"]]
    assert (
        keys.equals(keys.sort_values(list(keys), ignore_index=True)) and not keys.duplicated().any()
    )
    combined = results.query("pipeline == 'combined' and metric == 'accuracy'")
    assert set(combined["paper"]) == {0.745}


@pytest.mark.slow
def test_run_folders_are_whole_and_groups_stay_on_one_side(demo):
    folders = [runs.read(file.parent) for file in (demo[0] / "runs").glob("*/*/[!.]*/recipe.json")]
    assert len(folders) == 2 * 2 + 3 * 2 + 2  # two of notebook 8, which no page of numbers names
    told = [run for run in folders if (run.folder / "model.json").is_file()]
    assert len(told) == 2 * 2 + 3 * 2
    for run in folders:
        names = sorted(path.name for path in run.folder.iterdir() if path.name != "model.json")
        assert names == sorted(runs.FILES)
        sides = run.predictions.groupby("group")["part"].nunique()
        assert (sides.max() == 1) == (run.recipe["protocol"] == "grouped")


@pytest.mark.slow
def test_the_demo_networks_learn_what_is_drawn(demo):
    results = pd.read_csv(demo[0] / "results.csv")
    wanted = "pipeline == 'combined' and protocol == 'paper' and metric == 'auc_mean'"
    assert results.query(wanted)["value"].item() > 0.7  # chance is 0.5


@pytest.mark.slow
def test_a_second_call_does_nothing(demo):
    start = time.monotonic()
    assert "Nothing to be done" in succeeds(demo[0].parent)
    assert time.monotonic() - start < 30


def nbval(reports, *notebooks):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-cell-timeout=1500",
        "-p",
        "no:xdist",
    ]
    return subprocess.run(
        [*command, *map(str, notebooks)],
        cwd=paths.ROOT,
        env=os.environ | {"CERVIX_REPORTS": str(reports)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def lab(demo, tmp_path_factory):
    """(reports, what nbval said) of all notebooks in order, as in JupyterLab; what the demo has
    trained is found again, all else is computed."""
    reports = tmp_path_factory.mktemp("lab")
    shutil.copytree(demo[0] / "runs", reports / "lab" / "runs")
    return reports, nbval(reports, *NOTEBOOKS)


@pytest.mark.slow
def test_nbval_runs_all_in_order(lab):
    reports, done = lab
    assert done.returncode == 0, done.stdout[-4000:]
    cells = sum(len(code_cells(nbformat.read(path, as_version=4))) for path in NOTEBOOKS)
    assert f"{cells} passed" in done.stdout
    assert (reports / "lab/results.csv").exists()


SPOILED = {  # a line of a notebook -> what is wrong with it now
    "shown = beside.assign(": 'beside["paper"] = "0.000 ("\nshown = beside.assign(',
    'with paths.whole(report_dir / "results': 'results["value"] *= 0\n'
    'with paths.whole(report_dir / "results',
    "kept = pd.DataFrame(kept).T": "kept = 0 * pd.DataFrame(kept).T",
    "place, checked = [": "results = {key: one.assign(value=0.0) for key, one in results.items()}\n"
    "place, checked = [",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before"),
    zip(["05_comparison", "05_comparison", "06_calibration", "08_elsewhere"], SPOILED),
)
def test_a_table_that_is_wrong_stops_the_notebook(lab, tmp_path, name, before):
    book = nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in code_cells(book) if before in cell.source]
    cell.source = cell.source.replace(before, SPOILED[before])
    while "assert" not in book.cells[-1].source:  # what follows the last check costs time alone
        del book.cells[-1]
    nbformat.write(book, tmp_path / f"{name}.ipynb")
    done = nbval(lab[0], tmp_path / f"{name}.ipynb")
    assert done.returncode == 1 and "AssertionError" in done.stdout


BAD = [  # settings of one call, and what each is answered with
    {
        "herlev_epoch=3": "unknown key 'herlev_epoch': did you mean 'herlev_epochs'?",
        "herlev_epochs=many": "key 'herlev_epochs': 'many' will not do, it must be integer",
        "data_root=/nowhere/at/all": "data root /nowhere/at/all cannot be read",
        "weights_resnet50=/nowhere.pth": "weights_resnet50: there is no file /nowhere.pth",
        "herlev_folds=[7]": "herlev_folds: [7] do not exist",
        "n_boot=1000000000": "key 'n_boot': 1000000000 will not do",
    },
    {"weights_resnet50=/etc/passwd": "/etc/passwd holds no plain state dict"},
    {"name=dmo": "no configuration 'dmo'"},
    {"name=../config/demo": "no configuration '../config/demo'"},
]


@pytest.mark.parametrize("asked", BAD, ids=lambda asked: next(iter(asked)))
def test_bad_settings_stop_before_anything_runs(tmp_path, asked):
    name = [] if "name=" in next(iter(asked)) else ["name=demo"]
    done = subprocess.run(
        [*SNAKEMAKE, "--cores", "2", "--nolock", "--config", *name, *asked],
        cwd=paths.ROOT,
        env=os.environ | {"CERVIX_REPORTS": str(tmp_path), "PYTHONPATH": str(paths.ROOT)},
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert done.returncode != 0 and [words for words in asked.values() if words not in log] == []
    assert "starts" not in log and not list(tmp_path.iterdir()) and "Traceback" not in log
