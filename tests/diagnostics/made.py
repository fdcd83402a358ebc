"""Made logs with users, sessions and times, whose signals are independent given the response."""

from dataclasses import dataclass, field

import numpy as np

from irm_fast.diagnostics import diagnose

ROWS, PER_USER, PER_SESSION, DAYS = 12_000, 12, 6, 40
DAY = 86_400


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


@dataclass
class Made:
    """A made log: feedback (N, K) of signals with propensities (N, K), and what is known of its rows."""

    rng: np.random.Generator
    reward: np.ndarray
    propensity: np.ndarray
    users: np.ndarray
    sessions: np.ndarray
    times: np.ndarray
    pleased: np.ndarray
    feedback: np.ndarray = field(default=None)
    given: dict = field(default_factory=dict)

    def act(self, active=None, pleased=None):
        """Draw the feedback of active users, probabilities (N, K), who are pleased, (N,) or (N, K)."""
        active = sigmoid(self.propensity) if active is None else active
        pleased = self.pleased if pleased is None else pleased
        pleased = pleased.reshape(len(pleased), -1)
        self.feedback = (pleased & (self.rng.random(active.shape) < active)).astype(np.int8)

    def keep(self, rows):
        for name in ("reward", "propensity", "users", "sessions", "times", "pleased", "feedback"):
            setattr(self, name, getattr(self, name)[rows])

    def fit(self):
        """Set the predictions to what two signals show under independence, by decile of the true reward logit."""
        decile = np.argsort(np.argsort(self.reward)) * 10 // len(self.reward)
        g, rates = np.empty(10), np.empty((10, 2))
        for d in range(10):
            acted = self.feedback[decile == d, :2]
            rates[d] = acted.mean(axis=0)
            g[d] = min(0.98, rates[d].prod() / acted.all(axis=1).mean())
        m = np.minimum(rates / g[:, None], 0.98)
        self.reward, self.propensity = np.log(g / (1 - g))[decile], np.log(m / (1 - m))[decile]

    def diagnose(self, *known, **options):
        """Diagnose, with what of users, sessions and times is named."""
        context = {name: getattr(self, name) for name in known}
        return diagnose(
            self.feedback,
            signals=["copy", "share", "save"][: self.feedback.shape[1]],
            propensity_design="hidden",
            reward_logits=self.reward,
            propensity_logits=self.propensity,
            **context,
            **options,
        )


def make(seed, signals=2, rows=ROWS, base=-0.5):
    """Draw a log that keeps all assumptions: users in random order of time, true mean preference .50."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    reward = 1.2 * x[:, 0] - x[:, 1]
    propensity = base + 0.3 * x @ rng.normal(size=(4, signals))
    user = rng.permutation(rows // PER_USER).repeat(PER_USER)
    session = user * (PER_USER // PER_SESSION) + np.tile(np.arange(PER_USER) // PER_SESSION, rows // PER_USER)
    start = rng.uniform(0, DAYS, session.max() + 1)[session] * DAY
    times = 1.7e9 // DAY * DAY + start + 90.0 * np.tile(np.arange(PER_SESSION), rows // PER_SESSION)
    made = Made(rng, reward, propensity, user, session, times, rng.random(rows) < sigmoid(reward))
    made.act()
    return made


def unordered(made):
    """Return times of actions (N, K) of signals that do not wait for each other."""
    return np.where(made.feedback == 1, made.times[:, None] + made.rng.uniform(0, 60, made.feedback.shape), np.nan)


def failed(found):
    return {test.name for test in found.tests if test.result == "failed"}


def place(made):
    return np.tile(np.arange(PER_SESSION), len(made.reward) // PER_SESSION)
