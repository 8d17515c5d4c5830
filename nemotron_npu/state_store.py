"""The encoder states of many streams in shared tensors, to be copied into the slots of a step and back.

Rows are copied by indices that the host computes, with as many operators for two streams as for all.  So more streams
take no more time on a device that waits for launches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch

from .cache import EncoderState, RollingCache
from .device import upload


class RowStore:
    """Rolling caches of one slot each, one after the other in the memory of one of many slots."""

    def __init__(self, memory: RollingCache) -> None:
        """Take the memory of a cache; its last slot gets the rows that nobody needs."""
        layers, self.length, self.places, width = memory.rows.shape
        self.rows = memory.rows.view(layers, self.places * self.length, width)
        self.empty = memory
        self.caches: dict[int, RollingCache] = {}
        """The caches by their places."""

    def open(self, place: int) -> RollingCache:
        """Return an empty cache at ``place``."""
        cache = self.caches[place] = copy.copy(self.empty)
        cache.rows = self.rows[:, place * self.length : (place + 1) * self.length, None]
        cache.end = cache.keep
        cache.kept.zero_()
        return cache

    def kept(self, places: list[int]) -> torch.Tensor:
        """Return the indices of the rows that the caches at these places keep, [keep * slots]."""
        ends = torch.tensor([place * self.length + self.caches[place].end for place in places])
        return (torch.arange(-self.empty.keep, 0)[:, None] + ends).flatten()

    def advanced(self, places: list[int | None], count: int) -> torch.Tensor:
        """Advance the caches by ``count`` frames; return the indices for the last rows of a step, [rows * slots].

        A cache whose memory is full moves to its front with all that it keeps; the other rows of the others are in
        the step for nothing then.
        """
        keep = self.empty.keep
        new = min(count, keep)
        caches = {slot: self.caches[place] for slot, place in enumerate(places) if place is not None}
        full = [slot for slot, cache in caches.items() if not cache.slides or cache.end + new > self.length]
        index = torch.full((keep if full else new, len(places)), self.rows.shape[1] - 1)
        for slot, cache in caches.items():
            size = keep if slot in full else new
            cache.end = keep if slot in full else cache.end + new
            first = (places[slot] or 0) * self.length + cache.end - size
            index[len(index) - size :, slot] = torch.arange(first, first + size)
        return index.flatten()


class StateStore:
    """The encoder states of many streams, one slot each."""

    def __init__(self, new_state: Callable[[int], EncoderState], places: int) -> None:
        """Allocate so many states; ``new_state`` returns an ``EncoderState`` of as many slots as it is given."""
        self.memory = new_state(places + 1)
        self.stores = RowStore(self.memory.attention), RowStore(self.memory.convolution)
        self.states: dict[int, EncoderState] = {}
        """The states by their places."""

    def open(self, place: int) -> EncoderState:
        """Return an empty state at ``place``, instead of what was there before."""
        stages = [rows[place : place + 1] for rows in self.memory.stages]
        attention, convolution = (store.open(place) for store in self.stores)
        state = self.states[place] = EncoderState(stages, attention, convolution, self.memory.right)
        for row in state.kept_rows:
            row.zero_()
        return state

    @torch.inference_mode()
    def gather(self, places: list[int], state: EncoderState) -> None:
        """Copy the states at ``places`` into the first slots of ``state``, and the first of them into the others."""
        places = places + places[:1] * (len(state.position) - len(places))
        state.position = [self.states[place].position[0] for place in places]
        index, *indices = self._upload([torch.tensor(places), *(store.kept(places) for store in self.stores)])
        for theirs, mine in zip(state.kept_rows, self.memory.kept_rows, strict=True):
            torch.index_select(mine, 0, index, out=theirs)
        for store, cache, rows in zip(self.stores, (state.attention, state.convolution), indices, strict=True):
            cache.end = cache.keep
            torch.index_select(store.rows, 1, rows, out=cache.kept.flatten(1, 2))

    @torch.inference_mode()
    def advance(self, places: list[int | None], state: EncoderState, count: int) -> None:
        """Advance the states at ``places`` by the ``count`` frames that the first slots of ``state`` have advanced by.

        None leaves the state of a slot as it is.
        """
        slots = len(state.position)
        places = places + [None] * (slots - len(places))
        unused = len(self.memory.position) - 1
        targets = torch.tensor([unused if place is None else place for place in places])
        index, *indices = self._upload([targets, *(store.advanced(places, count) for store in self.stores)])
        for theirs, mine in zip(state.kept_rows, self.memory.kept_rows, strict=True):
            mine.index_copy_(0, index, theirs)
        for store, cache, rows in zip(self.stores, (state.attention, state.convolution), indices, strict=True):
            new = cache.kept[:, cache.keep - len(rows) // slots :]
            store.rows.index_copy_(1, rows, new.flatten(1, 2))
        for place in places:
            if place is not None:
                self.states[place].position[0] += count

    def _upload(self, indices: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Copy indices to the device, all of them at once."""
        whole = upload(torch.cat(indices), self.memory.attention.rows.device)
        return whole.split([len(index) for index in indices])
