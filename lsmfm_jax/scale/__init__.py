"""Intensity scales: what becomes of raw counts before a network sees them, the same in training and prediction.

Brains differ in gain, background and staining, so raw counts mean something else in each. Four scales:

    percentile   two percentiles of the volume become 0 and 1 (paper, section 3.1)
    log_ratio    log2 of the ratio to the tissue's median level, from -1 (half of it) at 0 to 4 (16 times) at 1
    local        the same to the background around each voxel: a Gaussian mean of the tissue near it
    z_score      standard deviations from the tissue's mean, from -3 at 0 to 12 at 1

The last three look at the tissue alone. A patch can lie mostly outside of it, where a camera records a few hundred
counts: a median over all voxels would then be that of nothing. Tissue is told from the outside by Otsu's threshold on
the logarithm of a coarse map, if the two sides differ at least twofold; else all is tissue. No number in this rule
belongs to a microscope. Tissue thinner than a block of the map (half a sigma) is not seen, and blocks beside the
outside, which may hold a part of it, count only where they are as bright as the tissue around them. Voxels of exactly
0 hold nothing that was recorded (a padded or masked volume): `log_ratio` and `local` show them as background.

What these need of a volume comes from one pass over it, in `Survey`, of which a map of block means is kept. So a whole
brain is measured once, and each tile gets the values that its voxels have in the whole. The map has two blocks to a
sigma, but never more than 2^25 in all, so that measuring takes .8 GB of memory (`z_score` 1.5 GB) however large the
volume is: beyond 7 * 10^9 voxels (for a sigma of 12) blocks are larger, and the background is a little coarser.
"""

from lsmfm_jax.scale.levels import (
    DEVIATIONS,
    OCTAVES,
    RATIOS,
    SCALES,
    Levels,
    Scale,
    ScaleError,
    check_seen,
    levels_of,
    naming,
    scale_of,
)
from lsmfm_jax.scale.survey import Survey, measure, survey_bytes, tissue_blocks

__all__ = [
    "DEVIATIONS",
    "OCTAVES",
    "RATIOS",
    "SCALES",
    "Levels",
    "Scale",
    "ScaleError",
    "Survey",
    "check_seen",
    "levels_of",
    "measure",
    "naming",
    "scale_of",
    "survey_bytes",
    "tissue_blocks",
]
