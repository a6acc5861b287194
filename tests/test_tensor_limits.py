"""The check on the size of maps: limits worked out by hand for the published networks."""

import pytest

from lsmfm_jax.models import build_backbone
from lsmfm_jax.models.tensor_limits import check_map_sizes, largest_map


def test_the_limit_of_the_unet_is_that_of_its_output():
    unet = build_backbone("unet", out_channels=128)
    path, elements = largest_map(unet, (64, 64, 64))
    assert path.startswith("up_0") and elements == 128 * 64**3
    check_map_sizes(unet, (64, 64, 64), batch=64)  # exactly 2**31
    check_map_sizes(unet, (64, 64, 64), batch=512, devices=8)
    with pytest.raises(ValueError, match=r"train\.batch_size: 65 .*up_0.* at most 64 patches .*accumulate_steps"):
        check_map_sizes(unet, (64, 64, 64), batch=65)
    with pytest.raises(ValueError, match="at most 18 patches"):
        check_map_sizes(unet, (96, 96, 96), batch=32)


def test_dense_features_of_the_swin_unetr_do_not_count_because_they_are_never_made():
    swin = build_backbone("swin_unetr", out_channels=512, feature_size=36)
    _, elements = largest_map(swin, (64, 64, 64))
    assert elements < 512 * 64**3
    check_map_sizes(swin, (64, 64, 64), batch=64)
