"""From a failure to what is kept of it: the attempt history, and in the end the dead letter."""

import hashlib
import os
import traceback
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from eventlane.errors import Undecodable
from eventlane.failure import HOST, Attempt, Attempts, DeadLetter, Disposition, Stage
from eventlane.handler import Context
from eventlane.message import EVENT_TYPE, derived_id, headers_of
from eventlane.outcome import LaneOnDead
from eventlane.retry import Retry, text_of

__all__ = [
    "HandlerTimeout",
    "ProcessDied",
    "attempts_after",
    "dead_letter",
    "elapsed_ms",
    "fingerprint",
]

_MESSAGE_BYTES_MAX = 4 * 1024
_STACK_BYTES_MAX = 16 * 1024
_FIRST, _LAST = 3, 7
_OURS = str(Path(__file__).parent)


class HandlerTimeout(TimeoutError):
    """A handler did not return within its `timeout_s`, and was cancelled."""


class ProcessDied(Exception):
    """A process died while nothing but this event ran in it."""


def attempts_after(
    delivery: Context[Any],
    error: BaseException,
    *,
    started_ms: int,
    duration_s: float,
    delay_s: float,
    due_ms: int,
) -> Attempts:
    """What is stored after a failed run that is to be tried again.

    Due is what the policy says, `delay_s`, or later if there are too many retries.
    """
    before = None if delivery.trouble is None else delivery.trouble.attempts
    now_ms = started_ms + int(duration_s * 1000)
    planned_s = actual_s = 0.0
    if before is not None and before.history:
        last = before.history[-1]
        ended_ms = last.started_ms + int(last.duration_s * 1000)
        planned_s = max(0, before.due_ms - ended_ms) / 1000
        actual_s = max(0, started_ms - ended_ms) / 1000
    attempt = Attempt(
        number=delivery.attempt,
        started_ms=started_ms,
        planned_delay_s=planned_s,
        actual_delay_s=actual_s,
        duration_s=round(duration_s, 6),
        error_class=_text(type(error).__qualname__),
        host=HOST,
    )
    history = (*(before.history if before else ()), attempt)
    return Attempts(
        offset=delivery.offset,
        count=delivery.attempt,
        due_ms=due_ms,
        first_failed_ms=before.first_failed_ms if before else now_ms,
        timeouts=(before.timeouts if before else 0) + isinstance(error, HandlerTimeout),
        history=_bounded(history),
        lane=delivery.lane,
        # What was planned, however long it then takes: not a pause, an open breaker, a dry budget.
        elapsed_ms=elapsed_ms(delivery, duration_s) + int(delay_s * 1000),
    )


