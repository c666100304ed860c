"""The models an engine serves, by the names it lists at `/v1/models`.

A name is a metric label and a key of limits only when the engine lists it: whatever else callers
send goes to the engine as it is, under the label `other`.
"""

from __future__ import annotations

from typing import Final

import msgspec

OTHER: Final = "other"
_MAX_MODELS: Final = 1000  # adapters can be many; labels must not


class _Model(msgspec.Struct):
    id: str
    parent: str | None = None


class _Listing(msgspec.Struct):
    data: list[_Model]


class Catalog:
    """Names to labels. An adapter's label carries its parent: `parent:adapter`."""

    __slots__ = ("_labels",)

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, name: str) -> str:
        """The bounded name of `name`."""
        return self._labels.get(name, OTHER)

    def labels(self) -> list[str]:
        """Of all that are served."""
        return list(self._labels.values())

    def load(self, listing: bytes) -> None:
        """Take what `/v1/models` answered; raises ValueError and keeps the old names when it is not that."""
        try:
            models = msgspec.json.decode(listing, type=_Listing).data
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"/v1/models: {error}") from None
        self._labels = {
            model.id: f"{model.parent}:{model.id}" if model.parent and model.parent != model.id else model.id
            for model in models[:_MAX_MODELS]
        }
