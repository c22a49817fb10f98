"""Exponential decays voxel by voxel: compiled loops behind the methods of :mod:`qsmflow.algorithms.relaxometry`.

Signals are (voxels, E) arrays; ``used`` is how many of its first echoes count in every voxel, at least two.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from qsmflow.algorithms.lines import median_square, weighted_line

#: Bounds of R2*, 1/s.
BOUNDS = (0.1, 1000.0)

#: Echoes whose expected signal is below this many noise standard deviations are not used.
_FLOOR = 3.0


def noise_level(signal: np.ndarray, times: np.ndarray) -> float:
    """Noise level: median misfit of a monoexponential decay, at least float32 rounding; 0 with two echoes, which leave none."""
    freedom = signal.shape[1] - 2
    if freedom == 0 or not signal.size:
        return 0.0
    misfit = np.sqrt(np.median(misfits(signal, times)) / median_square(freedom))
    return float(max(misfit, np.finfo(np.float32).eps * signal.max()))


@njit(cache=True)
def bounded(rate):
    """The rate within its bounds."""
    return min(max(rate, BOUNDS[0]), BOUNDS[1])


@njit(cache=True)
def line(signal, times, echoes):
    """Logarithmic fit to the first echoes with weights m^2: rate, centre of time and of log signal, weight, spread of time."""
    weight, time0, log0 = 0.0, 0.0, 0.0
    for e in range(echoes):
        w = float(signal[e]) ** 2
        if signal[e] > 0:
            weight += w
            time0 += w * times[e]
            log0 += w * math.log(signal[e])
    if weight == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    time0 /= weight
    log0 /= weight
    spread, moment = 0.0, 0.0
    for e in range(echoes):
        w = float(signal[e]) ** 2
        if signal[e] > 0:
            spread += w * (times[e] - time0) ** 2
            moment += w * (times[e] - time0) * (math.log(signal[e]) - log0)
    return (-moment / spread if spread > 0 else 0.0), time0, log0, weight, spread


@njit(cache=True)
def misfits(signal, times):
    """Squared misfit of the logarithmic fit of every voxel, in units of the signal squared."""
    misfit = np.zeros(len(signal))
    for v in range(len(signal)):
        rate, time0, log0, _, _ = line(signal[v], times, times.size)
        for e in range(times.size):
            misfit[v] += (signal[v, e] - math.exp(log0 - rate * (times[e] - time0))) ** 2
    return misfit


@njit(cache=True)
def usable_echoes(signal, times, noise, dropout):
    """Number of echoes of every voxel before its signal drops out or sinks into the noise; at least two."""
    used = np.full(len(signal), times.size)
    for v in range(len(signal)):
        for e in range(2, times.size):
            rate, time0, log0, weight, spread = line(signal[v], times, e)
            ahead = times[e] - time0
            expected = math.exp(log0 - rate * ahead) if weight > 0 else 0.0
            lost = expected <= _FLOOR * noise
            if not lost and spread > 0:
                deviation = noise * math.sqrt(1 + expected**2 * (1 / weight + ahead**2 / spread))
                lost = signal[v, e] < expected - dropout * deviation
            if lost:
                used[v] = e
                break
    return used


@njit(cache=True)
def arlo(signal, used, times):
    rate = np.zeros(len(signal))
    for v in range(len(signal)):
        if used[v] == 2:
            rate[v] = line(signal[v], times, 2)[0]
            continue
        top, bottom = 0.0, 0.0
        for e in range(used[v] - 2):
            first, last = times[e + 1] - times[e], times[e + 2] - times[e + 1]
            width = first + last
            m0, m1, m2 = float(signal[v, e]), float(signal[v, e + 1]), float(signal[v, e + 2])
            simpson = width / 6 * ((2 - last / first) * m0 + width**2 / (first * last) * m1 + (2 - first / last) * m2)
            drop = m0 - m2
            top += simpson * (simpson + width / 6 * drop)
            bottom += drop * (simpson + width / 6 * drop)
        rate[v] = bottom / top if top > 0 else 0.0
    return rate


@njit(cache=True)
def _newton_step(signal, echoes, times, rate):
    """The next rate on the way to the maximum of A^2 / B, A = sum m e, B = sum e^2, where e is the decay."""
    a, a1, a2, b, b1, b2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for e in range(echoes):
        # The decay is taken from the first echo on, so that a high rate does not underflow.
        t = times[e] - times[0]
        decay = math.exp(-rate * t)
        a += signal[e] * decay
        a1 -= t * signal[e] * decay
        a2 += t * t * signal[e] * decay
        b += decay * decay
        b1 -= 2 * t * decay * decay
        b2 += 4 * t * t * decay * decay
    slope = a / b * (2 * a1 - a * b1 / b)
    curve = 2 * (a1 * a1 + a * a2) / b - (4 * a * a1 * b1 + a * a * b2) / b**2 + 2 * (a * b1) ** 2 / b**3
    # Where the curve is not concave, go uphill by half of the value.
    step = -slope / curve if curve < 0 else math.copysign(rate / 2, slope)
    return bounded(rate + min(max(step, -rate / 2), rate))


@njit(cache=True)
def newton(signal, used, times, iterations):
    """Least-squares rate of every voxel, with the amplitude eliminated."""
    rates = np.zeros(len(signal))
    for v in range(len(signal)):
        rate = bounded(line(signal[v], times, used[v])[0])
        for _ in range(iterations):
            new = _newton_step(signal[v], used[v], times, rate)
            done = abs(new - rate) < 1e-4 * rate
            rate = new
            if done:
                break
        rates[v] = rate
    return rates


@njit(cache=True)
def _floor_cost(signal, echoes, times, start, rate, power):
    cost = 0.0
    for e in range(echoes):
        cost += (signal[e] - math.sqrt((start * math.exp(-rate * (times[e] - times[0]))) ** 2 + power)) ** 2
    return cost


@njit(cache=True)
def with_floor(signal, used, times, rates, power, iterations):
    """Rates of the model sqrt(S^2 + power), from ``rates`` on, by Gauss-Newton steps that are halved until they help."""
    result = np.zeros(len(signal))
    for v in range(len(signal)):
        rate, start = rates[v], math.sqrt(max(float(signal[v, 0]) ** 2 - power, 0.0))
        cost = _floor_cost(signal[v], used[v], times, start, rate, power)
        for _ in range(iterations):
            ss, sr, rr, bs, br = 0.0, 0.0, 0.0, 0.0, 0.0
            for e in range(used[v]):
                t = times[e] - times[0]
                decay = math.exp(-rate * t)
                model = math.sqrt((start * decay) ** 2 + power)
                if model == 0:
                    continue
                by_start, by_rate = start * decay**2 / model, -t * (start * decay) ** 2 / model
                misfit = signal[v, e] - model
                ss += by_start * by_start
                sr += by_start * by_rate
                rr += by_rate * by_rate
                bs += by_start * misfit
                br += by_rate * misfit
            determinant = ss * rr - sr * sr
            if determinant <= 1e-12 * ss * rr:
                break
            step_start, step_rate = (rr * bs - sr * br) / determinant, (ss * br - sr * bs) / determinant
            better = False
            for _ in range(10):
                new_start, new_rate = max(start + step_start, 0.0), bounded(rate + step_rate)
                new_cost = _floor_cost(signal[v], used[v], times, new_start, new_rate, power)
                better = new_cost < cost
                if better:
                    break
                step_start /= 2
                step_rate /= 2
            if not better:
                break
            done = abs(new_rate - rate) < 1e-4 * rate
            start, rate, cost = new_start, new_rate, new_cost
            if done:
                break
        result[v] = rate
    return result


@njit(cache=True)
def loglinear(signal, used, times):
    """Rate of the logarithmic fit of every voxel."""
    rates = np.zeros(len(signal))
    for v in range(len(signal)):
        rates[v] = line(signal[v], times, used[v])[0]
    return rates


@njit(cache=True)
def integral(signal, used, times, correct):
    """Rate from the drop of the signal over its trapezoidal integral; ``correct`` solves for the exact rate of a decay."""
    rates = np.zeros(len(signal))
    for v in range(len(signal)):
        area, most = 0.0, 0.0
        for e in range(used[v] - 1):
            pair = float(signal[v, e]) + float(signal[v, e + 1])
            area += (times[e + 1] - times[e]) / 2 * pair
            most += pair
        drop = float(signal[v, 0]) - float(signal[v, used[v] - 1])
        if area <= 0 or drop <= 0:
            continue
        rate = drop / area
        if correct and drop >= most:
            rate = BOUNDS[1]
        elif correct:
            # The sum rises with the rate and is concave: Newton's steps from below stay below.
            for _ in range(50):
                excess, slope = -drop, 0.0
                for e in range(used[v] - 1):
                    half = (times[e + 1] - times[e]) / 2
                    pair = float(signal[v, e]) + float(signal[v, e + 1])
                    bend = math.tanh(rate * half)
                    excess += bend * pair
                    slope += half * (1 - bend**2) * pair
                step = -excess / slope
                rate += step
                if abs(step) < 1e-6 * rate or rate > BOUNDS[1]:
                    break
        rates[v] = rate
    return rates


@njit(cache=True)
def demodulate(magnitude, phase, times, iterations):
    """Signal along the fitted line of phase, for every voxel: real part after the joint fit of phase and decay.

    Turn by turn, the offset and slope of the phase get a Gauss-Newton step and the rate of the decay a Newton step.
    """
    real = magnitude.astype(np.float32)
    echoes = times.size
    weight = np.zeros(echoes)
    for v in range(len(magnitude)):
        for e in range(echoes):
            weight[e] = float(magnitude[v, e]) ** 2
        time0, phase0, slope, spread = weighted_line(phase[v], weight, times, True)
        if spread == 0:
            continue
        offset = phase0 - slope * time0
        rate = bounded(line(magnitude[v], times, echoes)[0])
        for _ in range(iterations):
            w0, wt, wtt, s0, st = 0.0, 0.0, 0.0, 0.0, 0.0
            for e in range(echoes):
                t = times[e] - time0
                angle = phase[v, e] - offset - slope * times[e]
                w = float(magnitude[v, e]) * math.exp(-rate * (times[e] - times[0]))
                w0 += w
                wt += w * t
                wtt += w * t * t
                s0 += w * math.sin(angle)
                st += w * t * math.sin(angle)
                real[v, e] = float(magnitude[v, e]) * math.cos(angle)
            determinant = w0 * wtt - wt * wt
            if determinant <= 1e-12 * w0 * wtt:
                break
            turn, tilt = (wtt * s0 - wt * st) / determinant, (w0 * st - wt * s0) / determinant
            offset += turn - tilt * time0
            slope += tilt
            new = _newton_step(real[v], echoes, times, rate)
            done = abs(new - rate) < 1e-4 * rate and abs(turn) + abs(tilt) * times[-1] < 1e-4
            rate = new
            if done:
                break
        for e in range(echoes):
            real[v, e] = float(magnitude[v, e]) * math.cos(phase[v, e] - offset - slope * times[e])
    return real


@njit(cache=True)
def finish(rates, signal, used, times):
    """Bounded R2* and S0 by linear least squares, float32; both 0 for a voxel without signal."""
    kept, start = np.zeros(len(rates), np.float32), np.zeros(len(rates), np.float32)
    for v in range(len(rates)):
        rate = bounded(rates[v])
        top, bottom = 0.0, 0.0
        for e in range(used[v]):
            decay = math.exp(-rate * times[e])
            top += signal[v, e] * decay
            bottom += decay * decay
        if top > 0:
            kept[v] = rate
            start[v] = top / bottom
    return kept, start
