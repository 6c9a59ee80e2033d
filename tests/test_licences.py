"""docs/licences.md is current, and nothing that is needed to run forbids to hand on this code."""

import re
from importlib import metadata

import pytest
from test_project import DECLARED, locked, normal, requirement

from cervix_utils import paths
from tools import licences

PERMISSIVE = r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL|Mozilla|Public Domain|HPND"
BINDING = r"(?<!L)GPL|Affero|[Nn]on-?[Cc]ommercial|CC-BY-N|[Pp]roprietary|not said|not asked"


def table() -> dict[str, tuple[str, str]]:
    """name -> (version, licence) of docs/licences.md."""
    text = (paths.ROOT / "docs" / "licences.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+) \| ([\w.+]+) \| (.+) \|$", text, re.MULTILINE)
    return {normal(name): (version, said) for name, version, said in rows if name != "package"}


def forbids(said: str) -> bool:
    """Whether a licence may bind who hands on code that only imports the package: it says so, and
    offers no permissive one in its place."""
    return bool(re.search(BINDING, said)) and not re.search(rf"({PERMISSIVE}).*(;| OR )", said)


def test_the_table_has_the_locked_packages_at_their_versions():
    rows, lock = table(), locked()
    assert set(rows) == set(lock)
    assert {name for name, (version, _) in rows.items() if version not in lock[name]} == set()


def test_what_is_declared_is_permissive():
    rows = table()
    asked = [requirement(line) for line in DECLARED["dependencies"]]
    assert [name for name in asked if not re.search(PERMISSIVE, rows[name][1])] == []
    assert [name for name in asked if forbids(rows[name][1])] == []


def test_nothing_else_forbids_to_hand_on_this_code_but_drivers_that_are_not_part_of_it():
    """NVIDIA's libraries come with PyTorch on Linux, from where it is installed; cuda-toolkit is an
    empty package that names them. Packages for other systems were not asked."""
    found = {name for name, (_, said) in table().items() if forbids(said)}
    elsewhere = {name for name, (_, said) in table().items() if said == licences.ELSEWHERE}
    others = {name for name in found - elsewhere if not name.startswith("nvidia-")}
    assert others <= {"cuda-toolkit"} and not elsewhere & {
        *map(requirement, DECLARED["dependencies"])
    }


@pytest.mark.parametrize(
    ("said", "binding"),
    [
        ("GPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("CC-BY-NC-4.0", True),
        ("MIT AND GPL-2.0-only", True),
        ("not said", True),
        ("LGPL-2.1", False),
        ("MIT OR GPL-2.0", False),
        ("BSD-3-Clause", False),
    ],
)
def test_a_binding_licence_would_be_seen(said, binding):
    assert forbids(said) == binding


def test_a_licence_is_read_from_metadata_else_from_its_file():
    assert licences.licence("numpy", "").split(" | ")[0] == metadata.version("numpy")
    assert licences.licence("conda-inject", "").endswith("| MIT License")
    assert licences.licence("no-such-package", "1.2") == f"1.2 | {licences.ELSEWHERE}"
