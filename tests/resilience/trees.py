"""Broken trees: a small data set, spoilt in a few of the ways of SPOILERS, chosen by a seed."""

import io
import os
import shutil
import socket
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from cervix_utils.data import datasets

HERLEV = datasets.get("herlev").originals  # names of its folders

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n0 0 9 9 rectfill\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
NAMES = [
    b"it's",
    b'say "so"',
    b"two\nlines",
    b"tab\there",
    b"back\\slash",
    b"-rf",
    b"--help",
    b" leading and trailing ",
    b"=cmd|' C calc'!A0",
    b"+1-1-1",
    b"-1-1-1",
    b"@SUM(1)-1-1",
    b"<img src=x onerror=alert(1)>",
    b"<script>alert(1)<",
    b"{{7*7}}",
    b"{% raw %}",
    b"{0}{x!r}",
    b"%s%n%d",
    b"$(touch x)`id`",
    b"a;b&c|d",
    b"*?[!x]",
    b"NULL",
    b"nan",
    b"1e999",
    "\u202ereversed".encode(),
    "漢字 каф é".encode(),
    "e\u0301 combining".encode(),
    "🧫".encode(),
    b"not utf-8 \xff\xfe",
    b"\xed\xa0\x80 surrogate",
    b"x" * 240,
    b".hidden",
    b"...",
    b"CON",
]
MODES = ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"]
SUFFIXES = [".BMP", ".jpg", ".png", ".tif", ".gif", ".webp", ".jp2", ".avif", ".dds", ".ico", ""]


def _picture(rng, size=(12, 9)) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _mask(rng, size=(12, 9), codes=(2, 3, 4)) -> Image.Image:
    mask = Image.fromarray(rng.choice(codes, size[::-1]).astype(np.uint8), "P")
    mask.putpalette(bytes(range(256)) * 3)
    return mask


def write_good(root: Path, rng, task: str, number: int) -> None:
    """A good data set: ``number`` pictures a class, cells with masks on eight slides."""
    folders = list(HERLEV) if task == "herlev" else [f"train/Type_{k}" for k in (1, 2, 3)]
    for kind, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for k in range(number):
            if task == "herlev":
                stem = root / folder / f"{100 + k % 8}-{kind}-{k:03d}"
                _picture(rng).save(f"{stem}.BMP")
                _mask(rng).save(f"{stem}-d.bmp")
            else:
                _picture(rng, (30, 40)).save(root / folder / f"{k}.jpg")