def _bounded(history: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """The first and the last ones."""
    if len(history) <= _FIRST + _LAST:
        return history
    return history[:_FIRST] + history[-_LAST:]


def elapsed_ms(delivery: Context[Any], duration_s: float) -> int:
    """The time that counts since an event's first failure, at the end of a run that failed."""
    before = None if delivery.trouble is None else delivery.trouble.attempts
    return 0 if before is None else before.elapsed_ms + int(duration_s * 1000)


def dead_letter(
    delivery: Context[Any],
    error: BaseException,
    last: Attempts,
    *,
    reason: str,
    disposition: Disposition,
    crashes: int,
    on_dead: LaneOnDead,
    policy: Retry,
    app: str,
    app_version: str | None,
) -> DeadLetter:
    """The whole envelope of an event that is dead in its group.

    Args:
        delivery: The event, in this group.
        error: What its last run raised.
        last: What `attempts_after` gives for that run.
        reason: Why it is dead; the message of the letter.
        disposition: Which way it came to its end.
        crashes: How many processes died of it.
        on_dead: What its lane does.
        policy: The retry policy that was in force.
        app: `App.name`.
        app_version: `App.version`.
    """
    origin, record = delivery.origin, delivery.record
    replayed = None if delivery.trouble is None else delivery.trouble.letter
    headers = headers_of(record.headers)
    event_type, trace = headers.get(EVENT_TYPE), headers.get("traceparent")
    root = _root(error)
    return DeadLetter(
        id=derived_id(
            origin.topic, origin.partition, delivery.offset, origin.group, delivery.handler
        )
        if replayed is None
        else replayed.id,
        topic=origin.topic,
        partition=origin.partition,
        offset=delivery.offset,
        group=origin.group,
        handler=delivery.handler,
        lane=delivery.lane,
        key=record.key,
        value=record.value,
        header_block=record.headers,
        event_id=delivery.event_id,
        event_type=None if event_type is None else event_type.decode("utf-8", "replace"),
        stage=_stage(error),
        disposition=disposition,
        error_class=_text(type(error).__qualname__),
        error_module=_text(type(error).__module__),
        error_message=_cut(reason or text_of(error), _MESSAGE_BYTES_MAX),
        error_stack=_cut("".join(traceback.format_exception(error)), _STACK_BYTES_MAX),
        cause_class=None if root is error else _text(type(root).__qualname__),
        fingerprint=fingerprint(origin.group, error),
        attempts=last.count,
        timeouts=last.timeouts,
        crashes=crashes,
        first_failed_ms=last.first_failed_ms if replayed is None else replayed.first_failed_ms,
        last_failed_ms=last.history[-1].started_ms + int(last.history[-1].duration_s * 1000),
        produced_ms=record.time_ms,
        history=_bounded((*(replayed.history if replayed else ()), *last.history)),
        policy=str(policy),
        app=app,
        app_version=None if app_version is None else _text(app_version),
        host=HOST,
        pid=os.getpid(),
        correlation_id=delivery.correlation_id,
        causation_id=delivery.causation_id,
        trace_id=None if trace is None else trace.decode("ascii", "replace")[3:35],
        on_dead=on_dead if replayed is None else replayed.on_dead,
        replay_count=0 if replayed is None else replayed.replay_count + 1,
        edited_from=None if replayed is None else replayed.edited_from,
    )


def fingerprint(group: str, error: BaseException) -> str:
    """The same for failures that have one cause: group, exception, place in the application.

    The place is the innermost frame that is neither a library's nor ours, as module and function
    without the line, so that an edit elsewhere in the file does not split a group of failures.
    """
    root = _root(error)
    name = f"{_text(type(root).__module__)}.{type(root).__qualname__}"
    parts = f"{group}\n{name}\n{_application_frame(root.__traceback__)}"
    return hashlib.blake2b(parts.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _text(value: object) -> str:
    """Text that can be stored and read back, also where a class says something odd of itself."""
    return (value if isinstance(value, str) else repr(value)).encode("utf-8", "replace").decode()


@cache
def _libraries() -> tuple[str, ...]:
    import sysconfig  # noqa: PLC0415  # 3 ms of start-up, for the first failure only

    return tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def _application_frame(trace: TracebackType | None) -> str:
    place = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith((_OURS, *_libraries())):
            place = f"{trace.tb_frame.f_globals.get('__name__')}:{code.co_qualname}"
        trace = trace.tb_next
    return place


def _root(error: BaseException) -> BaseException:
    seen = {id(error)}
    while True:
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or id(cause) in seen:
            return error
        seen.add(id(cause))
        error = cause


def _stage(error: BaseException) -> Stage:
    if isinstance(error, Undecodable):
        return error.stage
    if isinstance(error, HandlerTimeout):
        return "timeout"
    if isinstance(error, ProcessDied):
        return "crash"
    return "handle"


def _cut(text: str, bytes_max: int) -> str:
    """Keep the head and the tail of a text that is too long."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    gap = b"\n[...]\n"
    half = (bytes_max - len(gap)) // 2
    return (encoded[:half] + gap + encoded[-half:]).decode("utf-8", "ignore")
