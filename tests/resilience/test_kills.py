"""Reports that are killed at seeded moments and started again: every result equal to the bit."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from test_settings import can_mount

from cervix_utils import paths

SEED = int(os.environ.get("SEED", 0))
KILLS = int(os.environ.get("KILLS", 20))
KINDS = ["all", "kernel", "ctrl-c", "workflow", "training"]
# of every kernel, as it starts: each epoch is kept, also of a network that trains for seconds
EACH_EPOCH = """
from cervix_utils.training import checkpoints
checkpoints.EVERY, checkpoints.SHARE = 0.0, float("inf")
"""
SMALL = [  # one small network a task
    "herlev_pipelines=[combined]",
    "herlev_protocols=[paper]",
    "herlev_epochs=6",
    "colposcopy_pipelines=[modern]",
    "colposcopy_protocols=[paper]",
    "colposcopy_epochs=3",
    "attribution_images=0",
    "n_boot=50",
]
pytestmark = [
    pytest.mark.resilience,
    pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux's /proc"),
]


def command_of(reports: Path) -> tuple[list[str], dict[str, str]]:
    """The workflow on a small demo: command, and the environment for it."""
    command = [sys.executable, "-m", "snakemake", "--directory", str(reports), "--nolock"]
    command += ["--cores", "2", "--rerun-incomplete", "--config", "name=demo", *SMALL]
    places = {"CERVIX_REPORTS": reports, "CERVIX_CACHE": reports.parent / "cache"}
    places |= {"IPYTHONDIR": reports.parent / "ipython", "PYTHONPATH": paths.ROOT}
    starting = reports.parent / "ipython/profile_default/startup/each_epoch.py"
    starting.parent.mkdir(parents=True, exist_ok=True)
    starting.write_text(EACH_EPOCH)
    return command, os.environ | {name: str(place) for name, place in places.items()}


def start(reports: Path, log: Path) -> subprocess.Popen:
    """That workflow, in a process group of its own."""
    command, environment = command_of(reports)
    with log.open("a") as opened:
        return subprocess.Popen(
            command,
            cwd=paths.ROOT,
            env=environment,
            stdout=opened,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # what a shell starts in the background ignores Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


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
    """(tables, seconds) of a report that nothing disturbed."""
    place, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    assert start(place / "reports", place / "log").wait(2400) == 0, (place / "log").read_text()
    return made(place / "reports"), time.monotonic() - began


def disturb(kind: str, process: subprocess.Popen, reports: Path, rng) -> None:
    """Kill everything, one kernel, all kernels, the workflow alone, or press Ctrl-C."""
    kernels = [pid for pid, words in alive(reports).items() if "ipykernel" in words]
    if kind in ("kernel", "training") and kernels:
        for pid in kernels if kind == "training" else rng.choice(sorted(kernels), 1):
            with suppress(ProcessLookupError):  # ended meanwhile
                os.kill(int(pid), signal.SIGKILL)
    elif kind == "workflow":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT if kind == "ctrl-c" else signal.SIGKILL)


def await_epoch(process: subprocess.Popen, log: Path, start: int, rng) -> None:
    """Wait until a network has trained for an epoch, and then into the next; at most 10 minutes."""
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        if re.search(rb"epoch [1-5]/6", log.read_bytes()[start:]):
            time.sleep(rng.uniform(0, 0.5))
            break
        time.sleep(0.05)


def all_end(reports: Path) -> None:
    until = time.monotonic() + 120  # a step that still imports looks for its parent then
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
    (tables, undisturbed), finished, kills = whole, 0, 0
    while kills < KILLS:
        kind, wait = KINDS[kills % len(KINDS)], rng.uniform(0.02, 0.5) * undisturbed
        began, said = time.monotonic(), log.stat().st_size if log.exists() else 0
        process = start(reports, log)
        if kind == "training":
            await_epoch(process, log, said, rng)
            wait = 0.0
        try:
            code = process.wait(wait)
            assert code == 0, log.read_text()[-3000:]
        except subprocess.TimeoutExpired:
            disturb(kind, process, reports, rng)
            process.wait(300)
            kills, seconds = kills + 1, time.monotonic() - began
            print(f"{kills}: {kind} after {seconds:.0f} s, {len(made(reports))} tables", flush=True)
        all_end(reports)
        if (reports / "demo/index.html").is_file():
            assert made(reports) == tables
            finished += 1
            reports = tmp_path / f"reports{finished}"
    assert start(reports, log).wait(2400) == 0, log.read_text()[-3000:]
    assert made(reports) == tables and len(tables) > 5
    drafts = [path.name for path in reports.rglob(".*") if re.match(r"\.[0-9a-f]{32}\.", path.name)]
    assert not drafts
    words = log.read_text()
    assert "read from the finished run" in words or finished
    gone_on = words.count("goes on after epoch")
    assert gone_on or len(KINDS) > KILLS  # a training that was killed within an epoch
    print(f"{KILLS} kills survived, {finished + 1} reports finished, {len(tables)} tables equal")
    print(f"{gone_on} times a training went on from an epoch within")


FULL = """
mount -t tmpfs -o size=200k none "$1"
for size in 200k 20m 400m; do
    mount -o remount,size=$size "$1"
    (shift; exec "$@") > "$1.$size" 2>&1
    echo $? >> "$1.codes"
done
cp -r "$1" "$1.kept"
"""


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
def test_a_full_disk_is_named_and_with_more_room_the_same_command_goes_on(tmp_path, whole):
    reports = tmp_path / "reports"
    reports.mkdir()
    command, environment = command_of(reports)
    mounted = ["unshare", "-m", "sh", "-c", FULL, "sh", str(reports), *command]
    subprocess.run(mounted, env=environment, cwd=paths.ROOT, check=True, timeout=2400)
    codes = Path(f"{reports}.codes").read_text().split()
    said = [Path(f"{reports}.{size}").read_text() for size in ("200k", "20m", "400m")]
    assert codes[0] != "0" != codes[1] and codes[2] == "0", said
    for words in said[:2]:
        assert "No space left on device" in words and "Traceback" not in words, words
    kept = Path(f"{reports}.kept")
    assert made(kept) == whole[0]
