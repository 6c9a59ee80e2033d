"""The licence of every locked package -> docs/licences.md: ``make licences``."""

import re
from importlib import metadata

from cervix_utils import paths

HEAD = "# Licences\n\nOf the packages of `requirements.lock`, as each says: `make licences`."
HEAD += "\nNone is part of this repository.\n\n| package | version | licence |\n|---|---|---|\n"
ELSEWHERE = "not asked: for other systems or versions of Python"


def licence(name: str, version: str) -> str:
    """Version and licence of a package by its metadata, else by the head of its licence file."""
    try:
        about, files = metadata.metadata(name), metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return f"{version} | {ELSEWHERE}"
    told = [kind.split(" :: ")[-1] for kind in about.get_all("Classifier", []) if "License" in kind]
    texts = [file.read_text() for file in files if re.search("licen[cs]e", file.name, re.I)]
    said = [about.get("License-Expression"), "; ".join(told), about.get("License"), *texts]
    said = next(filter(None, map(str.strip, filter(None, said))), "not said")
    return f"{about['Version']} | {said.splitlines()[0]}"


def main() -> None:
    """Write the table: one row a package, in the order of their names."""
    lock = (paths.ROOT / "requirements.lock").read_text()
    locked = re.findall(r"(?m)^([\w.-]+)==([\w.+]+)", lock)
    rows = {name: licence(name, said) for name, said in locked}
    with paths.whole(paths.ROOT / "docs" / "licences.md") as draft:
        draft.write_text(HEAD + "".join(f"| {name} | {row} |\n" for name, row in rows.items()))


if __name__ == "__main__":
    main()
