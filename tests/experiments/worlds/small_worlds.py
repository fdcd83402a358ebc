"""Logs of made worlds that are drawn in no time, all on the same answers."""

from __future__ import annotations

from irm_fast.experiments.worlds.drawing import Drawn, draw_log
from irm_fast.experiments.worlds.knobs import WORLDS
from irm_fast.experiments.worlds.texts import Texts

ROWS, TEST = 3000, 300
BY_NAME = {world.name: world for world in WORLDS}


def drawn_log(name: str, texts: Texts) -> Drawn:
    """The log of the world of a name on the answers of the fixture `texts`."""
    return draw_log(BY_NAME[name], texts, ROWS, 0)
