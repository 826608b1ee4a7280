"""Every network for images in the catalogue can be added, fine-tuned, exported and read back with equal answers."""

import pytest

from benchmarks.families import row
from tests.backbones.family import different_rows, prove_tiny, rows


@pytest.mark.parametrize("name", different_rows("image"))
def test_a_small_network_of_the_family_goes_from_a_preset_to_an_export(name, tmp_path, monkeypatch):
    proof = prove_tiny(name, tmp_path, monkeypatch)
    assert proof.losses[1] < proof.losses[0]
    assert proof.difference < 1e-5
    assert proof.flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", rows("image"))
def test_the_true_shape_does_too_and_has_the_parameters_and_operations_of_the_catalogue(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    line = row(name)
    assert "catalogue" not in line
    assert float(line.split("|")[-2]) < 1e-5
