"""The coefficients of vector_math.h, fitted anew: `python kernels/cpu/fit_polynomials.py`.

Least squares on Chebyshev nodes at 40 digits. Prints every coefficient beside the one that the header has, which it
reproduces to all nine digits, and the greatest error of both polynomials; needs mpmath.
"""

from __future__ import annotations

import mpmath as mp

NODES = 64
EXP = ("0.500000001", "0.166665770", "0.0416664650", "0.00836317557", "0.00139336435")  # of r^2, r^3, ...
LOG = ("0.666666673", "0.399997014", "0.285925834", "0.217033150", "0.232390505")  # of u^3, u^5, ...


def exp_rest(r: mp.mpf) -> mp.mpf:
    """(exp(r) - 1 - r) / r^2."""
    return mp.mpf(0.5) if r == 0 else (mp.expm1(r) - r) / r**2


def log_rest(z: mp.mpf) -> mp.mpf:
    """(2 atanh(u) - 2 u) / u^3 with u = sqrt(z)."""
    u = mp.sqrt(z)
    return mp.mpf(2) / 3 if u == 0 else (2 * mp.atanh(u) - 2 * u) / u**3


def fit(function, low: mp.mpf, high: mp.mpf, degree: int) -> list[mp.mpf]:
    """Coefficients, the constant first, of the least-squares polynomial on Chebyshev nodes."""
    middle, half = (high + low) / 2, (high - low) / 2
    nodes = [middle + half * mp.cos(mp.pi * (2 * i + 1) / (2 * NODES)) for i in range(NODES)]
    powers = mp.matrix([[node**k for k in range(degree + 1)] for node in nodes])
    return list(mp.lu_solve(powers.T * powers, powers.T * mp.matrix([function(node) for node in nodes])))


def worst(function, coefficients, low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """Greatest relative error on a grid."""
    points = [low + (high - low) * i / 2000 for i in range(2001)]
    return max(abs(mp.polyval(list(coefficients)[::-1], x) / function(x) - 1) for x in points)


def main() -> None:
    mp.mp.dps = 40
    half = mp.log(2) / 2
    for name, function, low, high, kept in (
        ("exp", exp_rest, -half, half, EXP),
        ("log", log_rest, mp.mpf(0), mp.mpf(1) / 9, LOG),
    ):
        found, header = fit(function, low, high, len(kept) - 1), [mp.mpf(text) for text in kept]
        print(name, *(f"{mp.nstr(new, 9)} (header {old})" for new, old in zip(found, kept, strict=True)), sep="\n  ")
        for who, coefficients in (("fitted", found), ("header", header)):
            print(f"  greatest relative error, {who}: {mp.nstr(worst(function, coefficients, low, high), 3)}")


if __name__ == "__main__":
    main()
