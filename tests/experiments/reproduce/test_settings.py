"""The settings of `reproduce`: those without effect are refused, and stand in the way of nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from irm_fast.experiments.reproduce import best_of_n, experiment, picture, redraws
from irm_fast.experiments.reproduce.population import PROTOCOLS
from tests.experiments.reproduce.small_runs import EXPERIMENT, go


@pytest.mark.parametrize(
    ("settings", "protocols", "match"),
    [
        ({"model": "no/such/model"}, PROTOCOLS, "model: got 'no/such/model', which has no effect on semi-synthetic"),
        ({"max_length": 1}, PROTOCOLS, "max_length: got 1, which has no effect on semi-synthetic data, which have no"),
        ({"alpha": 0.3}, ("feature",), "alpha: got 0.3, which has no effect without the protocol rating; leave it out"),
        ({"data": "hs", "model": "m", "noise": 0.1}, PROTOCOLS, "noise: got 0.1, which has no effect on rated resp"),
    ],
)
def test_a_setting_without_effect_is_refused(tmp_path, few, small, settings, protocols, match):
    with pytest.raises(ValueError, match=match):
        redraws.run_redraws(replace(EXPERIMENT, **settings), tmp_path / "one", protocols=protocols, processes=1)
    assert not (tmp_path / "one").exists()


def test_a_setting_without_effect_is_not_kept(tmp_path, few, small, monkeypatch):
    """So that it stands in the way of no later run, and what an earlier run used stays."""
    for module in (best_of_n, picture):
        monkeypatch.setattr(module, "draw", lambda *_: None)
    folder, other = tmp_path / "one", replace(EXPERIMENT, alpha=0.3)
    go(folder)
    assert "alpha" not in redraws.write_report(go(folder, resume=True), EXPERIMENT, folder).split("; irm_fast")[0]
    kept = json.loads((folder / "settings.json").read_text())
    assert kept["experiment"] == {"data": experiment.MADE, "target": 0.5, "limit": 300, "noise": 0.45}
    both = {"protocols": PROTOCOLS, "redraws": 2, "processes": 1, "resume": True}
    results = redraws.run_redraws(other, folder, **both)
    assert "; mean propensity 0.5, alpha 0.3; irm_fast" in redraws.write_report(results, other, folder)
    with pytest.raises(ValueError, match=r"alpha: got 0\.5; .* was run with 0\.3; give the options of then"):
        redraws.run_redraws(EXPERIMENT, folder, **both)
    assert "alpha 0.3" in redraws.write_report(go(folder, resume=True), EXPERIMENT, folder)


def test_a_run_of_an_earlier_version_goes_on(tmp_path, few, small, recwarn):
    """It kept every setting, and no version of a package."""
    folder = tmp_path / "one"
    whole = go(folder)
    kept = json.loads((folder / "settings.json").read_text())
    assert kept.pop("versions")["torch"]
    kept["experiment"] |= {"model": "no/such/model", "alpha": 0.5, "max_length": 1024}
    (folder / "settings.json").write_text(json.dumps(kept))
    assert go(folder, resume=True) == whole and not [one for one in recwarn if "versions:" in str(one.message)]
    (folder / "settings.json").write_text(json.dumps(kept | {"versions": {"torch": "1.0"}}))
    with pytest.warns(UserWarning, match=r"versions: got torch .*; .* was begun with torch==1\.0, and"):
        assert go(folder, resume=True) == whole
    assert json.loads((folder / "settings.json").read_text())["versions"] == {"torch": "1.0"}
