"""When requests arrive: whole schedules, made before the run from a seed.

Every kind is a sequence of gaps with mean 1 that is stretched to the rate, so that a rate changed in the middle
of a run bends the rest of the same random sequence instead of drawing a new one.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Seconds since the start of the run, ascending."""

Kind = Literal["poisson", "constant", "bursty", "replay"]


class Schedule:
    """Arrival times up to `seconds`. `times` is replaced, never changed, when the rate is."""

    def __init__(
        self,
        kind: Kind,
        rate: float,
        seconds: float,
        seed: int = 0,
        burst_size: int = 8,
        trace: Sequence[float] = (),
        once: bool = False,
    ) -> None:
        """`rate`: arrivals a second on average. `burst_size`: arrivals that come at once ("bursty"), the bursts
        being Poisson. `trace`: recorded arrival times ("replay"), stretched to the rate and repeated as needed;
        `once`: not repeated, and the first arrival comes at 0.
        """
        if not 0 < rate < 1e9:
            raise ValueError(f"a rate must be above 0, not {rate}")
        if not 0 < seconds < 1e9:
            raise ValueError(f"a run must last longer than 0 seconds, not {seconds}")
        self._seconds = seconds
        self._kind = kind
        self._burst_size = burst_size
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._trace = _unit_gaps(trace) if kind == "replay" else np.empty(0)
        self._once = once
        if once:
            self._trace = np.concatenate([[0.0], self._trace])
        self._drawn = 0
        self.times = self._continue(np.empty(0), 0.0, rate)

    def change_rate(self, now: float, rate: float) -> None:
        """From `now` (seconds since the start) on; what was due before stays."""
        if not 0 < rate < 1e9:
            raise ValueError(f"a rate must be above 0, not {rate}")
        kept = self.times[: np.searchsorted(self.times, now, side="right")]
        self._drawn = len(kept)
        self.times = self._continue(kept, now, rate)

    def shift(self, sent: int, by: float) -> None:
        """Put off all but the first `sent` arrivals (the run was paused): those that were due already come with them,
        or the pause would be counted as their latency. What would then come after the end is left out."""
        later = self.times[sent:] + by
        self.times = np.concatenate([self.times[:sent], later[later < self._seconds]])

    def _continue(self, kept: Times, start: float, rate: float) -> Times:
        parts, last = [kept], start
        while last < self._seconds:
            expected = (self._seconds - last) * rate
            gaps = self._gaps(int(expected + 5 * np.sqrt(expected)) + 2 * self._burst_size)
            times = last + np.cumsum(gaps) / rate
            parts.append(times)
            last = float(times[-1])
        times = np.concatenate(parts)
        return times[: np.searchsorted(times, self._seconds, side="left")]

    def _gaps(self, count: int) -> Times:
        """The next gaps of the sequence, at least `count` of them, mean 1."""
        first = self._drawn
        self._drawn += count
        if self._kind == "poisson":
            return self._random.exponential(1.0, count)
        if self._kind == "constant":
            return np.ones(count)
        if self._kind == "replay":
            if self._once:  # after its end nothing comes any more
                rest = self._trace[first : first + count]
                return np.concatenate([rest, np.full(count - len(rest), np.inf)])
            return self._trace[np.arange(first, first + count) % len(self._trace)]
        size = self._burst_size
        bursts = self._random.exponential(float(size), count // size + 1)
        gaps = np.zeros(len(bursts) * size)
        gaps[::size] = bursts
        return gaps


def _unit_gaps(trace: Sequence[float]) -> Times:
    times = np.sort(np.asarray(trace, np.float64))
    if len(times) < 2 or not np.isfinite(times).all() or times[-1] == times[0]:
        raise ValueError("a trace needs at least two finite arrival times that differ")
    gaps = np.diff(times)
    return gaps / gaps.mean()
