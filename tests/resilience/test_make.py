"""`make reports`: odd paths reach the workflow whole, one run at a time, no home to write to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from test_kills import SMALL
from test_kills import made as tables

from cervix_utils import config, paths
from workflow import jobs

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['HOME'], os.getcwd()]))"
DATA = [
    "/data/plain",
    "relative/folder",
    "/a folder/with  spaces",
    '/it\'s/one "two"',
    r"/back\slash",
    "/colon: and # mark",
    "/[list] {a} *x &y",
    "/café/漢字",
    "/semi;colon $(touch /tmp/x) `id` | & > <",
    "/a,b=c%20",
]


SHORT = "SET=" + " ".join(SMALL)
STRANGE = {"HOME": "", "TZ": "Pacific/Kiritimati", "LANG": ""}
PLACES = [{}, {"LC_ALL": "C"} | STRANGE, {"LC_ALL": "de_DE"} | STRANGE]


@pytest.fixture
def checkout(tmp_path):
    """A folder of an odd name with this Makefile and a workflow that says what it was given."""
    root = tmp_path / 'it\'s "a" folder, really'
    (root / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(paths.ROOT / name, root)
    (root / "reports/demo").mkdir(parents=True)
    stand_in = root / ".venv/bin/snakemake"
    stand_in.write_text(f"#!{sys.executable}\n{SHOW}\n")
    stand_in.chmod(0o755)
    (root / ".venv/.done").touch()
    return root


def make(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """`make` in a checkout, with these variables in its environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command, cwd=root, env=kept | environment, capture_output=True, text=True, timeout=60
    )


def read(done: subprocess.CompletedProcess) -> tuple[dict, list[str], str, str]:
    """(configuration, other options, home, page) that a stand-in for the workflow printed."""
    assert done.returncode == 0, done.stderr
    said, page = done.stdout.splitlines()
    words, home, _ = json.loads(said)
    split = words.index("--config")
    entries = (word.split("=", 1) for word in words[split + 1 :])
    values = {key: yaml.load(value, yaml.BaseLoader) for key, value in entries}
    return values, words[:split], home, page


@pytest.mark.parametrize("data", DATA)
def test_the_data_root_reaches_the_workflow_whole(checkout, data):
    escaped = data.replace("$", "$$")  # make's own rule
    values, _, _, page = read(make(checkout, "reports", f"DATA={escaped}", "SET=seed=3 n_boot=50"))
    assert values == {"name": "demo", "data_root": data, "seed": "3", "n_boot": "50"}
    assert page == f"{checkout}/reports/demo/index.html"


def test_reports_elsewhere_and_no_home(checkout, tmp_path):
    elsewhere = tmp_path / "else where"
    (elsewhere / "demo").mkdir(parents=True)
    values, options, home, page = read(make(checkout, "reports", CERVIX_REPORTS=str(elsewhere)))
    assert options[options.index("--directory") + 1] == str(elsewhere)
    assert page == f"{elsewhere}/demo/index.html" and values == {"name": "demo"}
    assert home == os.environ["HOME"]
    for nowhere in ("", "/nonexistent"):
        home = read(make(checkout, "reports", HOME=nowhere))[2]
        assert home == f"{checkout}/.cache/home" and Path(home).is_dir()
    made = read(make(checkout, "reports", HOME="", CERVIX_CACHE=str(tmp_path / "c")))[2]
    assert made == str(tmp_path / "c/home")


def test_nothing_is_left_to_unlock(checkout):
    assert "unlock" not in make(checkout, "help").stdout
    assert "test-resilience" in make(checkout, "help").stdout


