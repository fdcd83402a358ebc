"""The worlds: how the users of a log act, with one knob turned in each."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS = 3  # to each question


@dataclass(frozen=True)
class World:
    """How the users of a log act; `drawing.draw_log` has the formulas.

    Attributes:
        name: The name in tables.
        drivers: How much length, lists and bait move who is pleased to act, as a multiple of `made_answers.WEIGHTS`.
        rate: The mean propensity of each signal over all answers, before any escape; in a funnel that of the first.
        signals: The number of signals, 1 or 2.
        users: The deviation of activity between users, a logit.
        sessions: The deviation of activity between the sessions of a user, a logit.
        moods: The same between rows: what a row's signals share and no log shows.
        misclicks: The share of active users who act although the answer did not please.
        funnel: Whether the second signal can only follow the first.
        escape: The quality from which no answer draws an action, as it settles the matter and its reader leaves; None
            for no such answers.
        flatterers: The share of users who act on whatever flatters them (bait), pleased or not.
        liked: How much length pleases, a logit for each deviation of its logarithm.
        topics: The deviation between topics of how readily who is pleased acts, a logit; no visible feature shows it.
    """

    name: str
    drivers: float = 1.0
    rate: float = 0.15
    signals: int = 2
    users: float = 0.0
    sessions: float = 0.0
    moods: float = 0.0
    misclicks: float = 0.0
    funnel: bool = False
    escape: float | None = None
    flatterers: float = 0.0
    liked: float = 0.0
    topics: float = 0.0


WORLDS = (
    World("base"),
    World("nothing draws", drivers=0.0),
    World("drives twice as much", drivers=2.0),
    World("drives what is liked", drivers=-1.0),
    World("rare actions (3%)", rate=0.03),
    World("frequent actions (50%)", rate=0.5),
    World("one signal", signals=1),
    World("unequal users", users=1.5),
    World("unequal users and sessions", users=1.5, sessions=1.5),
    World("a hidden mood", moods=1.5),
    World("misclicks (10%)", misclicks=0.1),
    World("funnel", funnel=True),
    World("the best answers escape", escape=2.5),
    World("2% reward flattery", flatterers=0.02),
    World("length is liked too", liked=1.0),
    World("topics draw too", topics=1.5),
)
