"""The embedded broker: SQLite, record batches as rows, no server. DESIGN.md has the file map."""

from eventlane.brokers.embedded.broker import EmbeddedBroker, open_broker

__all__ = ["EmbeddedBroker", "open_broker"]
