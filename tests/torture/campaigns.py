"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.torture.campaign import Campaign
from tests.torture.crash import CrashCampaign

CAMPAIGNS: list[Campaign] = [CrashCampaign()]
