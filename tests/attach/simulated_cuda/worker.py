"""A process that attaches to memory of a simulated device and does what it is told, line by line."""

import ctypes
import json
import sys

from statepool import Client, StatepoolError
from statepool.attachment import ArenaAttachment
from statepool.torch.attached import IMPORTERS
from statepool.torch.cuda_memory import DeviceBytes

target, read_only = sys.argv[1], bool(int(sys.argv[2]))
client = Client(target)
nbytes = client.get_pool().layout.nbytes
offer = client.attach_pool(read_only=read_only)


def attach() -> ArenaAttachment:
    """Attaches, or says why not and ends."""
    try:
        return ArenaAttachment(
            offer.socket_path, offer.token, nbytes=nbytes, read_only=read_only, timeout=30.0, importers=IMPORTERS
        )
    except StatepoolError as error:
        say([type(error).__name__, error.message])
        sys.exit()


def peek(offset: int) -> int:
    """Reads a byte."""
    return memory[offset]


def poke(offset: int, value: int) -> None:
    """Writes a byte."""
    memory[offset] = value


def detach(_nothing: int) -> bool:
    """Detaches; the variable still has the addresses."""
    return attachment.detach()


def say(answer: object) -> None:
    """Answers."""
    print(json.dumps(answer), flush=True)


attachment = attach()
buffer = attachment.buffer
assert isinstance(buffer, DeviceBytes)
memory = (ctypes.c_ubyte * buffer.nbytes).from_address(buffer.address)
say([buffer.ordinal, buffer.nbytes])
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    say(globals()[verb](*arguments))
