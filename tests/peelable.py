"""Planted stacks for the tests of peeling, and its regressions in plain NumPy."""

import numpy as np
import reference

from dropjax.ordering import regressions

L, D, H, ROWS = 6, 5, 9, 800


def planted(seed, outputs=1, rows=ROWS, depth=L, size=0.5, activation="relu"):
    """A stack with no sign of pairs or depth in its weights, its truth, and its table."""
    rng = np.random.default_rng(seed)
    stack = reference.random_stack(rng, depth, D, H, outputs, size=size, activation=activation)
    x = rng.normal(size=(rows, D)).astype(np.float32)
    truth = reference.random_arrangement(rng, depth)
    return stack, truth, x, reference.outputs(stack, truth, x).astype(np.float32)


def columns_of(stack, left, x, through=None):
    """A regression's columns: the states, then what is seen of each half's hidden activations."""
    x = np.asarray(x, np.float64)
    w_in, b_in = np.asarray(stack.w_in, np.float64), np.asarray(stack.b_in, np.float64)
    through = [np.eye(w_in.shape[1])] * len(left) if through is None else np.asarray(through, np.float64)
    act = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[stack.activation]
    seen = np.concatenate([act(x @ w_in[i].T + b_in[i]) @ of for i, of in zip(left, through, strict=True)], axis=1)
    states, seen = x - x.mean(axis=0), seen - seen.mean(axis=0)
    scales = regressions.LOOSE / np.sqrt(np.mean(states**2)), 1 / np.sqrt(np.mean(seen**2))
    return np.concatenate([scales[0] * states, scales[1] * seen], axis=1), scales


def target_of(stack, x, pred):
    """What such a regression explains: pred less the states' own read-out, of mean 0."""
    target = np.asarray(pred, np.float64) - np.asarray(x, np.float64) @ np.asarray(stack.w_last, np.float64).T
    return target - target.mean(axis=0)


def refit(columns, target, ridge):
    """The ridge regression's coefficients and penalised sum of squares."""
    coefficients = np.linalg.solve(columns.T @ columns + ridge * np.eye(columns.shape[1]), columns.T @ target)
    return coefficients, np.sum((target - columns @ coefficients) ** 2) + ridge * np.sum(coefficients**2)


def evidence_of(columns, target, ridge):
    """The logarithm of a target's marginal likelihood, its variance the likeliest one, constants left out."""
    covariance = np.eye(len(columns)) + columns @ columns.T / ridge
    variance = np.sum(target * np.linalg.solve(covariance, target)) / target.size
    return -(target.size * np.log(variance) + target.shape[1] * np.linalg.slogdet(covariance)[1]) / 2
