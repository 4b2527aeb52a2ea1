"""The embedded broker: SQLite, record batches as rows, no server.

broker.py     the broker: what `connect` gives
consumer.py   one membership in a group, in the event loop
watch.py      what other processes did
writer.py     the queue and the thread that writes: group commit
log.py        topics and batches
groups.py     who owns which partition, and how far it is
failures.py   attempts, parked events, dead letters, commands: what owners write and read
operators.py  replay, archive, pause; the queries over dead letters
status.py     the account
retention.py  what leaves the log
members.py    who is alive
lock.py       the writers' turn
file.py       the directory, the schema, the format, the meaning of errors
"""

from eventlane.brokers.embedded.broker import EmbeddedBroker, open_broker

__all__ = ["EmbeddedBroker", "open_broker"]
