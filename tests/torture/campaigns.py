"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.torture.campaign import Campaign
from tests.torture.errors import Errors
from tests.torture.kills import Kills
from tests.torture.limits import Limits

CAMPAIGNS: list[Campaign] = [Errors(), Limits(), Kills()]
