"""A reader of pickles that executes nothing: it knows numbers, strings, containers, arrays, tensors, and nothing else.

It interprets the opcodes of pickle protocols 0 to 5 itself (Python's `pickletools` documents them). A name in a pickle
stays a name; a call in a pickle is looked up in a table of our own functions, each of which builds plain data, and
refused otherwise. Long bytes and tensors are views of the file, not copies.
"""

import struct
from collections.abc import Callable
from typing import Any

from ndc_core.untrusted_files.pickle_values import (
    CALLS,
    PLAIN_CLASSES,
    Array,
    ArrayType,
    Instance,
    Name,
    PlacedError,
    UnsafePickleError,
    array_of,
    plain_key,
)

MOST_STEPS = 5_000_000
MOST_DEPTH = 200
MOST_LINE_BYTES = 4096
MOST_INTEGER_BYTES = 1024
COPIED_BYTES = 4096  # longer ones stay views

LoadBytes = Callable[[memoryview], Any]
FindStorage = Callable[[Any], Any]


class Machine:
    """Runs one pickle of a buffer. `load_bytes` reads what torch stored as bytes, `find_storage` a persistent id.

    Raises:
        UnsafePickleError: the pickle is damaged or asks for more than data.
    """

    def __init__(
        self,
        content: memoryview,
        start: int,
        *,
        find_storage: FindStorage | None = None,
        load_bytes: LoadBytes | None = None,
    ) -> None:
        self.content, self.position = content, start
        self.find_storage, self.load_bytes = find_storage, load_bytes
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object; `position` is then after the pickle."""
        for _ in range(MOST_STEPS):
            begin = self.position
            code = self.take(1)[0]
            if code == ord("."):
                return check_depth(self.pop())
            operation = OPCODES.get(chr(code))
            if operation is None:
                raise PlacedError(f"at byte {begin}: opcode {chr(code)!r}, which no checkpoint needs")
            try:
                operation(self)
            except PlacedError:
                raise
            except UnsafePickleError as error:
                raise PlacedError(f"at byte {begin}: {error}") from error
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error) as error:
                raise PlacedError(f"at byte {begin}: damaged ({error})") from error
        raise UnsafePickleError(f"it has more than {MOST_STEPS:,} steps: no checkpoint does")

    # What opcodes are made of

    def take(self, length: int) -> memoryview:
        end = self.position + length
        if length < 0 or end > len(self.content):
            left = len(self.content) - self.position
            raise PlacedError(f"at byte {self.position}: truncated ({length:,} bytes announced, {left:,} left)")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        window = bytes(self.content[self.position : self.position + MOST_LINE_BYTES])
        length = window.find(b"\n")
        if length < 0:
            raise PlacedError(f"at byte {self.position}: a line without an end")
        self.position += length + 1
        return window[:length].decode("utf-8", "strict")

    def data(self, length: int) -> bytes | memoryview:
        taken = self.take(length)
        return bytes(taken) if length <= COPIED_BYTES else taken

    def text(self, length: int) -> str:
        return str(self.take(length), "utf-8", "surrogatepass")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise UnsafePickleError("damaged: it takes from an empty stack")
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        if not self.marks:
            raise UnsafePickleError("damaged: a mark is missing")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise UnsafePickleError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[plain_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnsafePickleError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def call(self, function: Any, arguments: Any) -> Any:
        """The one place where anything is called: our own functions, by the name that the pickle gives."""
        path = function.path if isinstance(function, Name) else f"a {type(function).__name__}"
        if not isinstance(arguments, tuple):
            raise UnsafePickleError(f"it calls {path} in no known way")
        if path in ("torch.storage._load_from_bytes", "torch._load_from_bytes") and self.load_bytes:
            (content,) = arguments
            # Tensors are made on writable memory, which short bytes are not.
            return self.load_bytes(memoryview(bytearray(content) if isinstance(content, bytes) else content))
        if not isinstance(function, Name) or path not in CALLS:
            raise UnsafePickleError(f"it asks to call {path}, which no checkpoint needs; nothing was executed")
        return CALLS[path](*arguments)

    def instance(self, kind: Any, arguments: Any) -> Any:
        path = kind.path if isinstance(kind, Name) else f"a {type(kind).__name__}"
        if path in PLAIN_CLASSES and arguments == ():
            return {}
        if not path.startswith("torch.nn.modules.") or arguments != ():
            raise UnsafePickleError(f"it asks to make a {path}, which no checkpoint needs; nothing was executed")
        return Instance(path.rpartition(".")[2])

    def build(self, target: Any, state: Any) -> None:
        """Gives an object its state, by our own rules for each kind."""
        if isinstance(target, Instance) and isinstance(state, dict):
            target.state = state
        elif isinstance(target, Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, fortran, content = state
            target.values = array_of(content, kind, shape, "F" if fortran else "C")
        elif isinstance(target, ArrayType) and target.dtype is not None and isinstance(state, tuple):
            if state[1] in (">", b">"):
                target.dtype = target.dtype.newbyteorder(">")
        elif not (isinstance(target, dict) and isinstance(state, dict)):  # attributes of a dict, which are dropped
            raise UnsafePickleError(f"it gives a {type(target).__name__} a state")

    def persistent(self, identity: Any) -> Any:
        if self.find_storage is None or not isinstance(identity, tuple):
            what = f" ({identity[:80]!r})" if isinstance(identity, str) else ""
            raise UnsafePickleError(f"it refers to something outside of the file{what}")
        return self.find_storage(identity)


# Opcodes

Operation = Callable[[Machine], None]


def constant(make: Callable[[], Any]) -> Operation:
    return lambda machine: machine.push(make())


def reads(read: Callable[[Machine], Any]) -> Operation:
    return lambda machine: machine.push(read(machine))


def decimal(machine: Machine) -> int | bool:
    text = machine.line().removesuffix("L")
    if text in ("00", "01"):
        return text == "01"
    if len(text) > MOST_INTEGER_BYTES:
        raise UnsafePickleError("a number that is too long")
    return int(text)


def little_endian(machine: Machine, length: int) -> int:
    if not 0 <= length <= MOST_INTEGER_BYTES:
        raise UnsafePickleError(f"a number of {length:,} bytes")
    return int.from_bytes(machine.take(length), "little", signed=True)


def quoted(machine: Machine) -> bytes:
    text = machine.line()
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"" or "\\" in text:
        raise UnsafePickleError("a string in a form that is not read here")
    return text[1:-1].encode()


def mark(machine: Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def pop_mark(machine: Machine) -> None:
    machine.to_mark()


def tuple_of(length: int) -> Operation:
    def make(machine: Machine) -> None:
        items = [machine.pop() for _ in range(length)]
        machine.push(tuple(reversed(items)))

    return make


def make_dict(machine: Machine) -> None:
    items = machine.to_mark()
    machine.push({})
    machine.set_items(items)


def set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def append(machine: Machine) -> None:
    value = machine.pop()
    machine.extend([value])


def global_name(machine: Machine) -> None:
    machine.push(Name(f"{machine.line()}.{machine.line()}"))


def stack_global(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise UnsafePickleError("it names a class by something that is no text")
    machine.push(Name(f"{module}.{name}"))


def reduce(machine: Machine) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.push(machine.call(function, arguments))


def new_object(machine: Machine) -> None:
    arguments, kind = machine.pop(), machine.pop()
    machine.push(machine.instance(kind, arguments))


def build(machine: Machine) -> None:
    state = machine.pop()
    machine.build(machine.stack[-1], state)


def instance(machine: Machine) -> None:
    raise UnsafePickleError(f"it asks to make a {machine.line()}.{machine.line()}; nothing was executed")


def object_of(machine: Machine) -> None:
    items = machine.to_mark()
    raise UnsafePickleError(f"it asks to make a {getattr(items[0], 'path', '?')}; nothing was executed")


def put(index: Callable[[Machine], int]) -> Operation:
    def store(machine: Machine) -> None:
        machine.memo[index(machine)] = machine.stack[-1]

    return store


def get(index: Callable[[Machine], int]) -> Operation:
    def recall(machine: Machine) -> None:
        machine.push(machine.memo[index(machine)])

    return recall


def protocol(machine: Machine) -> None:
    if machine.number("<B") > 5:
        raise UnsafePickleError("a pickle protocol above 5")


def byte(machine: Machine) -> int:
    return int(machine.number("<B"))


def word(machine: Machine) -> int:
    return int(machine.number("<I"))


def long_word(machine: Machine) -> int:
    return int(machine.number("<Q"))


OPCODES: dict[str, Operation] = {
    "\x80": protocol,
    "\x95": lambda machine: machine.number("<Q"),  # a frame's length is a hint for buffering
    "(": mark,
    "0": lambda machine: machine.pop(),
    "1": pop_mark,
    "2": reads(lambda machine: machine.stack[-1]),
    "N": constant(lambda: None),
    "\x88": constant(lambda: True),
    "\x89": constant(lambda: False),
    "I": reads(decimal),
    "L": reads(decimal),
    "J": reads(lambda machine: machine.number("<i")),
    "K": reads(byte),
    "M": reads(lambda machine: machine.number("<H")),
    "\x8a": reads(lambda machine: little_endian(machine, byte(machine))),
    "\x8b": reads(lambda machine: little_endian(machine, machine.number("<i"))),
    "F": reads(lambda machine: float(machine.line())),
    "G": reads(lambda machine: machine.number(">d")),
    "S": reads(quoted),
    "T": reads(lambda machine: machine.data(machine.number("<i"))),
    "U": reads(lambda machine: machine.data(byte(machine))),
    "B": reads(lambda machine: machine.data(word(machine))),
    "C": reads(lambda machine: machine.data(byte(machine))),
    "\x8e": reads(lambda machine: machine.data(long_word(machine))),
    "\x96": reads(lambda machine: machine.data(long_word(machine))),
    "V": reads(lambda machine: machine.line()),
    "X": reads(lambda machine: machine.text(word(machine))),
    "\x8c": reads(lambda machine: machine.text(byte(machine))),
    "\x8d": reads(lambda machine: machine.text(long_word(machine))),
    "]": constant(list),
    "l": reads(lambda machine: machine.to_mark()),
    "a": append,
    "e": lambda machine: machine.extend(machine.to_mark()),
    ")": constant(tuple),
    "t": reads(lambda machine: tuple(machine.to_mark())),
    "\x85": tuple_of(1),
    "\x86": tuple_of(2),
    "\x87": tuple_of(3),
    "}": constant(dict),
    "d": make_dict,
    "s": set_item,
    "u": lambda machine: machine.set_items(machine.to_mark()),
    "\x8f": constant(list),  # a set: its members need no hash here
    "\x90": lambda machine: machine.extend(machine.to_mark()),
    "\x91": reads(lambda machine: machine.to_mark()),
    "c": global_name,
    "\x93": stack_global,
    "R": reduce,
    "\x81": new_object,
    "b": build,
    "i": instance,
    "o": object_of,
    "P": lambda machine: machine.push(machine.persistent(machine.line())),
    "Q": lambda machine: machine.push(machine.persistent(machine.pop())),
    "p": put(lambda machine: int(decimal(machine))),
    "q": put(byte),
    "r": put(word),
    "\x94": put(lambda machine: len(machine.memo)),
    "g": get(lambda machine: int(decimal(machine))),
    "h": get(byte),
    "j": get(word),
}


def check_depth(root: Any) -> Any:
    """The object itself, with arrays finished, unless it is nested deeper than any checkpoint. Does not recurse."""
    seen: set[int] = set()
    level: list[Any] = [root]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for item in level:
            children = item.state if isinstance(item, Instance) else item
            if not isinstance(children, dict | list | tuple) or id(children) in seen:
                continue
            seen.add(id(children))
            if isinstance(children, dict):
                children.update({key: value.values for key, value in children.items() if isinstance(value, Array)})
            elif isinstance(children, list):
                children[:] = [value.values if isinstance(value, Array) else value for value in children]
            below.extend(children.values() if isinstance(children, dict) else children)
        if not below:
            return root.values if isinstance(root, Array) else root
        level = below
    raise UnsafePickleError(f"it is nested more than {MOST_DEPTH} deep: no checkpoint is")


def load_numeric_pickle(content: bytes) -> Any:
    """Plain data of a pickle without tensors, such as a batch of CIFAR: strings of Python 2 are bytes.

    Raises:
        UnsafePickleError: it is damaged, or asks for more than data.
    """
    machine = Machine(memoryview(content), 0)
    value = machine.run()
    if machine.position != len(content):
        raise UnsafePickleError(f"{len(content) - machine.position:,} bytes follow the end of the pickle")
    return value
