"""What a finetuned run says of itself beside thresholds."""

import pytest

from lsmfm_jax.predict.comparison import NETWORK, _verdict


def _found(own, other, *, interval=None, unseen=True):
    methods = {
        NETWORK: {"dice": own},
        "otsu": {"dice": 0.1, "run_is_ahead_by": own - 0.1, "interval_95": None},
        "threshold": {"dice": other, "run_is_ahead_by": own - other, "interval_95": interval},
    }
    return {"methods": methods, "unseen_volumes": unseen}


@pytest.mark.parametrize(("own", "other"), [(0.5, 0.5), (0.4, 0.75)])
def test_a_network_that_is_not_ahead_of_the_best_threshold_is_warned_of(own, other):
    verdict = _verdict(_found(own, other, interval=[0.1, 0.2]))
    assert verdict.startswith(f"WARNING: not better than threshold ({own:.3f} against {other:.3f})")
    assert "lsmfm baseline" in verdict and "harder" not in verdict


def test_ahead_is_said_to_be_sure_only_where_the_interval_is_above_0():
    assert "too few validation volumes to tell" in _verdict(_found(0.8, 0.5))
    assert "and would be on other volumes like these" in _verdict(_found(0.8, 0.5, interval=[0.01, 0.6]))
    assert "but other volumes may say the opposite" in _verdict(_found(0.8, 0.5, interval=[-0.01, 0.6]))


def test_validation_patches_of_trained_volumes_are_said_to_be_easier():
    assert "a new brain is harder" in _verdict(_found(0.8, 0.5, interval=[0.1, 0.5], unseen=False))
    assert "a new brain is harder" in _verdict(_found(0.4, 0.5, unseen=False))
