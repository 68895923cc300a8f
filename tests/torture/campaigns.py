"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.torture.campaign import Campaign
from tests.torture.outputs import Outputs
from tests.torture.scale import Scale

CAMPAIGNS: list[Campaign] = [Outputs(), Scale()]
