"""The whole way, as a newcomer goes it: Snakemake on the demo, an interruption in between, and bad input."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from cervix_utils import datasets, paths, reporting, runs

SNAKEMAKE = [sys.executable, "-m", "snakemake", "--cores", "2", "--resources", "gpu=1", "--rerun-incomplete"]
STEMS = [
    "01_data_exploration",
    *(f"02_colposcopy_resnet50_{protocol}-0" for protocol in ("grouped", "paper")),
    *(f"03_herlev_resnet101_{protocol}-0" for protocol in ("grouped", "paper")),
    "04_explainability",
    "05_comparison",
    "06_calibration",
]


def environment(reports):
    return os.environ | {"CERVIX_REPORTS": str(reports), "PYTHONPATH": str(paths.ROOT)}


def command(*settings):
    return [*SNAKEMAKE, "--nolock", "--config", "name=demo", *settings]


def workflow(reports, *settings):
    done = subprocess.run(
        command(*settings), cwd=paths.ROOT, env=environment(reports), capture_output=True, text=True, timeout=900
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that is killed once the first network of a job is kept, then started again: (folder, log)."""
    reports = tmp_path_factory.mktemp("reports")
    process = subprocess.Popen(
        command(),
        cwd=paths.ROOT,
        env=environment(reports),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    until = time.monotonic() + 600
    while not list((reports / "demo/runs/herlev").glob("*/*/recipe.json")):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = {path.name for path in (reports / "demo").iterdir()}
    code, log = workflow(reports)
    assert code == 0, log[-4000:]
    return reports / "demo", log, left


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_finished_and_resumes(demo):
    folder, log, left = demo
    assert not left & {f"{stem}.ipynb" for stem in STEMS if stem[:2] == "03"}
    assert not left & {"index.html", "results.csv", "run.json"}
    assert "read from a finished run of the same recipe, data and code" in log
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_progress_names_notebook_epoch_and_time_to_go(demo):
    log = demo[1]
    assert all(f"--- {stem} done" in log for stem in STEMS if stem[:2] in ("03", "04", "05", "06"))
    assert re.search(r"herlev combined grouped-0  epoch 8/8  train \d.*accuracy \d\.\d+  \d+ s, 0 s to go", log)


@pytest.mark.slow
def test_the_report_folder_keeps_the_contract(demo):
    folder = demo[0]
    pages = {path.stem for path in folder.glob("*.html")}
    beside = {"model_card_herlev", "model_card_colposcopy", "checklist"}
    assert pages == {"index", *beside, *STEMS} and all((folder / name).exists() for name in reporting.DOCUMENTS)
    assert {path.stem for path in folder.glob("*.ipynb")} == set(STEMS)
    record = json.loads((folder / "run.json").read_text())
    assert {"versions", "commit", "configuration", "seconds", "data_fingerprint"} <= set(record)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert list(rows[0]) == [
        "task",
        "pipeline",
        "protocol",
        "fold",
        "n_test",
        "metric",
        "value",
        "low",
        "high",
        "paper",
    ]
    keys = [(row["task"], row["pipeline"], row["protocol"], int(row["fold"]), row["metric"]) for row in rows]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    assert {(r["pipeline"], r["metric"]): r["paper"] for r in rows}["combined", "accuracy"] == "0.745"


@pytest.mark.slow
def test_runs_keep_the_contract_and_groups_never_straddle(demo):
    found = [run for task in datasets.CLASSES for run in runs.all_runs(demo[0] / "runs", task)]
    assert len(found) == 2 * 2 + 3 * 2
    for run in found:
        assert sorted(path.name for path in run.folder.iterdir()) == sorted(runs.FILES)
        assert set(run.predictions["part"]) == {"train", "valid", "test"}
        sides = run.predictions.groupby("group")["part"].nunique()
        assert (sides.max() == 1) == (run.recipe["protocol"] == "grouped")


@pytest.mark.slow
def test_the_demo_networks_learn_what_is_drawn(demo):
    rows = {(r["pipeline"], r["protocol"], r["metric"]): r for r in csv.DictReader((demo[0] / "results.csv").open())}
    assert float(rows["combined", "paper", "auc_mean"]["value"]) > 0.7  # chance is 0.5


@pytest.mark.slow
def test_a_second_call_does_nothing(demo):
    start = time.monotonic()
    code, log = workflow(demo[0].parent)
    assert code == 0 and "Nothing to be done" in log
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_a_failing_notebook_names_its_cell_and_leaves_no_report(tmp_path):
    broken = tmp_path / "weights.pth"
    broken.write_bytes(b"no weights at all")
    short = (
        "colposcopy_protocols=[paper]",
        "herlev_epochs=1",
        "herlev_pipelines=[combined]",
        "herlev_protocols=[paper]",
    )
    code, log = workflow(tmp_path, f"weights_resnet50={broken}", *short)
    assert code != 0
    assert re.search(r"02_colposcopy_resnet50_paper-0 FAILED in cell \d+ \(In \[\d+\]\)", log)
    assert "WeightsError" in log and "weights.pth cannot be read as a state dict" in log
    assert not list((tmp_path / "demo").glob("02_*")) and not (tmp_path / "demo/index.html").exists()


BAD = {
    "herlev_epoch=3": "unknown key 'herlev_epoch' in demo.yaml with SET: did you mean 'herlev_epochs'?",
    "herlev_epochs=many": "key 'herlev_epochs' in demo.yaml with SET: 'many' will not do, it must be integer",
    "name=dmo": "no configuration",
    "data_root=/nowhere/at/all": "data root /nowhere/at/all does not exist",
    "weights_resnet50=/nowhere.pth": "weights_resnet50: there is no file /nowhere.pth",
    "herlev_folds=[7]": "herlev_folds: [7] do not exist",
}


@pytest.mark.parametrize("setting", BAD)
def test_bad_settings_stop_before_anything_runs(tmp_path, setting):
    done = subprocess.run(
        [*SNAKEMAKE, "--nolock", "--config", *(["name=demo"] if "name=" not in setting else []), setting],
        cwd=paths.ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    log = done.stdout + done.stderr
    assert done.returncode != 0 and BAD[setting] in log, log
    assert "starts" not in log and not list(tmp_path.iterdir())
    assert "Traceback" not in log
