"""Page-locked memory that tensors are laid into on their way to a GPU, which reads it without another copy.

MLflow makes a tensor of the very array that it is given, so it is enough that the array lies there.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import torch

from serving.runtime.exchange import Array

_logger = logging.getLogger(__name__)


class Staging:
    """One piece of memory for each tensor and thread; it grows to the largest batch."""

    def __init__(self) -> None:
        self._pinned = True
        self._own = threading.local()

    def placed(self, name: str, array: Array) -> Array:
        """The rows of `array`, in memory that is written again by the next call with the same name in this thread."""
        held: dict[str, Any] = self._own.__dict__
        if name not in held or held[name].nbytes < array.nbytes:
            held[name] = self._memory(array.nbytes)
        placed: Array = held[name][: array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(placed, array)
        return placed

    def _memory(self, size: int) -> Array:
        if self._pinned:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
            except RuntimeError as error:  # as where the system lets nobody lock memory
                _logger.warning("tensors go to the device from ordinary memory: %s", error)
                self._pinned = False
        return np.empty(size, dtype=np.uint8)
