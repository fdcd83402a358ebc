"""Pictures by matplotlib have one look, and say who wrote them."""

from __future__ import annotations

import pytest

from irm_fast.publish.figures import new_figure, plain, save


def test_a_picture_is_whole_and_says_who_wrote_it(tmp_path):
    pytest.importorskip("matplotlib")
    figure = new_figure(4, 2)
    axes = figure.subplots()
    plain(axes, "x")
    assert not axes.spines["top"].get_visible() and axes.spines["left"].get_visible()
    assert axes.get_xgridlines()[0].get_visible() and not axes.get_ygridlines()[0].get_visible()
    path = save(figure, tmp_path / "a.png", "somebody")
    head = path.read_bytes()
    assert head[:4] == b"\x89PNG" and b"somebody" in head[:1000]
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]
