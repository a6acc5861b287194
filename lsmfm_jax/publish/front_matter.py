"""The lines at the top of a model card that the Hugging Face hub reads: licence, task, tags and figures, as YAML."""

import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from lsmfm_jax.publish.stated import Stated

LIBRARY = "lsmfm_jax"
# The hub's names of what a model does with an image (its list of tasks).
PIPELINE_TAGS = {
    "segment": "image-segmentation",
    "classify": "image-classification",
    "deblur": "image-to-image",
    "inpaint": "image-to-image",
    "pretrain": "image-feature-extraction",
}
TAGS = {
    "segment": "segmentation",
    "classify": "classification",
    "deblur": "deblurring",
    "inpaint": "inpainting",
    "pretrain": "self-supervised-learning",
    "backbone": "backbone",
}
# What the hub calls by its own name; any other licence is `other` there, with a name and a link.
_HUB_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gpl-2.0 gpl-3.0 isc lgpl-2.1
lgpl-3.0 lppl-1.3c mit mpl-2.0 ms-pl ncsa ofl-1.1 osl-3.0 postgresql unlicense wtfpl zlib
"""


def front_matter(
    *, name: str, task: str, architecture: str, figures: Mapping[str, Any], data: str, stated: Stated, mark: str
) -> str:
    """YAML between two lines of dashes, which must be the first thing in the file.

    Args:
        name: of the model.
        task: of the run, such as `segment`.
        architecture: name of the backbone.
        figures: of the validation, by name; what is a loss or no finite number is left out.
        data: name of what the figures are of.
        stated: licence of the weights.
        mark: a comment by which the card's maker knows it again.
    """
    tag = PIPELINE_TAGS.get(task)
    metrics = {
        key: float(value)
        for key, value in figures.items()
        if "loss" not in key and isinstance(value, int | float) and math.isfinite(value)
    }
    tags = ["microscopy", "light-sheet", "3d", "biology", *([TAGS[task]] if task in TAGS else []), architecture]
    facts: dict[str, Any] = {
        **_license(stated.license),
        "library_name": LIBRARY,
        **({"pipeline_tag": tag} if tag else {}),
        "tags": [one.replace("_", "-") for one in tags],
    }
    if metrics and tag:
        facts["metrics"] = list(metrics)
        facts["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": tag},
                        # A set of the hub is meant by the type; these are patches of the owner.
                        "dataset": {"name": f"{data}, validation patches", "type": "custom"},
                        "metrics": [{"type": key, "name": key, "value": value} for key, value in metrics.items()],
                    }
                ],
            }
        ]
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=2**16)
    return f"---\n# {mark}\n{text}---\n"


def _license(identifier: str) -> dict[str, str]:
    """The hub writes identifiers small, and knows the GNU licences without `-only` and `-or-later`."""
    if not identifier:
        return {}
    known = re.sub(r"-(only|or-later)$", "", identifier.lower())
    if known in _HUB_LICENSES.split():
        return {"license": known}
    link = f"https://spdx.org/licenses/{identifier}.html"
    return {"license": "other", "license_name": identifier.lower(), "license_link": link}
