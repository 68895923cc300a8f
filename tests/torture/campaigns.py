"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from tests.fuzz.campaign import Fuzz
from tests.torture.campaign import Campaign
from tests.torture.cancel import Cancel
from tests.torture.crash import CrashCampaign, KillAndCrashCampaign
from tests.torture.crash_live import LiveCrashCampaign
from tests.torture.errors import Errors
from tests.torture.kills import Kills
from tests.torture.limits import Limits
from tests.torture.outputs import Outputs
from tests.torture.scale import Scale
from tests.torture.together import Together

CAMPAIGNS: list[Campaign] = [
    CrashCampaign(),
    KillAndCrashCampaign(),
    LiveCrashCampaign(),
    Errors(),
    Limits(),
    Kills(),
    Cancel(),
    Together(),
    Outputs(),
    Scale(),
    Fuzz(),
]
