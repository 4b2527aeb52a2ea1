"""Retry: the policy that a subscriber is declared with, and the decision about one failure.

`decide` is pure: the error, the attempt, the policy and the jitter go in, an outcome comes out.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from eventlane.config import checked_options, number
from eventlane.errors import ConfigError, Undecodable
from eventlane.outcome import DELAY_S_MAX, Dead, Done, Outcome, Pause, RetryLater, Skipped

__all__ = ["Errors", "Retry", "Rule", "bounded", "decide", "in_force", "matches", "text_of"]


_DEFAULT = " Leave the option out for its default."
_SECONDS = " A delay is in seconds; leave the option out for its default."


@checked_options
@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """How often, and how soon, a failing event is handled again.

    The first `immediate` retries run at once, since many failures are gone a moment later. The
    n-th retry after these waits `min(delay_s_max, delay_s * factor ** (n - 1))`. Jitter only adds:
    a retry that is due at 10 s with `jitter=0.2` starts between 10 and 12 s. So
    `Retry(attempts=5, delay_s=1)` runs at 0, 0, 1, 3 and 7 s.

    Rules are asked in order, and the first whose exception matches decides instead.
    """

    attempts: int = 5
    """Runs in all, the first included; then the event is dead."""
    delay_s: float = 1.0
    factor: float = 2.0
    delay_s_max: float = 60.0
    jitter: float = 0.2
    """What may be added to a delay, as a share of it."""
    immediate: int = 1
    elapsed_s_max: float | None = None
    """A retry that would start later than this after the first failure does not; None: no limit."""
    rules: Sequence["Rule"] = ()

    def __post_init__(self) -> None:
        number("Retry(attempts", self.attempts, least=1, whole=True, hint=_DEFAULT)
        number("Retry(immediate", self.immediate, least=0, whole=True, hint=_DEFAULT)
        for option in ("delay_s", "delay_s_max"):
            number(
                f"Retry({option}", getattr(self, option), least=0, most=DELAY_S_MAX, hint=_SECONDS
            )
        number("Retry(jitter", self.jitter, least=0, most=DELAY_S_MAX, hint=_DEFAULT)
        number("Retry(factor", self.factor, least=1, hint=_DEFAULT)
        if self.elapsed_s_max is not None:
            hint = " None is no limit; attempts=1 retries nothing."
            number("Retry(elapsed_s_max", self.elapsed_s_max, least=0.001, hint=hint)
        self._refuse_contradictions()
        for rule in self.rules:
            _check_rule(rule)

    def _refuse_contradictions(self) -> None:
        if self.delay_s > self.delay_s_max:
            raise ConfigError(
                f"Retry(delay_s={self.delay_s!r}, delay_s_max={self.delay_s_max!r}): expected "
                "delay_s_max of at least delay_s, or no retry would wait as long as it says. Raise "
                "delay_s_max too."
            )
        if self.delay_s_max * (1 + self.jitter) > DELAY_S_MAX:
            raise ConfigError(
                f"Retry(delay_s_max={self.delay_s_max!r}, jitter={self.jitter!r}): expected delays "
                f"of at most {DELAY_S_MAX:g} seconds, jitter included. jitter is a share of the "
                "delay: 0.2 adds up to a fifth."
            )
        is_delayed = self.attempts - 1 > self.immediate
        if is_delayed and self.elapsed_s_max is not None and self.delay_s > self.elapsed_s_max:
            raise ConfigError(
                f"Retry(delay_s={self.delay_s!r}, elapsed_s_max={self.elapsed_s_max!r}): expected "
                "elapsed_s_max of at least delay_s, or no delayed retry would ever start. Raise "
                f"it, or say attempts={self.immediate + 1} if none is wanted."
            )
        if self.immediate > self.attempts:
            raise ConfigError(
                f"Retry(attempts={self.attempts}, immediate={self.immediate}): expected no more "
                "retries at once than attempts. attempts is the number of runs in all."
            )

    def __str__(self) -> str:
        numbers = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name != "rules"
        ]
        rules = [
            f"{' | '.join(each.__name__ for each in _several(errors))} → {_named(answer)}"
            for errors, answer in self.rules
        ]
        return f"Retry({', '.join(numbers)}{', rules: ' if rules else ''}{'; '.join(rules)})"


Errors = type[BaseException] | tuple[type[BaseException], ...]
Rule = tuple[Errors, Outcome | Retry]
"""(exception class or classes, outcome or another policy)."""


def _check_rule(rule: Rule) -> None:
    expected = (
        f"Retry(rules=…): expected pairs such as (ValueError, Dead()), got {rule!r}. The first is "
        "an exception class or a tuple of them, the second Dead(), Skipped(), Pause(), "
        "RetryLater(delay_s) or Retry(…)."
    )
    try:
        errors, answer = rule
    except (TypeError, ValueError):
        raise ConfigError(expected) from None
    if not isinstance(answer, Dead | Skipped | Pause | RetryLater | Retry):
        raise ConfigError(expected)
    for error in _several(errors):
        if not (isinstance(error, type) and issubclass(error, BaseException)):
            raise ConfigError(expected)
    if isinstance(answer, Retry) and answer.rules:
        raise ConfigError(
            f"Retry(rules=…): the policy for {errors!r} has rules of its own. "
            "Put them into the outer list; the first match wins."
        )


def _named(answer: "Outcome | Retry") -> str:
    """An answer in short: what is left out is the default."""
    if isinstance(answer, Retry):
        return str(answer)
    fields = [(each.name, getattr(answer, each.name)) for each in dataclasses.fields(answer)]
    stated = ", ".join(f"{name}={value!r}" for name, value in fields if value not in ("", None))
    return f"{type(answer).__name__}({stated})"


def _several(errors: Errors) -> tuple[type[BaseException], ...]:
    return errors if isinstance(errors, tuple) else (errors,)


def matches(error: BaseException, errors: Errors) -> bool:
    """Whether an error is one of these; a group of errors is what all its leaves are."""
    left = [error]
    while left:
        each = left.pop()
        if isinstance(each, errors):
            continue
        if not isinstance(each, BaseExceptionGroup):
            return False
        left.extend(cast("BaseExceptionGroup[BaseException]", each).exceptions)
    return True


def text_of(error: BaseException) -> str:
    """What an exception says; also of one that fails to say it."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except BaseException as second:
        return f"(its text cannot be made: {type(second).__qualname__})"


