"""The currents of a dense associative memory over time, by scipy.integrate.solve_ivp: trajectories, settling times, energies.

Times are in units of tau_v. Runs of a batch share their steps, so a settling time is asked of one run.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trit.dynamics.memory import energy, settled_hidden, velocity

RELATIVE, ABSOLUTE = 1e-9, 1e-11  # tolerances of a step
STIFF = 0.02  # share of tau_v below which hidden neurons ask for an implicit method
POINTS = 400  # at which energies are looked at, between the solver's own steps


@dataclass(frozen=True)
class Trajectory:
    """`times` (P,), visible states (P, ..., N_v), hidden states (P, ..., N_h), energies (P, ...), how often the currents were computed, when
    the state had settled (None where it had not, or nobody asked), and `at`, which gives (v, h) at any time up to the last."""

    times: np.ndarray
    visible: np.ndarray
    hidden: np.ndarray
    energies: np.ndarray
    evaluations: int
    settled: float | None
    at: Any

    def largest_rise(self):
        """Largest rise of a run's energy from one time to the next."""
        return float(np.diff(self.energies, axis=0).max())


def method_for(memory):
    """Integrator that fits the time constants."""
    return "LSODA" if memory.hidden_time < STIFF * memory.visible_time else "DOP853"


def solve(memory, v, end, h=None, method=None, target=None, tolerance=0.01, points=POINTS):
    """`Trajectory` of states that begin at v (..., N_v) and h (..., N_h; zero where None) until `end`, or until every visible neuron is within
    `tolerance` of `target` (N_v,) where one is given. FloatingPointError where the currents run away: the energy has no lower bound."""
    from scipy.integrate import solve_ivp

    v = np.asarray(v, np.float64)
    h = np.zeros((*v.shape[:-1], memory.weights.shape[-2])) if h is None else np.asarray(h, np.float64)
    width = v.size

    def states(y):
        return y[:width].reshape(v.shape), y[width:].reshape(h.shape)

    def currents(t, y):
        return np.concatenate([part.ravel() for part in velocity(memory, *states(y))])

    def distance(t, y):
        return np.abs(states(y)[0] - target).max() - tolerance

    distance.terminal, distance.direction = True, -1.0
    with np.errstate(over="ignore", invalid="ignore"):  # what runs away is said below
        done = solve_ivp(
            currents,
            (0.0, end),
            np.concatenate([v.ravel(), h.ravel()]),
            method=method or method_for(memory),
            rtol=RELATIVE,
            atol=ABSOLUTE,
            dense_output=True,
            events=None if target is None else distance,
        )
    if not done.success or not np.isfinite(done.y).all():
        raise FloatingPointError(f"the integration stopped at t={done.t[-1]:g}: {done.message}; is the energy bounded below?")
    times = np.union1d(np.linspace(0.0, done.t[-1], points), done.t)
    found = done.sol(times)
    visible, hidden = found[:width].T.reshape(-1, *v.shape), found[width:].T.reshape(-1, *h.shape)
    settled = float(done.t_events[0][0]) if target is not None and len(done.t_events[0]) else None
    return Trajectory(times, visible, hidden, energy(memory, visible, hidden), done.nfev, settled, lambda t: states(done.sol(t)))


def relax(memory, v, end, method="DOP853"):
    """Visible states (..., N_v) at `end` under infinitely fast hidden neurons."""
    from scipy.integrate import solve_ivp

    v = np.asarray(v, np.float64)

    def currents(t, y):
        v_now = y.reshape(v.shape)
        return velocity(memory, v_now, settled_hidden(memory, v_now))[0].ravel()

    done = solve_ivp(currents, (0.0, end), v.ravel(), method=method, rtol=RELATIVE, atol=ABSOLUTE)
    return done.y[:, -1].reshape(v.shape)
