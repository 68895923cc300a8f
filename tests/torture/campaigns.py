"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.torture.campaign import Campaign
from tests.torture.crash import CrashCampaign, KillAndCrashCampaign
from tests.torture.crash_live import LiveCrashCampaign

CAMPAIGNS: list[Campaign] = [CrashCampaign(), KillAndCrashCampaign(), LiveCrashCampaign()]
