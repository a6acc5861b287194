"""The pickle dialect of torch files, read as plain data: nothing is imported, nothing is called, work is bounded.

Python's own unpickler is not used. Nine bytes make it take 4 GB (a memo index), a key of nested tuples stops the
process with a segmentation fault or hashes for ever, and both happen below any `find_class`; finding them before
takes the same walk over the instructions as reading them. So this walk is the reading: it knows the instructions
that `torch.save` emits and a closed table of names, and any other is an error.
"""

from pickletools import genops
from typing import Any

from lsmfm_jax.convert.torch_records import (
    TorchFileError,
    as_set,
    call,
    find_name,
    find_storage,
    set_item,
    with_state,
)

# A checkpoint of 10,000 tensors with the moments of its optimizer takes a quarter of either.
_MOST_BYTES = 64 << 20
_MOST_INSTRUCTIONS = 4_000_000
# Every value is written once and used a few times: a call's arguments together are not much longer than the file.
_WORK_PER_BYTE = 2
_WORK_AT_LEAST = 1000

_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
    "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and memo of one reading; `work` is what its calls may still read of their arguments."""

    def __init__(self, work: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.work = work

    def pop(self, count: int = 1) -> list[Any]:
        """The last `count` values, never from below a mark."""
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise TorchFileError("the instructions do not fit together")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop_to_mark(self) -> list[Any]:
        items = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return items

    def call(self, callee: Any, arguments: Any) -> Any:
        if type(arguments) is tuple:
            lengths = (len(item) for item in arguments if type(item) in (str, bytes, list, tuple, dict))
            self.work -= len(arguments) + sum(lengths)
        if self.work < 0:
            raise TorchFileError("it uses the same values over and over, which no checkpoint does")
        return call(callee, arguments)

    def step(self, code: str, argument: Any) -> None:
        """Carry out one instruction that makes or moves a value."""
        stack = self.stack
        if code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            stack.append(tuple(self.pop(_TUPLES[code])))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "MARK":
            self.marks.append(len(stack))
        elif code == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif code == "GLOBAL":
            stack.append(find_name(*argument.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            stack.append(find_name(*self.pop(2)))
        elif code == "BINPERSID":
            stack.append(find_storage(*self.pop()))
        elif code == "REDUCE":
            stack.append(self.call(*self.pop(2)))
        elif code == "BUILD":
            stack.append(with_state(*self.pop(2)))
        else:
            self.fill(code)

    def fill(self, code: str) -> None:
        """Carry out one instruction that fills the container below it on the stack."""
        if code in ("SETITEM", "SETITEMS"):
            items = self.pop_to_mark() if code == "SETITEMS" else self.pop(2)
            for key, value in zip(items[::2], items[1::2], strict=True):
                set_item(self.stack[-1], key, value)
        elif code in ("APPEND", "APPENDS"):
            items = self.pop_to_mark() if code == "APPENDS" else self.pop()
            if type(self.stack[-1]) is not list:
                raise TorchFileError("something is appended to what is not a list")
            self.stack[-1].extend(items)
        elif code == "ADDITEMS":
            items = self.pop_to_mark()
            if type(self.stack[-1]) is not set:
                raise TorchFileError("something is added to what is not a set")
            self.stack[-1].update(as_set(items))
        else:
            raise TorchFileError(f"the pickle instruction {code} is not one that plain tensors and data need")


def read_pickle(data: bytes) -> Any:
    """Read a torch file's pickle as plain data, tensors as `TensorRecord`.

    The result may share containers, or hold itself: walk it with care.

    Raises:
        TorchFileError: it asks for a name outside the closed table, for more work than its length explains, or
            is damaged.
    """
    if len(data) > _MOST_BYTES:
        raise TorchFileError(f"its pickle has {len(data):,} bytes, at most {_MOST_BYTES:,} are read")
    machine = _Machine(work=_WORK_PER_BYTE * len(data) + _WORK_AT_LEAST)
    try:
        for number, (opcode, argument, _) in enumerate(genops(data)):
            if opcode.name == "STOP":
                return machine.pop()[0]
            if number >= _MOST_INSTRUCTIONS:
                raise TorchFileError(f"its pickle has more than {_MOST_INSTRUCTIONS:,} instructions")
            if opcode.name not in ("PROTO", "FRAME"):
                machine.step(opcode.name, argument)
    except TorchFileError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise TorchFileError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:120]})") from error
    raise TorchFileError("its pickle ends early")
