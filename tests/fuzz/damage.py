"""Ways to damage a file."""

from __future__ import annotations

import math
import random
import re
from contextlib import suppress
from typing import Any, Final

import onnx
from google.protobuf.message import Message

TOKENS: Final = (
    *rb'null true "text" [null] {"a":1} 9223372036854775808 Infinity "\u0000" -1 0 1e999 NaN'.split(),
    *rb"""[] {} "" "\ud800" ' %s ../ !!python/object:os.system""".split(),
    *(b"\xd9\xa1", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b": &a [*a]", b"\n- ", b"1" * 400, b"[" * 200),
)

VALUE = re.compile(rb'"[^"]*"|[\w.+-]+')
"""A value of JSON, YAML and the like."""


def damaged(good: bytes, chance: random.Random) -> bytes:
    """A copy that is cut, doubled, spliced or changed in some places."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 2, 8, 64)))
        match chance.randrange(7):
            case 0:
                data[start:end] = chance.randbytes(end - start)
            case 1:
                del data[start:end]
            case 2:
                data[start:start] = data[start:end]
            case 3:
                data[start:end] = chance.choice(TOKENS)
            case 4:
                del data[max(start, len(data) // 2) :]
            case _:
                if value := VALUE.search(data, start):
                    data[value.start() : value.end()] = chance.choice(TOKENS)
    return bytes(data)


NUMBERS: Final = (0, 1, -1, 3, 112, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, -(1 << 63))
FLOATS: Final = (0.0, -1.0, 1e-45, 1e38, math.inf, math.nan)
TEXTS: Final = (
    "",
    *["data", "../x", "/etc/hosts", "\x00", "Conv", "PRelu", "Reshape", "Gemm", "Identity"],
    "é" * 99,
)


def damaged_network(good: bytes, chance: random.Random) -> bytes:
    """A network whose file is right, and of which some parts are missing, doubled or other ones."""
    if chance.random() < 0.3:
        return damaged(good, chance)
    model = onnx.ModelProto.FromString(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        with suppress(ValueError, TypeError):  # a value that the field cannot have
            change(model, chance)
    return bytes(model.SerializeToString())


def change(message: Message, chance: random.Random) -> None:
    """Change a field of a message, or of a message in it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = chance.choice(fields)
    many = hasattr(value, "append")
    index = chance.randrange(len(value)) if many else 0
    one = value[index] if many else value
    action = chance.randrange(5)
    if action == 0 and many:
        del value[index]
    elif action == 0:
        message.ClearField(field.name)
    elif action == 1 and many:
        value.append(one)
    elif isinstance(one, Message):
        change(one, chance)
    elif many:
        value[index] = other(one, chance)
    else:
        setattr(message, field.name, other(one, chance))


def other(value: Any, chance: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bytes):
        return damaged(value, chance)
    if isinstance(value, str):
        return chance.choice((*TEXTS, value * 2, value[1:]))
    return chance.choice(FLOATS if isinstance(value, float) else (*NUMBERS, value + 1))