def test_a_profile_brings_its_plugin_and_takes_the_place_of_the_cores(checkout, tmp_path):
    uv, mine = checkout / ".venv/bin/uv", tmp_path / "my profile"
    uv.write_text('#!/bin/sh\necho "$@" >> uv.log\n')
    uv.chmod(0o755)
    for folder in (checkout / "workflow/profiles/slurm", mine):
        shutil.copytree(paths.ROOT / "workflow/profiles/slurm", folder)
    plain = read(make(checkout, "reports"))[1]
    assert "--workflow-profile" not in plain and plain[plain.index("--cores") + 1] == "all"
    assert not (checkout / "uv.log").exists()
    for given, folder in (("slurm", "workflow/profiles/slurm"), (str(mine), str(mine))):
        options = read(make(checkout, "reports", f"PROFILE={given}"))[1]
        assert options[options.index("--workflow-profile") + 1] == folder
        assert "--cores" not in options
        (words,) = (checkout / "uv.log").read_text().splitlines()
        assert f"--require-hashes -r {folder}/requirements.txt" in words
        (checkout / "uv.log").unlink()
    (mine / "requirements.txt").unlink()
    options = read(make(checkout, "reports", f"PROFILE={mine}"))[1]
    assert str(mine) in options and not (checkout / "uv.log").exists()
    uv.write_text("#!/bin/sh\nexit 7\n")  # what cannot be installed stops it
    assert make(checkout, "reports", "PROFILE=slurm").returncode != 0


# One run at a time


def workflow(reports: Path, *options: str, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", *options]
    command += ["--directory", str(reports), "--config", "name=demo", "attribution_images=0"]
    places = {"CERVIX_REPORTS": str(reports), "CERVIX_CACHE": str(reports / "cache")}
    environment = os.environ | places | {"PYTHONPATH": str(paths.ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=paths.ROOT, env=environment, **streams, **more)


@pytest.mark.slow
def test_a_second_run_is_refused_with_one_line_and_a_dead_one_is_in_nobodys_way(tmp_path):
    target = str(tmp_path / "demo/01_data_exploration.ipynb")
    drafts = [tmp_path / f"{place}/.{'0f' * 16}.x" for place in ("demo/runs/a/b", "cache")]
    [draft.mkdir(parents=True) for draft in drafts]
    alive = tmp_path / f"cache/.{'0f' * 16}.alive"
    alive.touch()
    with FileLock(tmp_path / "cache/alive.lock"):
        first = workflow(tmp_path, target, start_new_session=True)
        while "starts" not in (line := first.stdout.readline()):
            assert line, "the first run ended"
    assert not any(draft.exists() for draft in drafts)  # what killed runs have left half made
    assert alive.exists()  # what another one is making
    second = workflow(tmp_path, target)
    said = second.communicate(timeout=120)[0]
    assert second.returncode != 0 and "Traceback" not in said
    assert f"another run is making {tmp_path}/demo: wait until it ends" in said
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    third = workflow(tmp_path, "-n", target)
    said = third.communicate(timeout=120)[0]
    assert third.returncode == 0 and "rule explore" in said, said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize("whom", ["make", "everybody"])
def test_an_interrupt_to_make_alone_ends_the_steps_too(checkout, tmp_path, whom):
    reports, log = tmp_path / "reports", tmp_path / "log"
    settings = "SET=herlev_epochs=200 colposcopy_epochs=200 attribution_images=0"
    process = report(checkout, reports, log, settings)
    until = time.monotonic() + 300
    while "resnet" not in log.read_text():  # a network of a notebook, in its kernel
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT) if whom == "make" else os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == -signal.SIGINT
    assert "Terminating processes on user request" in log.read_text(), log.read_text()
    until = time.monotonic() + 30
    while left := of_report(reports):
        assert time.monotonic() < until, left
        time.sleep(0.5)


def report(checkout: Path, reports: Path, log: Path, *arguments: str, **environment: str):
    """The process of `make reports` on two cores: this project's workflow by a checkout's
    Makefile."""
    file = paths.ROOT / "workflow/Snakefile"
    words = f'#!/bin/sh\nexec {sys.executable} -m snakemake -s {file} "$@"\n'
    (checkout / ".venv/bin/snakemake").write_text(words)
    reports.mkdir(parents=True)
    places = {"CERVIX_REPORTS": reports, "CERVIX_CACHE": reports.parent / "cache"}
    places = {name: str(place) for name, place in (places | {"PYTHONPATH": paths.ROOT}).items()}
    with log.open("w") as opened:
        return subprocess.Popen(
            ["make", "reports", "CORES=2", *arguments],
            cwd=checkout,
            env=os.environ | places | environment,
            stdout=opened,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def of_report(reports: Path) -> list[str]:
    """Folders in /proc of the processes that have this folder of reports in their environment."""
    mark, found = f"CERVIX_REPORTS={reports}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            if mark in (folder / "environ").read_bytes() and (folder / "cmdline").read_bytes():
                found.append(str(folder))
    return found


# Memory, locales, time zones


def resident(folder: str) -> int:
    """Bytes of memory of a process, what it shares with others divided among them (PSS)."""
    with suppress(OSError):  # ended meanwhile
        if found := re.search(r"\nPss:\s+(\d+)", Path(folder, "smaps_rollup").read_text()):
            return int(found[1]) * 1024
    return 0


@pytest.mark.resilience
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="needs Linux's /proc")
def test_the_demo_takes_less_than_three_gibibytes(checkout, tmp_path):
    process, peak = report(checkout, tmp_path / "reports", tmp_path / "log"), 0
    while process.poll() is None:
        peak = max(peak, sum(map(resident, of_report(tmp_path / "reports"))))
        time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    print(f"the demo took {peak / 2**30:.2f} GiB on two cores")
    assert 0.5 < peak / 2**30 < 3


@pytest.mark.resilience
def test_locale_time_zone_and_a_missing_home_change_no_result(checkout, tmp_path):
    made = []
    latin = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(tmp_path / "de_DE")],
        capture_output=True,
        check=False,
    )
    for number, words in enumerate(PLACES if latin.returncode == 0 else PLACES[:2]):
        place = tmp_path / f"größe {number}"
        words = words | {"LOCPATH": str(tmp_path)} if number == 2 else words
        process = report(checkout, place / "reports", tmp_path / "log", SHORT, **words)
        assert process.wait(1800) == 0, (tmp_path / "log").read_text()[-3000:]
        made.append(tables(place / "reports"))
    assert len(made[0]) > 5 and all(one == made[0] for one in made)


