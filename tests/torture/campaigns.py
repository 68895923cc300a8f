"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.torture.campaign import Campaign
from tests.torture.crash import CrashCampaign, KillAndCrashCampaign
from tests.torture.crash_live import LiveCrashCampaign
from tests.torture.outputs import Outputs
from tests.torture.scale import Scale

CAMPAIGNS: list[Campaign] = [CrashCampaign(), KillAndCrashCampaign(), LiveCrashCampaign(), Outputs(), Scale()]
