"""A small report: what is made again when something changes, and what failed leaves behind."""

import os
import re
import shutil
from pathlib import Path

import pandas as pd
import papermill
import pytest
import torch
from snake import SMALL, call, networks, succeeds

from cervix_utils import paths


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
    table, _ = asked = tables(reports)
    first = Path(table).read_bytes()
    log = succeeds(reports, *SMALL, "herlev_epochs=1", options=asked)
    assert "combined paper-0  epoch 1/1" in log and "modern paper-0  epoch" not in log
    after = networks(reports)
    assert after.items() > before.items() and len(after) == 3
    assert Path(table).read_bytes() != first
    log = succeeds(reports, *SMALL, "herlev_epochs=2", options=asked)
    assert "epoch 2/2" not in log and "read from the finished run" in log
    assert networks(reports) == after and Path(table).read_bytes() == first


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
