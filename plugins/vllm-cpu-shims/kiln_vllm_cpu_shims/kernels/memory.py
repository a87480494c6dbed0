"""Memory and integers as an interpreted kernel sees them, for whole arrays at once.

A scalar is an array of shape ``(1,)`` here, never a numpy scalar: arrays wrap silently where they
overflow, as the kernels do. A Python number takes its partner's type, as in Triton.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # np.ndarray of whichever integer type


def scalar(value: int) -> Array:
    """A launch's integer argument, shape ``(1,)``: int32 where that holds it, else int64."""
    fits = -(2**31) <= value < 2**31
    return np.array([value], dtype=np.int32 if fits else np.int64)


def divide(dividend: Array, divisor: Array | int) -> Array:
    """Triton's ``//`` of integers, which rounds toward zero."""
    return (dividend - np.fmod(dividend, divisor)) // divisor


def remainder(dividend: Array, divisor: Array | int) -> Array:
    """Triton's ``%`` of integers, which has the dividend's sign."""
    return np.fmod(dividend, divisor)


def spread(counts: Array) -> tuple[Array, Array]:
    """For rows of ``counts`` (int, shape ``(R,)``) items: each item's row (int64) and its number
    within it (int32), row after row; shape ``(sum of counts,)``. Counts below 0 are 0."""
    counts = np.maximum(counts, 0).astype(np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return rows, (np.arange(len(rows)) - before[rows]).astype(np.int32)


class Pointer:
    """A tensor as a kernel gets it: where its first element lies in its storage.

    Offsets count elements from there, whatever the tensor's shape and strides. One that leaves the
    storage is an ``IndexError``.
    """

    def __init__(self, tensor: Any) -> None:
        """``tensor`` is on the CPU; what is stored goes to its memory."""
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        self._flat: Array = tensor.as_strided((size,), (1,), 0).numpy()
        self._start = int(tensor.storage_offset())

    def _index(self, offsets: Array) -> Array:
        index = np.add(offsets, self._start, dtype=np.int64)
        if index.size and index.min() < 0:
            raise IndexError(f"{-int(index.min())} elements before the tensor's storage")
        return index

    def load(self, offsets: Array, mask: Array | None = None) -> Array:
        """The elements at ``offsets``, in the tensor's type; 0 where ``mask`` is off, unread."""
        if mask is None:
            return self._flat[self._index(offsets)]
        found = np.zeros(offsets.shape, dtype=self._flat.dtype)
        found[mask] = self._flat[self._index(offsets[mask])]
        return found

    def store(self, offsets: Array, values: Array | int) -> None:
        """Put ``values`` at ``offsets``; of several for one place the last stays."""
        self._flat[self._index(offsets)] = values

    def fill(self, first: int, end: int, value: int) -> None:
        """Put ``value`` at the offsets from ``first`` up to ``end``; nowhere if that is before."""
        if end <= first:
            return
        first, end = first + self._start, end + self._start
        if first < 0 or end > len(self._flat):
            raise IndexError(f"elements {first} to {end} of a storage of {len(self._flat)}")
        self._flat[first:end] = value


class _Raw:
    """What numpy makes an int32 array of, at an address; the array does not own the memory."""

    def __init__(self, address: int, count: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (count,),
            "typestr": "<i4",
        }


class Address:
    """int32 elements at an address that a kernel got as a number.

    Nothing says how far its memory reaches: a view is made of what lies between the lowest and the
    highest offset asked for, and none for no offsets.
    """

    def __init__(self, address: int) -> None:
        self._address = address

    def _view(self, offsets: Array) -> tuple[Array, Array]:
        low, high = int(offsets.min()), int(offsets.max())
        view = np.asarray(_Raw(self._address + 4 * low, high - low + 1))
        return view, np.subtract(offsets, low, dtype=np.int64)

    def load(self, offsets: Array, mask: Array) -> Array:
        """The int32 elements at ``offsets``; 0 where ``mask`` is off, unread."""
        found = np.zeros(offsets.shape, dtype=np.int32)
        wanted = offsets[mask]
        if wanted.size:
            view, index = self._view(wanted)
            found[mask] = view[index]
        return found

    def store(self, offsets: Array, values: Array | int) -> None:
        """Put ``values`` at ``offsets``; of several for one place the last stays."""
        if offsets.size:
            view, index = self._view(offsets)
            view[index] = values
