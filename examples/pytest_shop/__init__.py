"""A handler and its tests: retries, dead letters and replays, without waiting for any of them."""