def in_force(error: BaseException, policy: Retry) -> tuple[Retry, Outcome | None]:
    """The policy that holds for an error, and what a rule answers to it in place of a retry."""
    for errors, answer in policy.rules:
        if matches(error, errors):
            return (answer, None) if isinstance(answer, Retry) else (policy, answer)
    if isinstance(error, Undecodable):
        return policy, Dead()
    return policy, None


def decide(
    error: BaseException, attempt: int, policy: Retry, *, jitter: float, elapsed_s: float = 0.0
) -> Outcome:
    """What becomes of a delivery whose handler raised.

    Args:
        error: What it raised. A group of errors counts as what all its leaves match.
        attempt: How many runs have failed, this one included.
        policy: The subscriber's.
        jitter: A number from 0 to 1: which part of the permitted jitter to add.
        elapsed_s: How long ago the first attempt failed.
    """
    policy, answer = in_force(error, policy)
    if answer is not None and not isinstance(answer, RetryLater):
        return _with_reason(answer, text_of(error))
    if answer is None:
        answer = RetryLater(_delay_s(policy, attempt) * (1 + policy.jitter * jitter))
    return bounded(answer, attempt, policy, elapsed_s=elapsed_s, reason=text_of(error))


def bounded(
    answer: RetryLater, attempt: int, policy: Retry, *, elapsed_s: float, reason: str
) -> RetryLater | Dead:
    """A retry, or the end where its policy permits none: by `attempts`, or by `elapsed_s_max`."""
    too_late = (
        policy.elapsed_s_max is not None and elapsed_s + answer.delay_s > policy.elapsed_s_max
    )
    return Dead(reason=reason) if attempt >= policy.attempts or too_late else answer


def _with_reason(answer: Outcome, reason: str) -> Outcome:
    """The same outcome, with the exception's text where a rule gives no reason."""
    if isinstance(answer, Done | RetryLater) or answer.reason:
        return answer
    if isinstance(answer, Dead):
        return Dead(reason=reason, lane=answer.lane)
    return type(answer)(reason=reason)


def _delay_s(policy: Retry, attempt: int) -> float:
    delayed = attempt - policy.immediate
    if delayed < 1:
        return 0.0
    try:
        return min(policy.delay_s_max, policy.delay_s * policy.factor ** (delayed - 1))
    except OverflowError:  # a float ends at 1.8e308; the maximum is far below it
        return policy.delay_s_max
