from itertools import pairwise

import pytest

from plantseg_next.errors import UsageError
from plantseg_next.memory.host_memory import batch_bytes, plan_host_memory, reading_bytes
from plantseg_next.settings import Settings

MB = 10**6
ASKED = Settings().with_settings(
    ["data.workers=4", "data.tile_px=256", "training.batch=32", "data.cache_mib=1024"]
)


def planned(limit_mb, settings=ASKED):
    return plan_host_memory(settings, limit_mb * MB, resting=1000 * MB, with_unlabeled=True)


def test_batch_bytes_are_those_of_images_and_masks():
    # 3 for the image, 1 for lesions, 1 for the leaf; weak view, strong view, valid mask.
    assert batch_bytes(ASKED, with_unlabeled=True) == 32 * 256**2 * (5 + 7)
    assert batch_bytes(ASKED, with_unlabeled=False) == 32 * 256**2 * 5


def test_host_memory_within_budget_changes_nothing():
    chosen, needs = planned(20_000)
    assert chosen == ASKED
    assert needs < 20_000 * MB


@pytest.mark.parametrize("limit_mb", [8000, 5000, 3500, 2500, 1500])
def test_host_memory_plan_fits_and_gives_the_rest_to_the_cache(limit_mb):
    chosen, needs = planned(limit_mb)
    data = chosen.data
    assert needs <= limit_mb * MB
    assert 32 <= data.cache_mib <= ASKED.data.cache_mib
    # One MiB more per process would exceed the budget.
    more = max(1, data.workers) * 1.25 * 2**20
    assert data.cache_mib == ASKED.data.cache_mib or needs + more > limit_mb * MB


def test_host_memory_plan_reduces_the_cache_first_and_workers_last():
    plans = [planned(limit)[0].data for limit in range(8000, 1200, -100)]
    order = [(d.workers, d.prefetch, d.cache_mib) for d in plans]
    for before, after in pairwise(order):
        assert after[0] <= before[0]
        if after[0] == before[0]:
            assert after[1] <= before[1]
            if after[1] == before[1]:
                assert after[2] <= before[2]
    assert order[0][0] == 4
    assert order[-1][0] == 0


def test_host_memory_too_small_is_refused_with_a_sufficient_budget():
    with pytest.raises(UsageError, match="does not fit into 1,000 MB") as refused:
        planned(1000)
    enough = int(
        refused.value.needed.removeprefix("at least ").split(" ")[0].replace(",", "")
    )
    chosen, needs = planned(enough)
    assert chosen.data.workers == 0
    assert needs <= enough * MB


def test_workers_share_the_memory_of_libraries():
    one, two = (reading_bytes(n, 2, 10 * MB) for n in (1, 2))
    assert two < 2 * one
