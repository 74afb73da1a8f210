"""The code of docs/decomposition.md runs as it stands, and the command line does what it says."""

from __future__ import annotations

import json

import numpy as np
import pages
import pytest


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path))
    names = pages.run("decomposition.md")
    assert names["same"]
    assert names["acts"]["blocks.*.mlp.up.components"].shape[::3] == (4, 32)
    np.testing.assert_array_equal(names["sweep"].shape[0], 4)
    assert names["importance"].shape == (5, 8)
    np.testing.assert_allclose(names["needed"]["linear1"], names["importance"][:1], atol=1e-6)
    assert names["alone"].shape == (1, 5)
    assert set(names["used"]) == {"linear1", "linear2"}
    report = names["report"]
    near = lambda value, want: np.testing.assert_allclose(value, want, atol=1e-3)
    near([report.strict.relative, report.all_on.relative, report.exact.relative], [0, 0.5, 0.5])
    assert 0 < names["linear"].strict.excess < names["linear"].strict.normalised
    assert [row["name"] for row in names["composites"]][::4] == ["1 on, needed parts alone", "2 on, needed parts alone"]
    assert "adversarial, exact" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch, capsys):
    from jax_interp.cli.main import main
    from jax_interp.decomposition.storage import load_decomposition
    from jax_interp.toys.tms import tms_target

    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    assert main(["decompose", "tms_5_2_spd_tiny", "--run-dir", str(run), "--quiet"]) == 0
    assert "linearity, strict" in capsys.readouterr().out
    result = json.loads((run / "evaluation.json").read_text())
    assert {"error", "pgd", "linearity", "pattern_errors", "composites", "mmcs"} <= set(result)
    page = (run / "report.html").read_text()
    assert "Is weight linearity real?" in page
    assert "over oracle" in page
    assert page.count("<svg") == 4 + 1
    (run / "report.html").unlink()
    assert main(["decomposition-report", str(run)]) == 0
    assert (run / "report.html").read_text() == page
    trained, config = load_decomposition(run / "decomposition.safetensors", tms_target("5-2"))
    assert config.C == 8
    before = (run / "decomposition.safetensors").read_bytes()
    assert main(["decompose", str(run), "--quiet"]) == 0  # done already: nothing changes
    assert (run / "decomposition.safetensors").read_bytes() == before
    assert trained.model.of("linear2").V.shape == (2, 8)
    with pytest.raises(ValueError, match="of another model"):
        load_decomposition(run / "decomposition.safetensors", tms_target("40-10"))
