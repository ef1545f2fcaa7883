"""The compiled functions, by name: loaded at first use, called over addresses, without the interpreter's lock.

Libraries are held here and not by the modules that use them: those are copied, pickled and forked.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hcmegatron.kernels.native.build import Unavailable, library

MAX_STREAMS = 8  # that anything was tested with
LANES = 16  # at most, of a vector: what scratch is sized by
EPS = {"none": 0, "additive": 1, "clamp": 2}  # sinkhorn.h

# What functions take: p an address or None, l int64, i int, f float.
_FUNCTIONS = {
    "sinkhorn": {"sinkhorn_forward": "p l ii", "sinkhorn_backward": "ppp l ii"},
    "coefficients": {
        "coefficients_forward": "pppppp lllll ff iiii",
        "coefficients_backward": "pppppppppp lllll iiii",
    },
    "read": {"aggregate": "ppp ll i", "aggregate_backward": "ppp ll i", "streams_backward": "ppppppp ll i"},
    "gated": {
        "gated_norm": "pppp ll f i",
        "gated_mix": "pppp ll i",
        "gated_backward_gates": "ppppppp ll i",
        "gated_backward_streams": "ppppppppp ll i",
    },
    "hyper": {
        "hyper_read": "ppppppppppppppp llll f iiii",
        "hyper_read_backward": "ppppppppppppppppppppppppp llll iiii",
    },
    "static": {"static_read": "ppp ll ii", "static_read_backward": "pppppp ll ii"},
    "write": {"write_forward": "ppppp lll iii", "write_backward": "ppppppppp lll iii"},
}
_ANSWERING = (
    "coefficients_forward",
    "coefficients_backward",
    "hyper_read",
)  # an int; the others return nothing
_KINDS = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


@functools.cache
def obstacle(n: int, *files: str) -> str | None:
    """Why these files' functions cannot be had for n streams, in words; None where they can. Found out once."""
    try:
        for file in files:
            _loaded(file, n)
    except Unavailable as found:
        return str(found)
    return None


def compiled_by(n: int, file: str) -> str:
    """The compiler and its version, in words. Raises Unavailable where there is an `obstacle`."""
    words: bytes = _loaded(file, n).compiled_by()
    return words.decode()


@functools.cache
def function(name: str, n: int) -> Callable[..., int]:
    """A compiled function for n streams, to be called with addresses and numbers. Raises Unavailable."""
    file, letters = next((file, found[name]) for file, found in _FUNCTIONS.items() if name in found)
    made = getattr(_loaded(file, n), name)
    made.argtypes = [_KINDS[letter] for letter in letters.replace(" ", "")]
    made.restype = ctypes.c_int if name in _ANSWERING else None
    called: Callable[..., int] = made
    return called


def address(t: Tensor | None) -> int | None:
    """Of the first number of a contiguous tensor; None is 0."""
    return None if t is None else t.data_ptr()


@functools.cache
def _loaded(file: str, n: int) -> Any:
    loaded = library(file, n)
    loaded.compiled_by.restype = ctypes.c_char_p
    return loaded
