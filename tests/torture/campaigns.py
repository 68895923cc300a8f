"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.fuzz.campaign import Fuzz
from tests.torture.campaign import Campaign

CAMPAIGNS: list[Campaign] = [Fuzz()]
