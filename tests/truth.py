"""An independent judge of the loss: the definition itself, evaluated at 100 digits.

Nothing here knows a closed form. The likelihood is the sum over the latent states (r*, a_1 .. a_K), gradients
are central differences of its logarithm, and the four groups are Bayes' rule on the enumerated states. The
inputs are the float32 numbers that the implementation sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from math import prod
from typing import Any

import numpy as np
from mpmath import MPContext

mp = MPContext()  # our own context: the precision of the global one stays as it is
mp.dps = 100
STEP = mp.mpf(10) ** -25  # central differences: truncation about 1e-50, rounding about 1e-75

SIDES = (1, 0)  # the values of r*
ACTIVITY = (1, 0)  # the values of a_k
Real = Any  # an mpf; mpmath has no types
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Batch:
    """Rows that share polarity and misclick rates, as one call of the loss takes them."""

    name: str
    reward: Array  # (N,) float32
    propensity: Array  # (N, K) float32
    feedback: Array  # (N, K) int8
    preference: Array | None  # (N,) int8
    polarity: tuple[int, ...] | None
    misclick: tuple[float, ...] | None  # float32 values
    weight: Array | None  # (N,) float32
    other_reward: Array  # (N,) float32, logits of a separate stratification model
    other_propensity: Array  # (N, K) float32

    @property
    def all_positive(self) -> bool:
        return self.polarity is None or min(self.polarity) > 0

    def rows(self, *, other: bool = False) -> Iterator[Row]:
        n, k = self.propensity.shape
        reward, propensity = (self.other_reward, self.other_propensity) if other else (self.reward, self.propensity)
        for i in range(n):
            yield Row(
                s=mp.mpf(float(reward[i])),
                t=tuple(mp.mpf(float(x)) for x in propensity[i]),
                feedback=tuple(int(x) for x in self.feedback[i]),
                preference=-1 if self.preference is None else int(self.preference[i]),
                polarity=self.polarity or (1,) * k,
                misclick=tuple(mp.mpf(e) for e in self.misclick or (0.0,) * k),
            )


@dataclass(frozen=True)
class Row:
    """One impression and the definition of its likelihood."""

    s: Real
    t: tuple[Real, ...]
    feedback: tuple[int, ...]
    preference: int
    polarity: tuple[int, ...]
    misclick: tuple[Real, ...]

    def entry(self, k: int, side: int, active: int) -> Real:
        """P(f_k | a_k, r*)."""
        if self.feedback[k] == -1:
            return mp.one
        speaks_for = 1 if self.polarity[k] == 1 else 0
        acts = mp.zero if not active else mp.one if side == speaks_for else self.misclick[k]
        return acts if self.feedback[k] == 1 else 1 - acts

    def prior(self, s: Real, side: int) -> Real:
        """P(r*), and P(explicit label | r*) where there is a label."""
        return sigmoid(s if side else -s) * (self.preference in (-1, side))

    def states(self, k: int, t: Real) -> dict[tuple[int, int], Real]:
        """P(a_k, f_k | r*) for every (r*, a_k)."""
        chance = {1: sigmoid(t), 0: sigmoid(-t)}
        return {(r, a): chance[a] * self.entry(k, r, a) for r in SIDES for a in ACTIVITY}

    def likelihood(self, s: Real, t: tuple[Real, ...]) -> Real:
        """P(evidence): r* is summed over, and every a_k given r*, given which they are independent."""
        states = [self.states(k, x) for k, x in enumerate(t)]
        return sum(self.prior(s, r) * prod(z[r, 1] + z[r, 0] for z in states) for r in SIDES)

    def loss(self, s: Real, t: tuple[Real, ...]) -> Real:
        return -mp.log(self.likelihood(s, t))

    def gradient(self) -> list[Real]:
        """d loss / d(s, t_1 .. t_K)."""

        def at(j: int, x: Real) -> Real:
            logits = [self.s, *self.t]
            logits[j] = x
            return self.loss(logits[0], tuple(logits[1:]))

        return [slope(partial(at, j), x) for j, x in enumerate((self.s, *self.t))]

    @cached_property
    def posterior(self) -> list[dict[tuple[int, int], Real]]:
        """P(r*, a_k | evidence) of every signal."""
        states = [self.states(k, x) for k, x in enumerate(self.t)]
        total = self.likelihood(self.s, self.t)
        result = []
        for k, own in enumerate(states):
            rest = {
                r: self.prior(self.s, r) * prod(z[r, 1] + z[r, 0] for j, z in enumerate(states) if j != k)
                for r in SIDES
            }
            result.append({(r, a): rest[r] * own[r, a] / total for r in SIDES for a in ACTIVITY})
        return result

    def groups(self) -> list[list[Real]]:
        """PA, NA, PP, NP of every signal."""
        return [[p[1, 1], p[0, 1], p[1, 0], p[0, 0]] for p in self.posterior]

    def cross_entropies(self) -> list[tuple[Real, Real] | None]:
        """The targets (q, 1-q) for s and (p_k, 1-p_k) for t_k, from the posterior; None where missing."""
        first = self.posterior[0]
        reward = (first[1, 1] + first[1, 0], first[0, 1] + first[0, 0])
        return [
            reward,
            *(
                None if f == -1 else (p[1, 1] + p[0, 1], p[1, 0] + p[0, 0])
                for f, p in zip(self.feedback, self.posterior, strict=True)
            ),
        ]


def sigmoid(x: Real) -> Real:
    return 1 / (1 + mp.exp(-x))


def slope(function: Callable[[Real], Real], x: Real) -> Real:
    return (function(x + STEP) - function(x - STEP)) / (2 * STEP)


def cross_entropy(target: tuple[Real, Real], x: Real) -> Real:
    return -(target[0] * mp.log(sigmoid(x)) + target[1] * mp.log(sigmoid(-x)))


@dataclass(frozen=True)
class Truth:
    """What the implementation must give, in float64. Row weights are already in."""

    loss: Array  # (N,)
    reward_grad: Array  # (N,)
    propensity_grad: Array  # (N, K)
    groups: Array  # (N, K, 4)


def marginal(batch: Batch) -> Truth:
    rows = list(batch.rows())
    return _collect(
        batch,
        [row.loss(row.s, row.t) for row in rows],
        [row.gradient() for row in rows],
        [row.groups() for row in rows],
    )


def stratified(batch: Batch, *, current: bool) -> Truth:
    """Cross-entropies against the posterior of the current logits, or of the separate ones."""
    losses, gradients, groups = [], [], []
    for row, teacher in zip(batch.rows(), batch.rows(other=not current), strict=True):
        terms = list(zip(teacher.cross_entropies(), (row.s, *row.t), strict=True))
        losses.append(mp.fsum(cross_entropy(target, x) for target, x in terms if target))
        gradients.append(
            [slope(partial(cross_entropy, target), x) if target else mp.zero for target, x in terms],
        )
        groups.append(teacher.groups())
    return _collect(batch, losses, gradients, groups)


def _collect(batch: Batch, loss: list[Real], gradient: list[list[Real]], groups: list[list[list[Real]]]) -> Truth:
    weight = np.ones(len(loss)) if batch.weight is None else batch.weight.astype(np.float64)
    grad = np.array([[float(x) for x in row] for row in gradient]) * weight[:, None]
    return Truth(
        np.array([float(x) for x in loss]) * weight,
        grad[:, 0],
        grad[:, 1:],
        np.array([[[float(x) for x in group] for group in row] for row in groups]),
    )


@cache
def truth_of(name: str, form: str) -> Truth:
    """The truth of a batch by name, once a session. Forms: marginal, separate, current."""
    if form == "marginal":
        return marginal(BATCHES[name])
    return stratified(BATCHES[name], current=form == "current")


def draw(name: str, n: int, k: int, spread: str, options: str) -> Batch:
    """Random rows without contradictory evidence.

    Spread of the logits: "wide" (uniform to 40), "usual" (normal, sd 2), "huge" (to 1e4).
    Options: "plain", "misclick", "polarity", or "both" of these; the last two also bring explicit labels.
    """
    rng = np.random.default_rng(sum(map(ord, name)) * 1000 + n + k)

    def logits(*shape: int) -> Array:
        if spread == "wide":
            return rng.uniform(-40, 40, shape).astype(np.float32)
        if spread == "usual":
            return rng.normal(0, 2, shape).astype(np.float32)
        ends = rng.choice([-1e4, -1e3, -200, -90, 0, 90, 200, 1e3, 1e4], shape)
        return np.where(rng.random(shape) < 0.2, rng.uniform(-1e4, 1e4, shape), ends).astype(np.float32)

    polarity = tuple(int(x) for x in rng.choice([1, -1], k)) if options in ("polarity", "both") else None
    misclick = None
    if options in ("misclick", "both"):
        rates = np.where(rng.random(k) < 0.3, 0, rng.choice([1, 0.01], k) * rng.uniform(0, 0.9, k))
        misclick = tuple(float(x) for x in rates.astype(np.float32))
    # Draw a side that the evidence may prove, so that no row contradicts itself.
    side = rng.integers(0, 2, (n, 1))
    speaks_for = (np.array(polarity or (1,) * k) + 1) // 2
    may_act = (side == speaks_for) | (np.array(misclick or (0.0,) * k) > 0)
    feedback = np.where((rng.random((n, k)) < 0.45) & may_act, 1, 0)
    feedback = np.where(rng.random((n, k)) < 0.15, -1, feedback).astype(np.int8)
    preference = None
    if options in ("polarity", "both"):
        preference = np.where(rng.random(n) < 0.3, side[:, 0], -1).astype(np.int8)
    weight = None
    if k % 2 == 0:
        weight = np.where(rng.random(n) < 0.1, 0, rng.gamma(2.0, 0.5, n)).astype(np.float32)
    return Batch(
        name=name,
        reward=logits(n),
        propensity=logits(n, k),
        feedback=feedback,
        preference=preference,
        polarity=polarity,
        misclick=misclick,
        weight=weight,
        other_reward=logits(n),
        other_propensity=logits(n, k),
    )


def _corner() -> Batch:
    """A silent signal whose misclicks are as likely as not: log(1 - e m) is small beside the logit."""
    batch, rng = draw("corner-misclick-1", 100, 1, "wide", "misclick"), np.random.default_rng(3)
    return replace(
        batch,
        reward=rng.uniform(-12, 0, 100).astype(np.float32),
        propensity=rng.uniform(15, 40, (100, 1)).astype(np.float32),
        feedback=np.zeros((100, 1), np.int8),
        misclick=(float(np.float32(0.5321)),),
    )


def _families() -> Iterator[Batch]:
    options = ("plain", "misclick", "polarity", "both")
    for k in (1, 2, 3, 4):
        for spread in ("wide", "usual"):
            for option in options:
                yield draw(f"{spread}-{option}-{k}", 100, k, spread, option)
    for k in range(5, 17):
        for spread in ("wide", "usual"):
            option = options[(k + (spread == "wide")) % 4]
            yield draw(f"{spread}-{option}-{k}", 12, k, spread, option)
    yield _corner()
    for k in (1, 2, 3, 16):
        for option in options:
            yield draw(f"huge-{option}-{k}", 40 if k < 16 else 12, k, "huge", option)


BATCHES = {batch.name: batch for batch in _families()}
ORDINARY = [name for name in BATCHES if not name.startswith("huge")]
HUGE = [name for name in BATCHES if name.startswith("huge")]
