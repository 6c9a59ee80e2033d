"""Files appear whole or not at all, the cache is filled once, and nothing private is mailed."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cervix_utils import paths


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# whole


def test_a_file_takes_its_place_when_the_block_ends(tmp_path):
    file = tmp_path / "deep" / "results.csv"
    with paths.whole(file) as draft:
        draft.write_text("new")
        assert not file.exists() and draft.parent == file.parent
    assert file.read_text() == "new" and names(tmp_path) == ["deep", "deep/results.csv"]


def test_a_file_replaces_an_older_one(tmp_path):
    file = tmp_path / "results.csv"
    file.write_text("old")
    with paths.whole(file) as draft:
        draft.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and names(tmp_path) == ["results.csv"]


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text(text)


def test_a_folder_takes_its_place_and_never_replaces_another(tmp_path):
    place = tmp_path / "run"
    for text in ("first", "second"):
        with paths.whole(place) as draft:
            fill(draft, text)
        assert (place / "sub" / "b.txt").read_text() == "first"
        assert names(tmp_path) == ["run", "run/a.txt", "run/sub", "run/sub/b.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_block_that_fails_leaves_nothing_and_the_old_file_as_it_was(tmp_path, error, is_folder):
    old = tmp_path / "results.csv"
    old.write_text("old")
    place = tmp_path / "run" if is_folder else old
    with pytest.raises(type(error)), paths.whole(place) as draft:
        fill(draft, "half") if is_folder else draft.write_text("half")
        raise error
    assert names(tmp_path) == ["results.csv"] and old.read_text() == "old"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_last_step_that_fails_leaves_nothing(tmp_path, monkeypatch, step):
    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full_disk)
    with pytest.raises(OSError, match="No space left"), paths.whole(tmp_path / "run") as draft:
        fill(draft, "text")
    assert names(tmp_path) == []


def test_every_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_ino))
    with paths.whole(tmp_path / "run") as draft:
        fill(draft, "text")
    files = [tmp_path / "run/a.txt", tmp_path / "run/sub/b.txt"]
    assert sorted(synced) == sorted(file.stat().st_ino for file in files)


def test_drafts_of_a_killed_process_do_not_stand_in_the_way(tmp_path):
    script = "from pathlib import Path; import os, sys; from cervix_utils import paths\n"
    script += "with paths.whole(Path(sys.argv[1])) as draft:\n"
    script += "    draft.mkdir(); (draft / 'a').write_text('half'); os.kill(os.getpid(), 9)"
    place, environment = tmp_path / "run", os.environ | {"PYTHONPATH": str(paths.ROOT)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script, str(place)], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 2 and not place.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    with paths.whole(place) as draft:
        fill(draft, "whole")
    assert (place / "a.txt").read_text() == "whole"


def test_two_writers_at_once_have_drafts_of_their_own(tmp_path):
    place = tmp_path / "run"
    with paths.whole(place) as first, paths.whole(place) as second:
        assert first != second
        fill(first, "first")
        fill(second, "second")
    assert (place / "a.txt").read_text() == "second" == (place / "sub" / "b.txt").read_text()
    assert len(list(tmp_path.iterdir())) == 1


# cached, digest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_content_is_made_once_and_kept_by_what_it_is_made_of(cache):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text(str(len(made)))

    first, again = (paths.cached("table", ("a", 1), make) for _ in range(2))
    other, kind = paths.cached("table", ("a", 2), make), paths.cached("squares", ("a", 1), make)
    assert first == again and len({first, other, kind}) == 3 == len(made)
    assert first.parent == cache and first.name.startswith("table-")
    assert [(folder / "x").read_text() for folder in (first, other, kind)] == ["1", "2", "3"]


def test_one_makes_it_while_the_others_wait(cache):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.3)
        (folder / "x").touch()

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: paths.cached("table", "a", make), range(4)))
    assert len(made) == 1 and len(set(folders)) == 1
    assert (folders[0] / "x").exists()


def test_a_making_that_fails_leaves_nothing_and_the_next_one_makes_it(cache):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("broken picture")

    with pytest.raises(ValueError, match="broken picture"):
        paths.cached("table", "a", fails)
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    folder = paths.cached("table", "a", lambda folder: (folder / "x").touch())
    assert names(folder) == ["x"]


def test_digests():
    several = [("a", 1), ("a", "1"), ("a1",), (("a", 1),), ("a", 1.0), ("a", 1, None), ()]
    found = [paths.digest(*content) for content in several]
    assert len(set(found)) == len(several)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in found)
    assert paths.digest("a", 1) == found[0] == "391d545b6971354e"  # the same on every machine


# Places


def test_places_and_the_variables_that_move_them(monkeypatch, tmp_path):
    monkeypatch.setenv("CERVIX_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("CERVIX_REPORTS", str(tmp_path / "r"))
    assert paths.cache_dir() == tmp_path / "c" and paths.reports_dir("demo") == tmp_path / "r/demo"
    monkeypatch.delenv("CERVIX_CACHE")
    monkeypatch.delenv("CERVIX_REPORTS")
    assert paths.cache_dir() == paths.ROOT / ".cache"
    assert paths.reports_dir("demo") == paths.ROOT / "reports" / "demo"
    assert (paths.CONFIG / "schema.yaml").is_file()
    assert list(paths.NOTEBOOKS.glob("0*.ipynb"))


def test_the_table_of_a_page():
    assert paths.page_name("herlev", "train_only", 2) == "herlev-train_only-2"
    wanted = Path("out/predictions/herlev-paper-0.csv")
    assert paths.predictions_file("out", "herlev", "paper", 0) == wanted


def test_resolve_looks_in_the_working_directory_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/alice")
    (tmp_path / "README.md").touch()
    assert paths.resolve("README.md") == tmp_path / "README.md"
    assert paths.resolve("config/demo.yaml") == paths.ROOT / "config/demo.yaml"
    assert paths.resolve("/a/../b") == Path("/a/../b")
    assert paths.resolve("~/w.pth") == Path("/home/alice/w.pth")


# public


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("/data/x/", "x"),
        ("~/a/b", "b"),
        ("../c/d", "d"),
        (r"\\host\e\f", "f"),
        (r"C:\Users\x\y", "y"),
        ("demo", "demo"),
        ("", ""),
        (0.5, 0.5),
        (None, None),
        (True, True),
        ("see /home/alice/w.pth", "see w.pth"),
        (r"see C:\data\w.pth now", "see w.pth now"),
        ("train/valid", "train/valid"),
        ("https://a.org/b/c", "https://a.org/b/c"),
        (Path("/a/b"), "b"),
        ({"k": ["/a/b", 1], "n": {"m": ("/c/d",)}}, {"k": ["b", 1], "n": {"m": ["d"]}}),
    ],
)
def test_public(value, wanted):
    assert paths.public(value) == wanted


@pytest.mark.parametrize("variable", ["USER", "LOGNAME", "USERNAME"])
def test_public_names_no_user(monkeypatch, variable):
    monkeypatch.setenv(variable, "alice")
    assert paths.public("/home/alice") == paths.public(r"C:\Users\alice") == "folder"
