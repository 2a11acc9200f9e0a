from hypothesis import given
from hypothesis import strategies as st

from plantseg_next.training.schedule import warmup_cosine


@given(steps=st.integers(1, 500), warmup=st.integers(0, 100))
def test_warmup_cosine_rises_then_falls_to_floor(steps, warmup):
    warmup = min(warmup, steps)
    rates = [warmup_cosine(s, steps=steps, warmup=warmup) for s in range(steps + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if steps > warmup:
        assert abs(rates[-1] - 0.01) < 1e-9
