"""The shortest input that still breaks a property, found by leaving things out."""

from collections.abc import Callable


def minimise(data: bytes, fails: Callable[[bytes], bool], most_tries: int = 5000) -> bytes:
    """Remove pieces of `data`, large ones first, for as long as it fails."""
    tries = 0
    size = max(1, len(data) // 2)
    while True:
        at = 0
        shorter = False
        while at < len(data) and tries < most_tries:
            tries += 1
            candidate = data[:at] + data[at + size :]
            if fails(candidate):
                data, shorter = candidate, True
            else:
                at += size
        if tries >= most_tries or (size == 1 and not shorter):
            return data
        size = max(1, size // 2)
