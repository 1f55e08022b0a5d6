"""Requests in JSON, read by decoders that msgspec makes for one plan. What they do not take, they say nothing about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType
from msgspec.json import Decoder

from serving.runtime.exchange import Array, Rows
from serving.runtime.parsing_json import CHAT, FORMATS, loaded
from serving.runtime.parsing_params import ParamReader

NOT_READ = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
"""What decoders and NumPy raise where they do not take a request."""

Arrays = Mapping[str, Array]

Format = tuple[Any, Callable[[Any], "Arrays | None"]]
"""What msgspec is told of one format, and what makes arrays of it: None, or an error of `NOT_READ`, where it cannot."""


class Split(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """``dataframe_split``; its rows are read once the order of columns is known."""

    data: Raw
    columns: Raw = Raw()
    index: list[Any] | None = None


class FastReader:
    """Reads what is as it should be."""

    def __init__(self, formats: Mapping[str, Format], params: ParamReader) -> None:
        """`formats`: those that have decoders, by their keys in MLflow's protocol."""
        fields: list[Any] = [(name, told | UnsetType, UNSET) for name, (told, _) in formats.items()]
        fields += [(name, Raw, UNSET) for name in (*FORMATS, *CHAT) if name not in formats]
        self._decode = Decoder(msgspec.defstruct("Body", [*fields, ("params", Raw, Raw())], gc=False)).decode
        self._given = attrgetter(*(name for name, *_ in fields))
        self._others = len(fields) - 1
        self._readers = [read for _, read in formats.values()]
        self._params = params

    def json(self, body: bytes) -> Rows | None:
        """None where the request has to be read value by value."""
        try:
            if not body.isascii():
                body.decode()  # decoders do not look into the texts that they skip
            told: Any = self._decode(body)
            arrays = self._arrays(self._given(told))
        except NOT_READ:
            return None
        if not arrays:
            return None
        params = bytes(told.params)
        return Rows(arrays, len(next(iter(arrays.values()))), self._params.read(loaded(params)) if params else None)

    def _arrays(self, given: tuple[Any, ...]) -> Arrays | None:
        if given.count(UNSET) == self._others:
            for read, told in zip(self._readers, given, strict=False):
                if told is not UNSET:
                    return read(told)
        return None
