"""The retry budget: many delayed retries are spread over time. Pure, like the breakers.

Below the bar at which a group's breaker opens, a half-broken handler could still use up all the
attempts of its events within a minute.
"""

__all__ = ["Budget"]


class Budget:
    """A token bucket, full at the start. No tokens means later, never dead.

    A success earns one token, time earns `per_s` a second, a delayed retry costs `cost`. Nothing is
    refused: a bucket below zero makes a retry wait until time alone would have filled the gap, so
    that without successes the retries beyond the first `tokens_max / cost` come one by one,
    `cost / per_s` seconds apart.
    """

    def __init__(
        self, *, tokens_max: float = 1000.0, per_s: float = 10.0, cost: float = 10.0
    ) -> None:
        self.tokens = tokens_max
        """As of the last delayed retry; below zero where retries wait for tokens."""
        self._tokens_max = tokens_max
        self._per_s = per_s
        self._cost = cost
        self._now_s = 0.0  # of no effect on a full bucket
        self._successes = 0

    def delay_s(self, now_s: float, successes_so_far: int) -> float:
        """Pay for one delayed retry.

        Args:
            now_s: The monotonic time. One before the last call's earns nothing.
            successes_so_far: How many runs have succeeded in all.

        Returns:
            How much later than planned the retry has to be; 0.0 while there are tokens.
        """
        earned = max(0.0, now_s - self._now_s) * self._per_s
        earned += max(0, successes_so_far - self._successes)
        self._now_s = max(now_s, self._now_s)
        self._successes = max(successes_so_far, self._successes)
        self.tokens = min(self._tokens_max, self.tokens + earned) - self._cost
        return max(0.0, -self.tokens / self._per_s)
