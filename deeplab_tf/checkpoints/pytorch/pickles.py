"""Interprets pickles of PyTorch without executing them.

A pickle is a program that calls functions by name, so that reading one with the
`pickle` module can run any code. Here, `objects` decides what a name stands for.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from deeplab_tf.checkpoints.pytorch.objects import (
    SAVE,
    InvalidFileError,
    Placeholder,
    Storage,
    Tensor,
    add_items,
    call,
    find_global,
    find_storage,
    make_damage_error,
    shorten,
)

# A training checkpoint with log and optimiser has about 200,000 opcodes and 40 MB.
MAX_BYTES = 128 * 2**20
_MAX_OPCODES = 2_000_000


class _Machine:
    """The stack and the memo of a pickle, with the effect of each opcode."""

    def __init__(self, storages: dict[str, Storage]):
        self.stack: list = []
        self._below: list[list] = []  # stacks below each mark
        self._memo: dict[int, Any] = {}
        self._storages = storages
        self._steps = 0

    def run(self, name: str, argument: Any) -> None:
        self._count(1)
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _IGNORED:
            raise InvalidFileError(
                f"its pickle has the opcode {name}, which torch.save does not write; "
                f"save it again with {SAVE}"
            )

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MAX_OPCODES:
            raise InvalidFileError(
                f"its pickle has more than {_MAX_OPCODES:,} steps; save only the "
                f"weights with {SAVE}"
            )

    def _pop_to_mark(self) -> list:
        items, self.stack = self.stack, self._below.pop()
        return items

    def mark(self, _) -> None:
        self._below.append(self.stack)
        self.stack = []

    def discard(self, _) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_to_mark()

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def make_tuple(self, size: int | None) -> None:
        if size is None:
            items = self._pop_to_mark()
        else:
            items = [self.stack.pop() for _ in range(size)][::-1]
        self.stack.append(tuple(items))

    def make_list(self, _) -> None:
        items = self._pop_to_mark()
        self.stack.append(items)

    def make_dict(self, _) -> None:
        items = self._pop_to_mark()
        self.stack.append({})
        self._set(items)

    def make_frozenset(self, _) -> None:
        self._pop_to_mark()
        self.stack.append(Placeholder("frozenset"))

    def append(self, has_mark: bool) -> None:
        items = self._pop_to_mark() if has_mark else [self.stack.pop()]
        target = self.stack[-1]
        if not isinstance(target, Placeholder):
            _require(target, list).extend(items)

    def set_items(self, has_mark: bool) -> None:
        if has_mark:
            items = self._pop_to_mark()
        else:
            value, key = self.stack.pop(), self.stack.pop()
            items = [key, value]
        self._set(items)

    def _set(self, items: list) -> None:
        target = _require(self.stack[-1], dict, Placeholder)
        add_items(target, zip(items[::2], items[1::2], strict=True))

    def push_global(self, names: str) -> None:
        self.stack.append(find_global(*names.split(" ", 1)))

    def find_stack_global(self, _) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(find_global(_require(module, str), _require(name, str)))

    def call(self, has_keywords: bool) -> None:
        if has_keywords:
            _require(self.stack.pop(), dict)
        arguments = self.stack.pop()
        # One list can be the argument of many calls.
        sized = (list, tuple, dict)
        self._count(sum(len(x) for x in arguments if isinstance(x, sized)))
        self.stack.append(call(self.stack.pop(), arguments))

    def set_state(self, _) -> None:
        self.stack.pop()
        _require(self.stack[-1], dict, Placeholder, Tensor)

    def push_storage(self, _) -> None:
        storage = find_storage(self.stack.pop())
        self.stack.append(storage)
        # Tensors of different types may share a storage.
        self._storages.setdefault(storage.key, storage)


def _require(value: Any, *classes: type) -> Any:
    if not isinstance(value, classes):
        raise make_damage_error(f"its pickle is invalid (a {type(value).__name__})")
    return value


_IGNORED = {"PROTO", "FRAME", "STOP"}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("STRING", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Placeholder("set"),
}


def _ignore_argument(operation: Callable, value: Any) -> Callable:
    """Returns the operation of an opcode that implies this value."""
    return lambda machine, _: operation(machine, value)


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.discard,
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _ignore_argument(_Machine.make_tuple, None),
    "TUPLE1": _ignore_argument(_Machine.make_tuple, 1),
    "TUPLE2": _ignore_argument(_Machine.make_tuple, 2),
    "TUPLE3": _ignore_argument(_Machine.make_tuple, 3),
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _ignore_argument(_Machine.append, False),
    "APPENDS": _ignore_argument(_Machine.append, True),
    "ADDITEMS": _ignore_argument(_Machine.append, True),
    "SETITEM": _ignore_argument(_Machine.set_items, False),
    "SETITEMS": _ignore_argument(_Machine.set_items, True),
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _ignore_argument(_Machine.call, False),
    "NEWOBJ": _ignore_argument(_Machine.call, False),
    "NEWOBJ_EX": _ignore_argument(_Machine.call, True),
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.push_storage,
}


class _Limited:
    """A file that `pickletools.genops` can read a limited number of bytes from."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = MAX_BYTES

    def _take(self, content: bytes, expected: int) -> bytes:
        if len(content) < expected:
            raise make_damage_error("it is truncated")
        self._left -= len(content)
        return content

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise InvalidFileError(
                f"its pickle has more than {MAX_BYTES:,} bytes; save only the weights "
                f"with {SAVE}"
            )
        return self._take(self._file.read(size), size)

    def readline(self) -> bytes:
        return self._take(self._file.readline(self._left), 0)


def interpret(file: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Interprets the pickle at the position of a file, up to its end.

    Args:
        file: A file with fast small reads.
        storages: Filled with the storages of tensors by their key.

    Returns:
        Numbers, strings, lists, tuples and dicts, of any class, as such; a `Tensor` for
        each tensor; a `Placeholder` for other objects.

    Raises:
        InvalidFileError: if the pickle is invalid, too large or has other objects.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(_Limited(file)):
            machine.run(opcode.name, argument)
        [result] = machine.stack
    # The errors of genops, and of operations with values of the wrong type or number.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise make_damage_error(f"its pickle is invalid ({shorten(reason)})") from e
    return result
