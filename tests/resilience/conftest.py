"""For all tests of this folder: a place that other users reach, and to be one of them."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


def pytest_collection_modifyitems(config, items):
    """What is marked `resilience` or `slurm` runs where it is asked for alone."""
    alone = {"resilience", "slurm"} - set(config.option.markexpr.split())
    long = [item for item in items if any(map(item.get_closest_marker, alone))]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture
def place():
    """An empty folder that every user may enter (those of pytest are its user's alone)."""
    folder = Path(tempfile.mkdtemp(prefix="cervix"))
    folder.chmod(0o777)
    yield folder
    for below in folder.rglob("*"):
        if below.is_dir() and not below.is_symlink():
            below.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def somebody():
    """Function: a block in which permissions hold, also where the tests run as root."""

    @contextmanager
    def block(user: int = NOBODY):
        before = os.getuid()
        if before == 0:
            os.setresuid(user, user, 0)
        try:
            yield
        finally:
            os.setresuid(before, before, before)

    return block
