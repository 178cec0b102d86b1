"""Numbered records in a folder of any storage, each created once: who writes number n next is decided by the store.

That is a compare-and-set wherever a file can be created only if it is not there, which is all that a registry and a lock need.
"""

import secrets
from typing import Any

from pipeline import storage

DIGITS = 10


class Sequence:
    """The records under folder `url`: JSON files 0000000000.json, 0000000001.json, ..."""

    def __init__(self, url: str):
        self._url = storage.absolute(url)

    def _path(self, number: int) -> str:
        return storage.join(self._url, f"{number:0{DIGITS}}.json")

    def numbers(self) -> list[int]:
        """Return the numbers of the records that are there, in order."""
        return [int(name.removesuffix(".json")) for name in storage.names(self._url) if name.removesuffix(".json").isdigit()]

    def last(self) -> tuple[int, Any]:
        """Return the last record's number and content; (-1, None) without any."""
        numbers = self.numbers()
        return (numbers[-1], self.read(numbers[-1])) if numbers else (-1, None)

    def read(self, number: int) -> Any:
        """Return the content of a record."""
        return storage.read_json(self._path(number))["content"]

    def append(self, after: int, content: Any) -> bool:
        """Write record `after` + 1 if nobody else has; return whether it was written."""
        url, own = self._path(after + 1), secrets.token_hex(8)
        # Where the store's answer was lost, the request that is made again finds what the first one wrote.
        is_new = storage.create_bytes(url, storage.json_bytes({"id": own, "content": content}))
        return is_new or storage.read_json(url)["id"] == own

    def forget(self, before: int) -> None:
        """Remove the records before number `before`."""
        for number in self.numbers():
            if number < before:
                storage.remove(self._path(number))
