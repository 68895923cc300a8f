"""The campaigns that there are, in the order of the table."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.campaign import Fuzz
from tests.torture.campaign import Campaign, Tally, run
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
NAMES = [campaign.name for campaign in CAMPAIGNS]


def run_by_name(name: str, seed: int, share: float, case: str, progress: Callable[[Tally], None] = lambda _: None) -> Tally:
    """Run a share of a campaign at full length, or one case of it."""
    campaign = CAMPAIGNS[NAMES.index(name)]
    return run(campaign, seed, max(1, round(campaign.full * share)), only=case, progress=progress)
