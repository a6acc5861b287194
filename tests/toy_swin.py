"""The architecture of a SwinUNETR that is as small as can be, as `run.json` has it."""

SWIN = {
    "name": "swin_unetr",
    "out_channels": 16,
    "feature_size": 12,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 1, 1],
    "window": 2,
    "merging": "corrected",
}
