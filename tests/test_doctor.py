"""What ``make doctor`` says of a machine: every line holds what was found and what to do."""

import pytest

from tools import doctor


def test_the_data_at_hand_are_named_with_their_layout(tiny_demo, capsys):
    doctor.main(str(tiny_demo))
    said = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok  ", "look")) for line in said)
    assert any(
        "cells in herlev/, such as those in herlev/carcinoma_in_situ/" in line for line in said
    )
    assert any("files not used (" in line and "notebook 1 lists them" in line for line in said)
    assert any("Python 3." in line for line in said) and any("GB of disk" in line for line in said)


def test_what_is_missing_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "NEEDED", 10**9)
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10))
    doctor.main(str(tmp_path))
    said = capsys.readouterr().out
    assert "-> free some, or set CERVIX_CACHE" in said and "PYTHON=python3.12" in said
    assert (
        said.count("-> see docs/data.md") == len(doctor.datasets.DATASETS)
        and "no folder 'herlev'" in said
    )


@pytest.mark.parametrize("weights", ["resnet50-x.pth", ""])
def test_weights_at_hand_are_named(tmp_path, monkeypatch, capsys, weights):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / (weights or "other.pth")).write_bytes(b"")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    doctor.main(str(tmp_path))
    assert f"initial weights: {weights or 'none here'}" in capsys.readouterr().out
