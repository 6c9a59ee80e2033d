"""Reports that are killed at seeded moments and started again: every result equal to the bit."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cervix_utils import paths

SEED = int(os.environ.get("SEED", 0))
KILLS = int(os.environ.get("KILLS", 20))
SMALL = [  # one small network a task
    "herlev_pipelines=[combined]",
    "herlev_protocols=[paper]",
    "herlev_epochs=6",
    "colposcopy_pipelines=[modern]",
    "colposcopy_protocols=[paper]",
    "colposcopy_architecture=resnet18",
    "colposcopy_epochs=3",
    "attribution_images=0",
    "n_boot=50",
]
pytestmark = [
    pytest.mark.resilience,
    pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux's /proc"),
]


def start(reports: Path, log: Path) -> subprocess.Popen:
    """The workflow on a small demo, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--directory", str(reports), "--nolock"]
    command += ["--cores", "2", "--rerun-incomplete", "--config", "name=demo", *SMALL]
    places = {"CERVIX_REPORTS": str(reports), "CERVIX_CACHE": str(reports.parent / "cache")}
    environment = os.environ | places | {"PYTHONPATH": str(paths.ROOT)}
    with log.open("a") as opened:
        streams = {"stdout": opened, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen(command, cwd=paths.ROOT, env=environment, **streams)


def alive(reports: Path) -> dict[int, str]:
    """Processes of a report, by their environment -> their command lines."""
    mark, found = f"CERVIX_REPORTS={reports}\0".encode(), {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode()
        except OSError:
            continue  # ended meanwhile
    return {pid: words for pid, words in found.items() if words}


def made(reports: Path) -> dict[str, bytes]:
    """Every table of a report by its place: results, predictions, histories."""
    files = [file for file in (reports / "demo").rglob("*.csv") if ".snakemake" not in file.parts]
    return {str(file.relative_to(reports)): file.read_bytes() for file in files if untimed(file)}


def untimed(file: Path) -> bool:
    return file.name != "history.csv"  # it has seconds


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tables of a report that nothing disturbed."""
    place = tmp_path_factory.mktemp("whole")
    assert start(place / "reports", place / "log").wait(1200) == 0, (place / "log").read_text()
    return made(place / "reports")


def disturb(kind: str, process: subprocess.Popen, reports: Path, rng) -> None:
    """Kill everything, one kernel, the workflow alone, or press Ctrl-C."""
    kernels = [pid for pid, words in alive(reports).items() if "ipykernel" in words]
    if kind == "kernel" and kernels:
        os.kill(int(rng.choice(sorted(kernels))), signal.SIGKILL)
    elif kind == "workflow":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT if kind == "ctrl-c" else signal.SIGKILL)


def all_end(reports: Path) -> None:
    until = time.monotonic() + 30
    while alive(reports) and time.monotonic() < until:
        time.sleep(0.5)
    assert not alive(reports)


@pytest.mark.parametrize("when", ["jobs.py", "ipykernel"])  # before the step has started, or later
def test_a_workflow_that_is_killed_alone_takes_its_steps_and_kernels_with_it(tmp_path, when):
    process = start(tmp_path / "reports", tmp_path / "log")
    until = time.monotonic() + 300
    while not [words for words in alive(tmp_path / "reports").values() if when in words]:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.wait()
    all_end(tmp_path / "reports")


def test_killed_at_random_moments_and_resumed_it_gives_the_same_to_the_bit(tmp_path, whole):
    rng, reports, log = np.random.default_rng([21, SEED]), tmp_path / "reports", tmp_path / "log"
    finished = 0
    for number in range(KILLS):
        kind = ["all", "kernel", "ctrl-c", "workflow"][number % 4]
        process, wait = start(reports, log), rng.uniform(2, 60)
        try:
            code = process.wait(wait)
            assert code == 0, log.read_text()[-3000:]
        except subprocess.TimeoutExpired:
            disturb(kind, process, reports, rng)
            process.wait(300)
        print(f"{number}: {kind} after {wait:.0f} s, {len(made(reports))} tables", flush=True)
        all_end(reports)
        if (reports / "demo/index.html").is_file():
            assert made(reports) == whole
            finished, reports = finished + 1, tmp_path / f"reports{number}"
    assert start(reports, log).wait(1200) == 0, log.read_text()[-3000:]
    assert made(reports) == whole and len(whole) > 5
    drafts = [path.name for path in reports.rglob(".*") if re.match(r"\.[0-9a-f]{32}\.", path.name)]
    assert not drafts
    assert "read from the finished run" in log.read_text() or finished
    print(f"{KILLS} kills survived, {finished + 1} reports finished, {len(whole)} tables equal")