# What the plan refuses

BOMB = "x: &a [1, 1]\ny: &b [*a, *a]\nherlev_folds: *b\n"
FILES = {
    "aliases": (BOMB, "aliases"),
    "deep": ("herlev_folds: " + "[" * 5000 + "]" * 5000, "recursion"),
    "latin": ("# café\n".encode("latin-1"), "utf-8"),
    "digits": ("seed: " + "9" * 5000, "4300 digits"),
    "code": ("seed: !!python/object/apply:os.system ['true']", "could not determine"),
    "control": ('data_root: "a\\0b"', "embedded null"),
    "surrogate": ('weights_resnet50: "\\ud800"', "weights_resnet50: 'utf-8' codec"),
    "long": ("n_boot: " + "x" * 10**5, "'xxxxxxxxxxxx...xxxxxxxxxxxxx' will not do"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_configuration_are_refused_at_once(tmp_path, monkeypatch, name):
    config.schema()
    content, words = FILES[name]
    monkeypatch.setattr(paths, "CONFIG", tmp_path)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / f"{name}.yaml").write_bytes(data)
    start = time.monotonic()
    with pytest.raises(config.ConfigError, match=words) as error:
        jobs.plan(name, {})
    assert time.monotonic() - start < 30 and len(str(error.value)) < 1000


@pytest.mark.parametrize("file", ["/etc/passwd", "Makefile", "README.md", "pickle"])
def test_weights_that_are_none_are_refused_before_anything_runs(tiny_demo, tmp_path, file):
    if file == "pickle":
        file = tmp_path / "code.pth"
        file.write_bytes(b"cos\nsystem\n(S'touch " + bytes(tmp_path / "ran") + b"'\ntR.")
    with pytest.raises(config.ConfigError, match=r"weights_resnet50: .* no plain state dict"):
        jobs.plan("demo", {"data_root": str(tiny_demo), "weights_resnet50": str(file)})
    assert not (tmp_path / "ran").exists()
