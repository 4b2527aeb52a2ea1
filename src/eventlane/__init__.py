"""Eventlane: event-driven publish-subscribe with ordered retry, dead letters and replay."""

from eventlane.account import GroupStatus, Status, TopicStatus
from eventlane.app import App
from eventlane.clock import Clock
from eventlane.config import Limits
from eventlane.errors import (
    ConfigError,
    Conflict,
    EventlaneError,
    EventRefused,
    Fenced,
    HandlerStuck,
    NotFound,
    NotIdle,
    NotSerialisable,
    PublishFailed,
    PublishTimeout,
    Refused,
    StorageError,
    TooLarge,
    Unavailable,
    Undecodable,
)
from eventlane.event import event
from eventlane.failure import Attempt, DeadLetter
from eventlane.handler import Batch, Context, Handler, Middleware
from eventlane.message import Message, Position
from eventlane.operation import Operation
from eventlane.outcome import Dead, Done, Outcome, Pause, RetryLater, Skipped
from eventlane.retry import Retry
from eventlane.topic import Topic

__all__ = [
    "App",
    "Attempt",
    "Batch",
    "Clock",
    "ConfigError",
    "Conflict",
    "Context",
    "Dead",
    "DeadLetter",
    "Done",
    "EventRefused",
    "EventlaneError",
    "Fenced",
    "GroupStatus",
    "Handler",
    "HandlerStuck",
    "Limits",
    "Message",
    "Middleware",
    "NotFound",
    "NotIdle",
    "NotSerialisable",
    "Operation",
    "Outcome",
    "Pause",
    "Position",
    "PublishFailed",
    "PublishTimeout",
    "Refused",
    "Retry",
    "RetryLater",
    "Skipped",
    "Status",
    "StorageError",
    "TooLarge",
    "Topic",
    "TopicStatus",
    "Unavailable",
    "Undecodable",
    "event",
]
