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
    find_global,
    make_damage_error,
    parse_storage,
    rebuild_object,
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

    def execute(self, name: str, argument: Any) -> None:
        """Executes an opcode; refuses those that `torch.save` never writes."""
        self._count_steps(1)
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

    def _count_steps(self, steps: int) -> None:
        """Raises InvalidFileError once a pickle has too many steps."""
        self._steps += steps
        if self._steps > _MAX_OPCODES:
            raise InvalidFileError(
                f"its pickle has more than {_MAX_OPCODES:,} steps; save only the "
                f"weights with {SAVE}"
            )

    def _pop_to_mark(self) -> list:
        """Pops the mark and returns the items above it."""
        items, self.stack = self.stack, self._below.pop()
        return items

    def push_mark(self, _) -> None:
        self._below.append(self.stack)
        self.stack = []

    def pop_item(self, _) -> None:
        """Drops the top of the stack: an item or, if there is none, a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self._pop_to_mark()

    def memoize(self, index: int | None) -> None:
        """Stores the top item in the memo; None is the next free index."""
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def push_memoized(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def make_tuple(self, size: int | None) -> None:
        """Replaces the top `size` items, or those above the mark, with a tuple."""
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
        self._add_pairs(items)

    def make_frozenset(self, _) -> None:
        """Replaces the items above the mark with a placeholder."""
        self._pop_to_mark()
        self.stack.append(Placeholder("frozenset"))

    def append_items(self, has_mark: bool) -> None:
        """Appends the top item, or those above the mark, to the list below."""
        items = self._pop_to_mark() if has_mark else [self.stack.pop()]
        target = self.stack[-1]
        if not isinstance(target, Placeholder):
            _require_type(target, list).extend(items)

    def set_items(self, has_mark: bool) -> None:
        """Adds the top pair, or those above the mark, to the dict below."""
        if has_mark:
            items = self._pop_to_mark()
        else:
            value, key = self.stack.pop(), self.stack.pop()
            items = [key, value]
        self._add_pairs(items)

    def _add_pairs(self, items: list) -> None:
        target = _require_type(self.stack[-1], dict, Placeholder)
        add_items(target, zip(items[::2], items[1::2], strict=True))

    def push_global(self, names: str) -> None:
        """Pushes a class or function; `names` has its module, a space and its name."""
        self.stack.append(find_global(*names.split(" ", 1)))

    def push_stack_global(self, _) -> None:
        """Replaces the module and the name on the stack with a class or function."""
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(
            find_global(_require_type(module, str), _require_type(name, str))
        )

    def push_call(self, has_keywords: bool) -> None:
        """Replaces a function and its arguments with the object that they build."""
        if has_keywords:
            _require_type(self.stack.pop(), dict)
        arguments = self.stack.pop()
        # One list can be the argument of many calls.
        sized = (list, tuple, dict)
        self._count_steps(sum(len(x) for x in arguments if isinstance(x, sized)))
        self.stack.append(rebuild_object(self.stack.pop(), arguments))

    def drop_state(self, _) -> None:
        """Drops the state of the object below, which is not needed."""
        self.stack.pop()
        _require_type(self.stack[-1], dict, Placeholder, Tensor)

    def push_storage(self, _) -> None:
        """Replaces a persistent id with its storage, and registers the storage."""
        storage = parse_storage(self.stack.pop())
        self.stack.append(storage)
        # Tensors of different types may share a storage.
        self._storages.setdefault(storage.key, storage)


def _require_type(value: Any, *classes: type) -> Any:
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


def _fix_argument(operation: Callable, value: Any) -> Callable:
    """Returns an operation that gets this value instead of the opcode's argument."""
    return lambda machine, _: operation(machine, value)


_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.push_mark,
    "POP": _Machine.pop_item,
    "POP_MARK": lambda machine, _: machine._pop_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.push_memoized),
    "TUPLE": _fix_argument(_Machine.make_tuple, None),
    "TUPLE1": _fix_argument(_Machine.make_tuple, 1),
    "TUPLE2": _fix_argument(_Machine.make_tuple, 2),
    "TUPLE3": _fix_argument(_Machine.make_tuple, 3),
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _fix_argument(_Machine.append_items, False),
    "APPENDS": _fix_argument(_Machine.append_items, True),
    "ADDITEMS": _fix_argument(_Machine.append_items, True),
    "SETITEM": _fix_argument(_Machine.set_items, False),
    "SETITEMS": _fix_argument(_Machine.set_items, True),
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.push_stack_global,
    "REDUCE": _fix_argument(_Machine.push_call, False),
    "NEWOBJ": _fix_argument(_Machine.push_call, False),
    "NEWOBJ_EX": _fix_argument(_Machine.push_call, True),
    "BUILD": _Machine.drop_state,
    "BINPERSID": _Machine.push_storage,
}


class _LimitedFile:
    """A file that `pickletools.genops` can read a limited number of bytes from."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = MAX_BYTES

    def _count_read(self, content: bytes, expected: int) -> bytes:
        """Counts bytes that were read; raises InvalidFileError if some are missing."""
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
        return self._count_read(self._file.read(size), size)

    def readline(self) -> bytes:
        return self._count_read(self._file.readline(self._left), 0)


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
        for opcode, argument, _ in pickletools.genops(_LimitedFile(file)):
            machine.execute(opcode.name, argument)
        [result] = machine.stack
    # The errors of genops, and of operations with values of the wrong type or number.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise make_damage_error(f"its pickle is invalid ({shorten(reason)})") from e
    return result
