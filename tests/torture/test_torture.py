"""A small part of each campaign, always the same one; ``make torture`` runs them at full length."""

from __future__ import annotations

import pytest

from tests.conftest import missing
from tests.torture.campaign import Campaign, run
from tests.torture.campaigns import CAMPAIGNS


@pytest.mark.parametrize("campaign", CAMPAIGNS, ids=lambda campaign: campaign.name)
def test_a_few_cases(campaign: Campaign) -> None:
    tally = run(campaign, 1, campaign.few)
    assert not tally.failures, "\n".join(f"{name}: {trace}" for name, trace in tally.failures)
    if tally.left_out:
        missing(tally.left_out)
    assert tally.tried >= campaign.few // 2, "too few cases"
