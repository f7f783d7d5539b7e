"""E-mail and IP addresses that lead to a person or a machine, and stand-ins that lead to nobody."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scratchlm.text.batch import Batch, Positions, Step, Verdicts

# Each pattern begins where a run of its characters begins, or a long run without an address would be tried from every
# place in it. Lengths are those of RFC 5321 (64 before the @) and RFC 1035 (63 a label).
_EMAIL = re.compile(r"(?<![\w.+%'-])\w[\w.+%'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,63}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII)
# Addresses in use on the internet begin with 2 or 3 (2000::/3, RFC 4291); `std::vector` and 10:30:45 do not.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]{2,34}(?![\w:])", re.ASCII | re.IGNORECASE)

_NOWHERE: Positions = np.empty(0, np.intp)


@dataclass(frozen=True)
class MaskPii(Step):
    """Puts stand-ins in the place of e-mail addresses and public IP addresses.

    Private, local and documentation ranges of IP addresses stay, and so do numbers with more or fewer than four parts.
    A version number of four parts cannot be told from an address.

    Attributes:
        email: Stands for every e-mail address; null leaves them. The default is reserved for examples (RFC 2606).
        ipv4: Stands for every public IPv4 address; null leaves them. The default is reserved for documentation (RFC
            5737).
        ipv6: The same for IPv6 (RFC 3849).

    Source:
        Penedo et al. 2024, The FineWeb Datasets, section 3 (which kinds are masked, and the stand-in for e-mail),
        https://arxiv.org/abs/2406.17557.
    """

    email: str | None = "email@example.com"
    ipv4: str | None = "192.0.2.1"
    ipv6: str | None = "2001:db8::1"

    def faults(self) -> Iterator[str]:
        """A chain of nothing, and a stand-in that would be masked itself."""
        if self.email is None and self.ipv4 is None and self.ipv6 is None:
            yield "it masks nothing. Give email, ipv4 or ipv6, or leave the step out."
        for name, stand_in in (("ipv4", self.ipv4), ("ipv6", self.ipv6)):
            if stand_in is not None and _is_public(stand_in):
                yield f"{name}={stand_in!r} is somebody's address. Give one that is kept for documentation."

    def __call__(self, batch: Batch) -> Verdicts:
        """The documents that had an address."""
        with_ipv4, with_ipv6 = _with_ip_addresses(batch)
        verdicts: Verdicts = {}
        for index, text in enumerate(batch.texts):
            masked = text
            if self.email is not None and "@" in text:
                masked = _EMAIL.sub(lambda match: str(self.email), masked)
            if self.ipv4 is not None and index in with_ipv4:
                masked = _IPV4.sub(lambda match: _masked(match[0], str(self.ipv4)), masked)
            if self.ipv6 is not None and index in with_ipv6:
                masked = _IPV6.sub(lambda match: _masked(match[0], str(self.ipv6)), masked)
            if masked != text:
                verdicts[index] = masked
        return verdicts


def _with_ip_addresses(batch: Batch) -> tuple[set[int], set[int]]:
    """The documents with dots so close as in an IPv4 address, and with colons so close as in an IPv6 address."""
    dots, colons = [_NOWHERE], [_NOWHERE]
    for start, data in batch.slices():
        is_digit = data - np.uint8(ord("0")) < 10  # what is below 0 wraps to the other end
        dots.append(start + 1 + np.flatnonzero((data[1:-1] == ord(".")) & is_digit[:-2] & is_digit[2:]))
        colons.append(start + np.flatnonzero(data == ord(":")))
    dot, colon = np.unique(np.concatenate(dots)), np.unique(np.concatenate(colons))
    third = dot[2:][dot[2:] - dot[:-2] <= 8]
    second = colon[1:][colon[1:] - colon[:-1] <= 5]
    return set(batch.documents_at([third])), set(batch.documents_at([second]))


def _masked(address: str, stand_in: str) -> str:
    return stand_in if _is_public(address) else address


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
