"""What the paper prints in its Tables 1 and 2, to stand beside our figures where the metric is the same.

Scheinfeld et al. 2026 (arXiv:2605.26026). Table 1 has "total Dice" and "instance Dice", which are called
`total_dice_paper` and `count_dice_paper` here, for what they are: an empty mask has a total Dice of about one half, and
the other compares numbers of components. Table 2 has accuracy, macro F1 and SSIM; PSNR is not printed.
"""

_TYPES = ("Amyloid Plaque", "Cell Nucleus", "Vessels")
FEW, MANY = 0, 1
# Of each type few-shot total and instance Dice, then many-shot. The rows that have a counterpart here.
_TABLE_1 = {
    "Scr Swin": (0.50, 0.09, 0.67, 0.45, 0.78, 0.95, 0.81, 0.97, 0.86, 0.79, 0.88, 0.76),
    "Scr UNet": (0.50, 0.11, 0.72, 0.58, 0.75, 0.86, 0.80, 0.88, 0.83, 0.86, 0.89, 0.68),
    "Img Swin": (0.58, 0.21, 0.79, 0.73, 0.76, 0.94, 0.80, 0.94, 0.87, 0.82, 0.89, 0.81),
    "Img UNet": (0.50, 0.03, 0.50, 0.00, 0.80, 0.87, 0.82, 0.96, 0.61, 0.56, 0.89, 0.84),
    "Img+T Swin": (0.48, 0.01, 0.76, 0.72, 0.80, 0.93, 0.80, 0.99, 0.87, 0.75, 0.92, 0.87),
    "Img+T Swin (over)": (0.61, 0.47, 0.79, 0.83, 0.79, 0.96, 0.81, 0.98, 0.89, 0.84, 0.92, 0.88),
    "Img+T UNet": (0.68, 0.58, 0.80, 0.69, 0.78, 0.91, 0.81, 0.94, 0.86, 0.76, 0.92, 0.81),
}
# Few accuracy and macro F1, many accuracy and macro F1; then of each type SSIM, few and many.
_TABLE_2 = {
    "PCA": (0.33, 0.28, 0.47, 0.40),
    "ResNet": (0.36, 0.27, 0.49, 0.43),
    "Scr Swin": (0.40, 0.33, 0.47, 0.44, 0.61, 0.66, 0.79, 0.85, 0.80, 0.90),
    "Scr UNet": (0.49, 0.46, 0.61, 0.57, 0.63, 0.67, 0.81, 0.87, 0.88, 0.90),
    "Img Swin": (0.51, 0.46, 0.53, 0.48, 0.57, 0.65, 0.81, 0.86, 0.73, 0.69),
    "Img UNet": (0.71, 0.69, 0.62, 0.58, 0.64, 0.69, 0.86, 0.89, 0.89, 0.92),
    "Img+T Swin": (0.40, 0.35, 0.65, 0.61, 0.58, 0.64, 0.79, 0.85, 0.85, 0.90),
    "Img+T UNet": (0.61, 0.57, 0.74, 0.69, 0.65, 0.69, 0.80, 0.89, 0.78, 0.90),
}


def printed(task: str, metric: str, *, arm: str, of_type: str, shots: int) -> float | None:
    """The paper's figure, or None where it prints none of this kind.

    Args:
        task: segment, classify or deblur.
        metric: by our name.
        arm: as the paper calls it, such as "Scr UNet".
        of_type: as the paper calls it; of no meaning for classification.
        shots: `FEW` or `MANY`.
    """
    table, columns = (_TABLE_1, _TYPES) if task == "segment" else (_TABLE_2, _TYPES)
    row = table.get(arm, ())
    if task == "classify":
        names = ("accuracy", "macro_f1")
        place = 2 * shots + names.index(metric) if metric in names else len(row)
    elif of_type not in columns:
        return None
    elif task == "segment":
        names = ("total_dice_paper", "count_dice_paper")
        place = 4 * columns.index(of_type) + 2 * shots + names.index(metric) if metric in names else len(row)
    else:
        place = 4 + 2 * columns.index(of_type) + shots if metric == "ssim" else len(row)
    return row[place] if place < len(row) else None
