"""Eventlane: event-driven publish-subscribe with ordered retry, dead letters and replay."""

from eventlane.account import GroupStatus, PartitionStatus, Status, TopicStatus
from eventlane.app import App
from eventlane.breaker import Dependency
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
    StorageFull,
    TooLarge,
    Unavailable,
    Undecodable,
)
from eventlane.event import event
from eventlane.failure import Attempt, DeadLetter
from eventlane.handler import Batch, Context, Handler, Middleware
from eventlane.message import Message, Position
from eventlane.notice import DeadLettered
from eventlane.operation import Operation
from eventlane.outcome import Dead, Done, Outcome, Pause, RetryLater, Skipped
from eventlane.query import Query
from eventlane.replay import LeftOut, OperationStatus, OrderConflict, Plan
from eventlane.retry import Retry
from eventlane.topic import Topic
from eventlane.views import (
    FailureSummary,
    Finding,
    GroupTrace,
    LaneFront,
    LaneView,
    LetterEvent,
    PartitionReset,
    RemovalPlan,
    ResetPlan,
    Trace,
    TracedEvent,
)

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
    "DeadLettered",
    "Dependency",
    "Done",
    "EventRefused",
    "EventlaneError",
    "FailureSummary",
    "Fenced",
    "Finding",
    "GroupStatus",
    "GroupTrace",
    "Handler",
    "HandlerStuck",
    "LaneFront",
    "LaneView",
    "LeftOut",
    "LetterEvent",
    "Limits",
    "Message",
    "Middleware",
    "NotFound",
    "NotIdle",
    "NotSerialisable",
    "Operation",
    "OperationStatus",
    "OrderConflict",
    "Outcome",
    "PartitionReset",
    "PartitionStatus",
    "Pause",
    "Plan",
    "Position",
    "PublishFailed",
    "PublishTimeout",
    "Query",
    "Refused",
    "RemovalPlan",
    "ResetPlan",
    "Retry",
    "RetryLater",
    "Skipped",
    "Status",
    "StorageError",
    "StorageFull",
    "TooLarge",
    "Topic",
    "TopicStatus",
    "Trace",
    "TracedEvent",
    "Unavailable",
    "Undecodable",
    "event",
]
