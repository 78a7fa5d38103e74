"""The CMA-ES of the published system, to the letter (spec 6.3; arXiv 2410.13166), for comparing trajectories with it.

Everything is float32 and the covariance is full: at 4,172 dimensions an ask takes an eigendecomposition of half a
minute, for a covariance that hardly moves. For real runs choose ``CMA``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float32]

FIRST_NUDGE = np.float32(1e-6)
"""Added to every entry of C, not only the diagonal, before the very first sampling."""
SMALLEST_EIGENVALUE = np.float32(1e-20)


@dataclass(frozen=True, slots=True)
class Constants:
    """Weights and learning rates, functions of dimension and population alone."""

    weights: Vector
    """``[population]``, best first; the second half is negative."""
    mu_eff: float
    c_1: float
    c_mu: float
    c_sigma: float
    d_sigma: float
    c_c: float
    chi: float
    """Expected length of a standard normal vector."""

    @staticmethod
    def of(dimension: int, population: int) -> Constants:
        """As published; half of the population is elite."""
        elite = population // 2
        raw = np.log((population + 1) / 2) - np.log(np.arange(1, population + 1))
        mu_eff = float(raw[:elite].sum() ** 2 / np.square(raw[:elite]).sum())
        mu_eff_negative = float(raw[elite:].sum() ** 2 / np.square(raw[elite:]).sum())
        clipped = min(dimension, 40_000)
        c_1 = 2 / ((clipped + 1.3) ** 2 + mu_eff)
        c_mu = min(1 - c_1 - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / ((clipped + 2) ** 2 + mu_eff))
        alpha = min(1 + c_1 / c_mu, 1 + 2 * mu_eff_negative / (mu_eff + 2), (1 - c_1 - c_mu) / (dimension * c_mu))
        positive, negative = raw[raw > 0].sum(), np.abs(raw[raw < 0]).sum()
        c_sigma = (mu_eff + 2) / (dimension + mu_eff + 5)
        return Constants(
            weights=np.where(raw >= 0, raw / positive, alpha * raw / negative).astype(np.float32),
            mu_eff=mu_eff,
            c_1=c_1,
            c_mu=c_mu,
            c_sigma=c_sigma,
            d_sigma=1 + 2 * max(0.0, np.sqrt((mu_eff - 1) / (dimension + 1)) - 1) + c_sigma,
            c_c=(4 + mu_eff / dimension) / (dimension + 4 + 2 * mu_eff / dimension),
            chi=float(np.sqrt(dimension) * (1 - 1 / (4 * dimension) + 1 / (21 * dimension**2))),
        )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Everything that moves."""

    mean: Vector
    sigma: np.float32
    path_sigma: Vector
    path_c: Vector
    covariance: Matrix
    generation: int = 0

    @staticmethod
    def fresh(mean: Vector, sigma: float) -> State:
        """Before generation 0."""
        zeros = np.zeros_like(mean)
        return State(mean, np.float32(sigma), zeros, zeros, np.eye(len(mean), dtype=np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Decomposition:
    """Square roots of the covariance at the time of an ask: ``C = basis diag(scale^2) basis^T``."""

    scale: Vector
    basis: Matrix

    def sample(self, normal: Matrix) -> Matrix:
        """Steps ``y`` from standard normal rows, ``[population, dimension]``."""
        return ((normal * self.scale) @ self.basis.T).astype(np.float32)

    def whiten(self, steps: Matrix) -> Matrix:
        """``C^(-1/2)`` applied to rows."""
        return (((steps @ self.basis) / self.scale) @ self.basis.T).astype(np.float32)


def decompose(state: State) -> tuple[State, Decomposition]:
    """What an ask does to the covariance, and its decomposition."""
    covariance = state.covariance + FIRST_NUDGE if state.generation == 0 else state.covariance
    covariance = ((covariance + covariance.T) / 2).astype(np.float32)
    values, basis = np.linalg.eigh(covariance)
    scale = np.sqrt(np.maximum(values, SMALLEST_EIGENVALUE))
    return replace(state, covariance=covariance), Decomposition(scale, basis)


def tell(state: State, constants: Constants, decomposition: Decomposition, steps: Matrix, losses: Vector) -> State:
    """One generation: ``steps`` are ``(x - mean) / sigma`` of the candidates, losses are lower for better ones."""
    k, n, generation = constants, len(state.mean), state.generation + 1
    ranked = steps[np.argsort(losses, kind="stable")]
    elite = len(ranked) // 2
    step = k.weights[:elite] @ ranked[:elite]
    whitened = decomposition.whiten(np.vstack([step, ranked]))
    path_sigma = (1 - k.c_sigma) * state.path_sigma + np.sqrt(k.c_sigma * (2 - k.c_sigma) * k.mu_eff) * whitened[0]
    length = float(np.linalg.norm(path_sigma))
    bound = (1.4 + 2 / (n + 1)) * k.chi
    moving = float(length / np.sqrt(1 - (1 - k.c_sigma) ** (2 * generation)) < bound)
    path_c = (1 - k.c_c) * state.path_c + moving * np.sqrt(k.c_c * (2 - k.c_c) * k.mu_eff) * step
    rescaled = np.where(k.weights > 0, k.weights, k.weights * n / (np.square(whitened[1:]).sum(axis=1) + 1e-20))
    kept = 1 + k.c_1 * (1 - moving) * k.c_c * (2 - k.c_c) - k.c_1 - k.c_mu * float(k.weights.sum())
    covariance = kept * state.covariance + k.c_1 * np.outer(path_c, path_c)
    covariance += k.c_mu * (ranked.T * rescaled) @ ranked
    return State(
        mean=(state.mean + state.sigma * step).astype(np.float32),
        sigma=np.float32(state.sigma * np.exp(k.c_sigma / k.d_sigma * (length / k.chi - 1))),
        path_sigma=path_sigma.astype(np.float32),
        path_c=path_c.astype(np.float32),
        covariance=covariance.astype(np.float32),
        generation=generation,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A candidate: where it is, and the step from the mean that led there."""

    value: Vector
    step: Vector


class PublishedCma:
    """Ask and tell as nevergrad's optimizers have it: all candidates of a generation are asked, then all are told."""

    def __init__(self, dimension: int, population: int, random: np.random.RandomState) -> None:
        self._constants = Constants.of(dimension, population)
        self._state = State.fresh(np.zeros(dimension, np.float32), sigma=1.0)
        self._random = random
        self._waiting: list[Point] = []
        self._told: list[tuple[Point, float]] = []

    def ask(self) -> Point:
        """The next candidate of this generation."""
        if not self._waiting:
            self._state, self._decomposition = decompose(self._state)
            normal = self._random.standard_normal((len(self._constants.weights), len(self._state.mean)))
            steps = self._decomposition.sample(normal.astype(np.float32))
            self._waiting = [Point(self._state.mean + self._state.sigma * step, step) for step in steps]
        return self._waiting.pop(0)

    def tell(self, point: Point, loss: float) -> None:
        """A candidate's loss, lower is better; the last one of the generation moves the search."""
        self._told.append((point, loss))
        if len(self._told) < len(self._constants.weights):
            return
        steps = np.stack([told.step for told, _ in self._told])
        losses = np.array([loss for _, loss in self._told], np.float32)
        self._state = tell(self._state, self._constants, self._decomposition, steps, losses)
        self._told = []

    def recommend(self) -> Point:
        """The mean."""
        return Point(self._state.mean, np.zeros_like(self._state.mean))
