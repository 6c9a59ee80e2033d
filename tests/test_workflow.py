"""The whole way, as a newcomer goes it: Snakemake on the demo, interrupted, changed, and given bad
input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import papermill
import pytest
import torch

from cervix_utils import paths
from cervix_utils.training import runs

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--rerun-incomplete"]
PAGES = [
    "01_data_exploration",
    *(f"02_colposcopy_resnet50_{protocol}-0" for protocol in ("grouped", "paper")),
    *(f"03_herlev_resnet101_{protocol}-0" for protocol in ("grouped", "paper")),
    "04_explainability",
    "05_comparison",
    "06_calibration",
    "08_elsewhere",
]
# One small network a task: the way is the same, in half a minute.
SMALL = [
    "herlev_pipelines=[combined]",
    "herlev_protocols=[paper]",
    "herlev_architecture=resnet18",
    "colposcopy_pipelines=[modern]",
    "colposcopy_protocols=[paper]",
    "colposcopy_epochs=1",
    "attribution_images=0",
    "elsewhere_task=none",
    "n_boot=50",
]


def call(reports, *settings, cores=2, root=paths.ROOT, options=()):
    """(exit status, log) of the workflow on the demo."""
    environment = os.environ | {"CERVIX_REPORTS": str(reports), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [
            *SNAKEMAKE,
            "--cores",
            str(cores),
            "--nolock",
            *options,
            "--config",
            "name=demo",
            *settings,
        ],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


def succeeds(reports, *settings, **options):
    code, log = call(reports, *settings, **options)
    assert code == 0, log[-4000:]
    return log


def networks(reports):
    """Content of every predictions.csv of a trained network, by the place of its folder."""
    files = (reports / "demo/runs").glob("*/*/*/predictions.csv")
    return {str(file.parent.relative_to(reports)): file.read_bytes() for file in files}


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


def tables(reports):
    """Targets: the tables of predictions of a small report, without other notebooks and pages."""
    folder = reports / "demo/predictions"
    return [str(folder / f"{task}-paper-0.csv") for task in ("herlev", "colposcopy")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small report made with two jobs at a time: (reports, networks)."""
    reports = tmp_path_factory.mktemp("small")
    succeeds(reports, *SMALL, "herlev_epochs=2")
    return reports, networks(reports)


@pytest.mark.slow
def test_one_job_at_a_time_or_two_give_the_same_numbers(small, tmp_path):
    succeeds(tmp_path, *SMALL, "herlev_epochs=2", cores=1, options=tables(tmp_path))
    assert len(small[1]) == 2 and networks(tmp_path) == small[1]


@pytest.mark.slow
def test_what_changed_is_made_again_and_nothing_else(small, tmp_path):
    root, reports = tmp_path / "checkout", small[0]
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("cervix_utils", "workflow", "notebooks", "config"):
        shutil.copytree(paths.ROOT / folder, root / folder, ignore=ignored)

    def planned(file):
        """Rules that a change of one file makes run again."""
        path = root / "cervix_utils" / file
        text, before = path.read_text(), path.stat()
        path.write_text(text + "\n")
        log = succeeds(reports, *SMALL, "herlev_epochs=2", root=root, options=["-n"])
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return set(re.findall(r"^rule ([\w-]+):", log, re.MULTILINE))

    assert planned("explanation/regions.py") == set()  # no notebook 4 in this report
    assert planned("report/templates/report/style.css") == {"html", "index", "all"}
    trained = {"02_colposcopy_resnet50_paper-0", "03_herlev_resnet101_paper-0"}
    shown = trained | {"compare", "calibrate", "html", "index", "all"}
    assert planned("evaluation/published.csv") == shown


@pytest.mark.slow
def test_a_changed_key_and_back_trains_once_each_and_overwrites_nothing(small):
    reports, before = small
    results = [str(reports / "demo/results.csv")]
    log = succeeds(reports, *SMALL, "herlev_epochs=1", options=results)
    assert "combined paper-0  epoch 1/1" in log and "modern paper-0  epoch" not in log
    after = networks(reports)
    assert after.items() > before.items() and len(after) == 3
    changed = (reports / "demo/results.csv").read_bytes()
    log = succeeds(reports, *SMALL, "herlev_epochs=2", options=results)
    assert "epoch 2/2" not in log and "read from the finished run" in log
    assert networks(reports) == after and (reports / "demo/results.csv").read_bytes() != changed


