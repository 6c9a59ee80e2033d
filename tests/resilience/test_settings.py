"""Every key of a configuration with every kind of wrong value: planned, or refused in clear words;
and caches on small disks."""

import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cervix_utils import config, paths
from workflow import jobs

LOOP = []
LOOP.append(LOOP)
HOSTILE = [
    None,
    True,
    -1,
    0,
    2**31,
    10**20,
    10**400,
    -0.0,
    1e-320,
    1e300,
    math.nan,
    math.inf,
    "",
    " ",
    "a\0b",
    "\ud800",
    "../../etc",
    "/etc/passwd",
    "/dev/zero",
    "~nobody/x",
    "a" * 5000,
    "$(touch x)",
    "{x}",
    "<script>",
    "demo\n",
    "!!python/object:os.system",
    [],
    [None],
    [[[[]]]],
    [1] * 1000,
    ["combined_w1"],
    ["combined_seed-1"],
    ["x" * 5000],
    {},
    {"a": 1},
    b"bytes",
    (1,),
    LOOP,
]
LONG = 4000  # letters of a message that is still read


@pytest.mark.resilience
@pytest.mark.parametrize("key", config.schema())
def test_a_key_with_any_value_is_planned_or_refused(tiny_demo, key):
    for value in HOSTILE:
        settings = {"data_root": str(tiny_demo), key: value}
        try:
            _, planned = jobs.plan("demo", settings)
        except config.ConfigError as error:
            assert "demo.yaml with SET" in str(error)
            assert str(error).strip() and len(str(error)) < LONG + 4 * len(str(value)), error
        else:
            assert "03_herlev_resnet101_paper-0" in planned or key.startswith("herlev_"), value


def test_many_values_at_once(tiny_demo):
    rng = np.random.default_rng([21, int(os.environ.get("SEED", 0))])
    keys = sorted(config.schema())
    for _ in range(30):
        chosen = {
            keys[k]: HOSTILE[v]
            for k, v in zip(*rng.integers(0, (len(keys), len(HOSTILE)), (8, 2)).T)
        }
        with pytest.raises(config.ConfigError):
            jobs.plan("demo", {"data_root": str(tiny_demo), "seed": "x"} | chosen | {"n_boot": -1})


DISK = """
set -e
mount -t tmpfs -o size=$1 none "$2"
exec "$3" -c '
import sys
from cervix_utils.data import datasets, squares
try:
    table, _ = datasets.load("demo", "herlev")
    squares.open_squares(table, 64)
    print("enough")
except (datasets.DataError, OSError) as error:
    print(type(error).__name__, error)
'
"""


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.resilience
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a small disk")
@pytest.mark.parametrize("size", ["16k", "100k", "1m", "2m", "4m", "40m"])
def test_a_cache_on_a_small_disk_is_enough_or_named_with_the_remedy(tmp_path, size):
    environment = os.environ | {"CERVIX_CACHE": str(tmp_path), "PYTHONPATH": str(paths.ROOT)}
    command = ["unshare", "-m", "sh", "-c", DISK, "sh", size, str(tmp_path), sys.executable]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    said = done.stdout.splitlines()[-1]
    print(f"cache of {size}: {said}")
    assert said == "enough" if size == "40m" else "CERVIX_CACHE" in said and str(tmp_path) in said
