"""Archives of the collections: what is fit is unpacked whole and counted, anything else leaves no
trace; a killed run is in nobody's way."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from cervix_utils import paths
from cervix_utils.data import datasets
from tools import fetch

CLASSES = datasets.get("herlev").originals


def packed(folder: Path, file: Path) -> Path:
    """The folder ``folder`` as an archive; its kind is that of the name."""
    kind = next(k for k, ends, _ in shutil.get_unpack_formats() if file.name.endswith(tuple(ends)))
    made = shutil.make_archive(str(file.with_suffix("")), kind, folder.parent, folder.name)
    return Path(made).rename(file)


@pytest.fixture(scope="session")
def archive(tiny_demo, tmp_path_factory) -> Path:
    """The drawn cells as ``smear2005.zip``."""
    return packed(tiny_demo / "herlev", tmp_path_factory.mktemp("archive") / "smear2005.zip")


def refused(folder: str, file: Path | str, data: Path) -> str:
    """What is said of an archive that is not unpacked: one line, and ``data`` is as it was."""
    before = sorted(data.rglob("*")) if data.exists() else None
    with pytest.raises(SystemExit) as error:
        fetch.main(folder, str(file), str(data))
    lines = str(error.value).splitlines()
    assert len(lines) == 1 and lines[0].startswith(str(file)), lines
    after = [f for f in sorted(data.rglob("*")) if f.suffix != ".lock"] if data.exists() else None
    assert after == before
    return lines[0]


def names(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


@pytest.mark.parametrize("folder", ["herlev", "sipakmed", "mobileodt"])
@pytest.mark.parametrize("ending", [".zip", ".tar.gz", ".tar.xz", ".tar"])
def test_an_archive_becomes_a_folder_that_the_study_reads(
    tiny_demo, tmp_path, capsys, folder, ending
):
    file, data = packed(tiny_demo / folder, tmp_path / f"some{ending}"), tmp_path / "my data"
    fetch.main(folder, str(file), str(data))
    task = "colposcopy" if folder == "mobileodt" else folder
    table, left = datasets.load(str(data), task)
    said = capsys.readouterr().out
    noun = datasets.get(task).noun
    assert f"{len(table)} {noun} used, {len(left)} files left out (" in said
    assert len(said.splitlines()) == 1 and len(table) > 10
    assert names(data / folder / folder) == names(tiny_demo / folder)
    why = said.rpartition("left out (")[2].split(", ")  # each reason with its number
    assert sum(int(reason.split()[0].strip("-)") or 0) for reason in why) == len(left)


def test_what_is_there_is_never_overwritten(archive, tmp_path):
    other = tmp_path / "Smear2005"  # another name that the data set's folder may have
    other.mkdir()
    assert f"{other} is there and stays as it is" in refused("herlev", archive, tmp_path)


def zipped(file: Path, *more: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """A zip with a file of each class of cells, and ``more``."""
    with zipfile.ZipFile(file, "w") as made:
        for name in CLASSES:
            made.writestr(f"{name}/1-2-003.BMP", b"no picture")
        for info, content in more:
            made.writestr(info, content)
    return file


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    file = zipped(tmp_path / "x.zip", (name, b"x"))
    assert f"it holds '{name}'" in refused("herlev", file, tmp_path / "data")


def test_links_devices_and_secrets_are_refused(tmp_path):
    file = zipped(tmp_path / "link.zip", (link("passwords"), b"/etc/passwd"))
    assert "it holds 'passwords', a link" in refused("herlev", file, tmp_path / "data")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "some.tar.gz", "w:gz") as made:
            entry = tarfile.TarInfo("odd")
            entry.type, entry.linkname = kind, "/etc/passwd"
            made.addfile(entry)
        assert "it holds 'odd', a link" in refused("herlev", made.name, tmp_path / "data")
    secret = bytearray(zipped(tmp_path / "secret.zip").read_bytes())
    secret[secret.index(b"PK\x01\x02") + 8] |= 1  # the first file has a password
    (tmp_path / "secret.zip").write_bytes(secret)
    assert "a secret" in refused("herlev", tmp_path / "secret.zip", tmp_path / "data")


def test_seven_zip_is_refused_with_the_command_for_it(tmp_path):
    sealed = tmp_path / "train.7z"
    sealed.write_bytes(b"7z\xbc\xaf\x27\x1c")
    said = refused("mobileodt", sealed, tmp_path / "data")
    assert f"7z x '{sealed}' -o'{tmp_path}/data/mobileodt'" in said
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as made:  # as the competition hands it out
        made.writestr("train.7z", b"7z\xbc\xaf\x27\x1c")
    said = refused("mobileodt", tmp_path / "all.zip", tmp_path / "data")
    assert "Python does not unpack train.7z" in said and "any archive in it" in said


def test_other_files_damaged_ones_and_other_collections_are_refused(archive, tiny_demo, tmp_path):
    data = tmp_path / "data"
    (tmp_path / "page.html").write_text("<html>Not found</html>")
    assert "it is no .tar" in refused("herlev", tmp_path / "page.html", data)
    (tmp_path / "page.zip").write_text("<html>Not found</html>")
    assert "not a zip file" in refused("herlev", tmp_path / "page.zip", data)
    assert "No such file" in refused("herlev", tmp_path / "none.zip", data)
    said = refused("sipakmed", archive, data)
    assert "files of the class 'dyskeratotic'" in said and "not all of the SIPaKMeD cells" in said
    for ending in (".zip", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar"):
        whole = packed(tiny_demo / "herlev", tmp_path / f"whole{ending}").read_bytes()
        cut = tmp_path / f"cut{ending}"
        cut.write_bytes(whole[: len(whole) // 2])
        assert "Nothing was unpacked" in refused("herlev", cut, data)


def test_a_damaged_file_within_leaves_nothing(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "bad.zip").write_bytes(content)
    (tmp_path / "data").mkdir()
    refused("herlev", tmp_path / "bad.zip", tmp_path / "data")


def test_an_archive_without_a_usable_picture_leaves_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    said = refused("herlev", zipped(tmp_path / "empty.zip"), tmp_path / "data")
    assert "no usable image among 7 files" in said and f"{tmp_path}/data/herlev" in said


def test_too_little_disk_is_said_before_anything_is_written(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 5))
    said = refused("herlev", archive, tmp_path / "a" / "b")
    assert "0.0 GB are free" in said and not (tmp_path / "a").exists()


def test_a_killed_run_leaves_nothing_half_and_the_next_one_starts_anew(archive, tmp_path, capsys):
    code = "import sys, time; from tools import fetch\n"
    code += "fetch.datasets.read = lambda *_: time.sleep(600)\nfetch.main(*sys.argv[1:])"
    command = [sys.executable, "-c", code, "herlev", str(archive), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob(".*.herlev/herlev/*/*")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(SystemExit, match=f"another run is unpacking into {tmp_path}/herlev"):
            fetch.main("herlev", str(archive), str(tmp_path))
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "herlev").exists() and list(tmp_path.glob(".*.herlev"))
    fetch.main("herlev", str(archive), str(tmp_path))
    assert "cells used" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.herlev")) and (tmp_path / "herlev").is_dir()


CLIENT = """#!/bin/sh
test "$1 $2 $3 $4 $5" = "competitions download -c intel-mobileodt-cervical-cancer-screening -p"
mkdir -p "$6" && cp {source} "$6/$4.zip"
"""


def kaggle(folder: Path, text: str, monkeypatch) -> None:
    """A stand-in for the Kaggle client, before any other."""
    folder.mkdir(exist_ok=True)
    (folder / "kaggle").write_text(text)
    (folder / "kaggle").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_photographs_come_by_the_kaggle_client(tiny_demo, tmp_path, capsys, monkeypatch):
    source = packed(tiny_demo / "mobileodt", tmp_path / "source.zip")
    kaggle(tmp_path / "bin", CLIENT.format(source=source), monkeypatch)
    fetch.main("mobileodt", "", str(tmp_path / "data"))
    assert "photographs used" in capsys.readouterr().out
    assert len(datasets.load(str(tmp_path / "data"), "colposcopy")[0]) > 10


def test_without_client_key_or_archive_it_says_what_to_do(tmp_path, monkeypatch):
    kaggle(tmp_path / "bin", "#!/bin/sh\nexit 1\n", monkeypatch)
    with pytest.raises(SystemExit, match=r"client failed.*key in ~/.kaggle.*give ARCHIVE=file"):
        fetch.main("mobileodt", "", str(tmp_path / "data"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no Kaggle client here.*accept the rules.*ARCHIVE=file"):
        fetch.main("mobileodt", "", str(tmp_path / "data"))
    with pytest.raises(SystemExit, match=r"give ARCHIVE=/path/to/the archive of the Herlev cells"):
        fetch.main("herlev", "", str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_make_hands_over_odd_names_whole(tmp_path):
    command = [
        "make",
        "-n",
        "--no-print-directory",
        "-o",
        ".venv/.done",
        "data-herlev",
        "ARCHIVE=it's a.zip",
        "DATA=/a b",
    ]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == r".venv/bin/python -m tools.fetch herlev 'it'\''s a.zip' '/a b'"