@pytest.mark.slow
def test_a_report_uses_and_shows_what_its_configuration_asks_for_alone(small):
    reports, _ = small
    succeeds(
        reports,
        *SMALL,
        "herlev_epochs=1",
        "herlev_protocols=[grouped]",
        "herlev_folds=[1]",
        "seed=3",
    )
    results = pd.read_csv(reports / "demo/results.csv", dtype={"fold": str}).query(
        "task == 'herlev'"
    )
    assert set(results["protocol"]) == {"grouped"} and set(results["fold"]) == {"1"}
    pages = sorted(path.stem for path in (reports / "demo").glob("03_*"))
    assert pages == ["03_herlev_resnet101_grouped-1"] * 2
    index = (reports / "demo/index.html").read_text()
    assert "grouped-1.html" in index and "03_herlev_resnet101_paper-0" not in index


@pytest.mark.slow
def test_a_third_data_set_of_unordered_classes_runs_through_notebooks_1_2_and_5(
    tmp_path, monkeypatch
):
    import toy_dataset

    toy_dataset.draw(tmp_path / "data" / "toy")
    monkeypatch.setenv("CERVIX_PLUGINS", "toy_dataset")
    monkeypatch.setenv("PYTHONPATH", f"{paths.ROOT}:{paths.ROOT / 'tests'}")
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path))
    data = {"data_root": str(tmp_path / "data"), "report_name": "toy"}
    network = {"colposcopy_task": "toy", "colposcopy_pipelines": ["modern"], "colposcopy_epochs": 1}
    network |= {"n_boot": 50, "protocol": "grouped"}
    jobs = {
        "01_data_exploration": data | {"tasks": ["toy"], "valid_fraction": 0},
        "02_colposcopy_resnet50": data | network,
        "05_comparison": {"report_name": "toy", "n_boot": 50},
    }
    for name, values in jobs.items():
        notebook = paths.NOTEBOOKS / f"{name}.ipynb"
        papermill.execute_notebook(notebook, tmp_path / f"{name}.ipynb", values, progress_bar=False)
    results = pd.read_csv(tmp_path / "toy/results.csv")
    assert set(results["task"]) == {"toy"} and "modern" in set(results["pipeline"])


@pytest.mark.slow
def test_a_failing_notebook_names_its_cell_and_leaves_no_report(tmp_path):
    broken = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, broken)  # of no ResNet
    settings = [*SMALL, "colposcopy_architecture=resnet50", f"weights_resnet50={broken}"]
    code, log = call(tmp_path, *settings, options=tables(tmp_path)[1:])
    assert code != 0
    assert re.search(r"02_colposcopy_resnet50_paper-0 FAILED in cell \d+ \(In \[\d+\]\)", log)
    assert "WeightsError" in log and "conv1.weight" in log
    assert (
        not list((tmp_path / "demo").glob("02_*")) and not (tmp_path / "demo/index.html").exists()
    )


BAD = {
    "herlev_epoch=3": "unknown key 'herlev_epoch': did you mean 'herlev_epochs'?",
    "herlev_epochs=many": "key 'herlev_epochs': 'many' will not do, it must be integer",
    "name=dmo": "no configuration 'dmo'",
    "name=../config/demo": "no configuration '../config/demo'",
    "data_root=/nowhere/at/all": "data root /nowhere/at/all cannot be read",
    "weights_resnet50=/nowhere.pth": "weights_resnet50: there is no file /nowhere.pth",
    "weights_resnet50=/etc/passwd": "/etc/passwd holds no plain state dict",
    "herlev_folds=[7]": "herlev_folds: [7] do not exist",
    "n_boot=1000000000": "key 'n_boot': 1000000000 will not do",
}


@pytest.mark.parametrize("setting", BAD)
def test_bad_settings_stop_before_anything_runs(tmp_path, setting):
    name = [] if "name=" in setting else ["name=demo"]
    done = subprocess.run(
        [*SNAKEMAKE, "--cores", "2", "--nolock", "--config", *name, setting],
        cwd=paths.ROOT,
        env=os.environ | {"CERVIX_REPORTS": str(tmp_path), "PYTHONPATH": str(paths.ROOT)},
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert done.returncode != 0 and BAD[setting] in log, log
    assert "starts" not in log and not list(tmp_path.iterdir()) and "Traceback" not in log
