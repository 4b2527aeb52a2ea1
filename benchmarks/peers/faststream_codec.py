"""FastStream without its own validation: msgspec encodes and decodes the one type that there is.

With `apply_types=False` FastStream leaves out Pydantic and its injection; a codec of one's own then
gives the handler its type. That is the fastest that it has: with its own `MsgSpecSerializer` two
thirds of it.
"""

from typing import Any

import msgspec

from benchmarks.orders import Order
from benchmarks.peers.job import decode, encode

_decode_list = msgspec.json.Decoder(list[Order]).decode


class OrderCodec:
    """Orders one by one."""

    async def encode(self, body: Order, _: object = None) -> tuple[bytes, str]:
        return encode(body), "application/json"

    async def decode(self, message: Any) -> Order:
        return decode(message.body)


class OrdersCodec(OrderCodec):
    """Orders that are published one by one, and handled as lists."""

    async def decode(self, message: Any) -> Any:
        return _decode_list(message.body)
