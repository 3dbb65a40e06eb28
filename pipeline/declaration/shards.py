"""Which images of a run a driver takes, where several work on it together."""

import hashlib
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Shard:
    """One of `total` shares of a run's images, counted from 1; 1 of 1 is the whole run."""

    number: int
    total: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise ValueError(
                f"there is no shard {self.number}/{self.total}: shards are numbered from 1/{self.total} on"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads I/N. Raises ValueError if the text is anything else."""
        number, separator, total = text.partition("/")
        if not (separator and number.isdecimal() and total.isdecimal()):
            raise ValueError(f"{text!r} is no shard: write I/N, as 1/8 for the first of eight")
        return cls(int(number), int(total))

    @property
    def is_whole(self) -> bool:
        return self.total == 1

    @property
    def option(self) -> str:
        """What to add to a command for this shard."""
        return "" if self.is_whole else f" --shard {self}"

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def has(self, image_id: str) -> bool:
        return shard_of(image_id, self.total) == self.number


WHOLE = Shard(1, 1)


def shard_of(image_id: str, shards: int) -> int:
    """The number, from 1 on, of the shard that an image is in: a function of its id and of how many shards there are.

    With one shard more, an image stays where it was or goes into the new one: a share of 1 / shards does. This is the
    jump consistent hash of Lamping and Veach (2014) of the first eight bytes, big-endian, of the BLAKE2b digest of the
    id in UTF-8.
    """
    state = int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "big")
    reached, jump = 0, 0
    while jump < shards:
        reached = jump
        state = (state * 2862933555777941757 + 1) % 2**64
        jump = (reached + 1) * 2**31 // ((state >> 33) + 1)
    return reached + 1