class Spoiler:
    """One tree that is being spoilt: picks files and folders of it with a generator."""

    def __init__(self, root: Path, rng):
        self.root, self.rng = root, rng

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def file(self) -> Path:
        files = self.files()
        return files[self.rng.integers(len(files))]

    def folder(self) -> Path:
        folders = sorted({file.parent for file in self.files()})
        return folders[self.rng.integers(len(folders))]

    def new(self, suffix: str = ".BMP", stem: bytes | None = None) -> Path:
        """A path that is free, of an odd name or of a plain one."""
        stem = stem if stem is not None else f"new{self.rng.integers(10**6)}".encode()
        return self.folder() / os.fsdecode(stem + suffix.encode())

    def bytes_of(self, suffix: str, **options) -> bytes:
        buffer = io.BytesIO()
        Image.registered_extensions()
        form = Image.EXTENSION.get(suffix.lower(), "PNG")
        _picture(self.rng, (32, 32)).save(buffer, form, **options)
        return buffer.getvalue()

    # what is done to the tree

    def empty(self):
        self.file().write_bytes(b"")

    def cut(self):
        file = self.file()
        content = file.read_bytes()
        file.write_bytes(content[: self.rng.integers(len(content) + 1)])

    def flip(self):
        file = self.file()
        content = np.frombuffer(file.read_bytes(), np.uint8).copy()
        if len(content):
            places = self.rng.integers(0, len(content), 20) // self.rng.choice([1, 40])
            content[places] = self.rng.integers(0, 256, 20)
        file.write_bytes(content.tobytes())

    def damaged_format(self):
        suffix = str(self.rng.choice(SUFFIXES[:-1]))
        content = bytearray(self.bytes_of(suffix))
        for place in self.rng.integers(0, len(content), 8):
            content[place] = self.rng.integers(256)
        content = content[: self.rng.integers(1, len(content))]
        self.new(str(self.rng.choice(SUFFIXES))).write_bytes(content)

    def noise(self):
        self.new(str(self.rng.choice(SUFFIXES))).write_bytes(self.rng.bytes(500))

    def text(self):
        self.new(".jpg").write_text("<html>404 not found</html>\n" * 20)

    def program(self):
        self.new(".BMP").write_bytes(EPS)
        self.new(".png").write_bytes(SVG)

    def archive(self):
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as packed:
            packed.writestr("../../escaped.BMP", self.bytes_of(".png"))
        with zipfile.ZipFile(self.new(".zip"), "w") as packed:
            packed.writestr("inner.zip", inner.getvalue())
        with tarfile.open(self.new(".tar"), "w") as packed:
            packed.add(self.file(), "x.BMP")

    def case_collision(self):
        file = self.file()
        _picture(self.rng).save(file.with_name(file.name.swapcase()), "PNG")
        folder = self.root / str(self.rng.choice(list(HERLEV))).title()
        folder.mkdir(exist_ok=True)
        _picture(self.rng).save(folder / "1-2-3.BMP")

    def odd_name(self):
        for stem in self.rng.choice(len(NAMES), 4):
            self.new(".png", NAMES[stem]).write_bytes(self.bytes_of(".png"))

    def odd_folder(self):
        name = NAMES[self.rng.integers(len(NAMES))]
        folder = self.folder() / os.fsdecode(name)
        folder.mkdir(exist_ok=True)
        (folder / "in it.png").write_bytes(self.bytes_of(".png"))

    def odd_mode(self):
        mode = str(self.rng.choice(MODES))
        picture = _picture(self.rng).convert("L" if mode == "I;16" else mode)
        picture = picture.convert("I;16") if mode == "I;16" else picture
        picture.save(self.new(".tif"))

    def animation(self):
        frames = [_picture(self.rng).quantize(8) for _ in range(3)]
        frames[0].save(self.new(".gif"), save_all=True, append_images=frames[1:])

    def odd_size(self):
        sizes = [(1, 1), (1, 3000), (3000, 1), (2, 2)]
        _picture(self.rng, sizes[self.rng.integers(len(sizes))]).save(self.new(".png"))

    def bomb(self):
        content = bytearray(self.bytes_of(".bmp"))
        content[18:26] = (2**20).to_bytes(4, "little") * 2
        self.new(".BMP").write_bytes(content)
        Image.new("1", (20000, 20000)).save(self.new(".png"))  # 400 megapixels in 50 kB

    def large(self):
        for shade in range(4):  # together more than the memory that is allowed
            Image.new("RGB", (7000, 6000), (90, 80, shade)).save(self.new(".jpg"))

    def sparse(self):
        with self.new(".BMP").open("wb") as opened:
            opened.truncate(2**31)

    def loop(self):
        self.new("").symlink_to(self.root)
        self.new("").symlink_to("..")
        link = self.new(".BMP")
        link.symlink_to(link)

    def links(self):
        self.new(".BMP").symlink_to("/nowhere/at/all")
        self.new(".BMP").symlink_to("/dev/zero")
        self.new("").symlink_to("/")
        self.new(".BMP").symlink_to(self.file())

    def linked_folder(self):
        folder = self.folder()
        if folder != self.root:
            elsewhere = self.root.parent / f"elsewhere{self.rng.integers(10**6)}"
            shutil.move(folder, elsewhere)
            folder.symlink_to(elsewhere)

    def pipe(self):
        os.mkfifo(self.new(".BMP"))
        with socket.socket(socket.AF_UNIX) as opened:
            before = Path.cwd()
            os.chdir(self.folder())  # the address of a socket may have 108 bytes
            opened.bind(f"s{self.rng.integers(10**6)}")
            os.chdir(before)

    def no_permission(self):
        self.file().chmod(0)
        self.folder().chmod(int(self.rng.choice([0o000, 0o444, 0o111])))

    def folder_like_a_file(self):
        folder = self.new(".BMP")
        folder.mkdir()
        (folder / "nested.BMP").write_bytes(self.bytes_of(".bmp"))

    def deep(self):
        folder = self.folder()
        for level in range(40):
            folder = folder / f"level{level}"
        folder.mkdir(parents=True)
        (folder / "deep.png").write_bytes(self.bytes_of(".png"))

    def masks(self):
        place = ["Masks", "annotations", "REFERENCIA", "x"][self.rng.integers(4)]
        for file in [file for file in self.files() if not file.stem.endswith("-d")][:9]:
            other = self.root / place / file.parent.name / f"{file.stem}.bmp"
            other.parent.mkdir(parents=True, exist_ok=True)
            _mask(self.rng, codes=(3, 4) if self.rng.random() < 0.2 else (2, 3, 4)).save(other)

    def odd_masks(self):
        file = self.file()
        _picture(self.rng).save(file.with_name(f"{file.stem}_mask.bmp"))
        _mask(self.rng, (5, 5)).save(file.with_name(f"{file.stem}_seg.png"))
        _mask(self.rng).save(self.new("-d.bmp"))

    def twins(self):
        file = self.file()
        shutil.copy(file, self.new(file.suffix))
        os.link(file, self.new(file.suffix))

    def one_left(self):
        folder = self.folder()
        for file in sorted(path for path in folder.iterdir() if path.is_file())[2:]:
            file.unlink()

    def class_gone(self):
        folder = self.folder()
        for file in [path for path in folder.iterdir() if path.is_file()]:
            file.write_bytes(b"")

    def one_group(self):
        for file in self.files():
            if file.stem.count("-") >= 2:
                file.rename(file.with_name(f"1-{file.name.split('-', 1)[1]}"))

    def system_files(self):
        for name in ("Thumbs.db", "._x.BMP", ".DS_Store", "desktop.ini"):
            (self.folder() / name).write_bytes(b"x")

    def odd_time(self):
        os.utime(self.file(), (-(10**9), 2**40))

    def unknown_class(self):
        (self.root / "koilocytotic").mkdir(exist_ok=True)
        _picture(self.rng).save(self.root / "koilocytotic/1.png")


RARE = ["bomb", "large", "sparse", "class_gone", "no_permission"]  # slow, or hide the others
OFTEN = [
    name
    for name in vars(Spoiler)
    if name[0] != "_" and name not in ("files", "file", "folder", "new", "bytes_of", *RARE)
]


def spoilt(place: Path, seed: int) -> tuple[Path, str, list[str]]:
    """(data root, task, what was done) of the broken tree of a seed."""
    rng = np.random.default_rng([21, seed])
    task, number = str(rng.choice(["herlev", "herlev", "colposcopy"])), int(rng.choice([6, 14, 20]))
    root = place / "data" / ("herlev" if task == "herlev" else "mobileodt")
    write_good(root, rng, task, number)
    done = [str(name) for name in rng.choice(OFTEN, rng.integers(1, 6), replace=False)]
    if seed % 4 == 0:
        done.append(RARE[seed // 4 % len(RARE)])  # last: files cannot be picked after some
    spoiler = Spoiler(root, rng)
    for name in done:
        with suppress(FileExistsError, FileNotFoundError):  # two of one name, a link to nothing
            getattr(spoiler, name)()
    return place / "data", task, done
