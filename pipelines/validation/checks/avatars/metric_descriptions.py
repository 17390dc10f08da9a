"""What the measures of the exams about looks say, for the page."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.validation.datasets.avatars.distribution import Look
from pipelines.validation.datasets.avatars.rendering import OUTSIDE

ALPHAS = ("0.01", "0.05", "0.1")
_FEATURES = {name: name.replace("_", " ") for name in Look._fields}

MEANINGS: Mapping[str, str] = {
    "looks.valid": "share of the pictures that are a look",
    "looks.sure": "share of the pictures in which the classifier is sure of every feature (0.9)",
    "looks.alike": "share of the pictures that are like the picture of the look that is read in them",
    "looks.error": "mean squared difference to the picture of the look that is read, pixels 0 to 1",
    "looks.chi_square_p": "rule 1: p-value of how often each value is drawn, all valid looks against the law",
    "looks.chi_square_p_of_50": "rule 1: p-value of how often each value is drawn, the first fifty valid looks",
    "looks.apart": "rule 1: total variation between drawn and law, of the feature that is farthest",
    **{
        f"looks.apart_{name}": f"rule 1: total variation between drawn and law, {text}"
        for name, text in _FEATURES.items()
    },
    "looks.impossible": "rule 1: values that the law excludes, per valid look",
    "looks.novel": "rule 2: share of the valid looks that none of the fifty has",
    "looks.novel_of_law": "rule 2: share of looks drawn from the law that none of the fifty has",
    "looks.unseen": "rule 2: share of the valid looks that the model has not learnt from",
    "looks.unseen_of_law": "rule 2: share of looks drawn from the law that the model has not learnt from",
    "looks.unseen_ratio": "rule 2: looks not learnt from, as a share of what the law itself gives",
    "looks.distinct": "rule 2: different looks as a share of the valid ones",
    "looks.distinct_ratio": "rule 2: different looks, as a share of what the law itself gives",
    "looks.differing": "rule 2: features in which two valid looks differ, of 5",
    "looks.differing_ratio": "rule 2: features in which two looks differ, as a share of what the law itself gives",
    "requests.as_asked": "share of the features that are as asked for",
    "requests.as_asked_lowest": "share as asked for, of the feature that succeeds least",
    "requests.as_asked_all": "share of the pictures all of whose features are as asked for",
    "requests.valid": "share of the pictures that are a look",
    **{
        f"requests.change_{name}": f"{text} changed: share of which that feature changes as asked and no other"
        for name, text in _FEATURES.items()
    },
    **{
        f"requests.others_stay_{name}": f"{text} changed: share of which no other feature changes"
        for name, text in _FEATURES.items()
    },
    "requests.change_lowest": "share of the changes that change that feature alone, of the worst feature",
    "requests.spill": "change where none was asked for, as a share of that where it was",
    "arithmetic.put_on": "sunglasses put on the code: share of which they are read",
    "arithmetic.put_on_others_kept": "sunglasses put on the code: share of which all other features stay",
    "arithmetic.taken_off": "sunglasses taken off the code: share of which none are read",
    "arithmetic.taken_off_others_kept": "sunglasses taken off the code: share of which all other features stay",
    "arithmetic.success": "sunglasses put on or taken off: share of which that happens and all else stays",
    "arithmetic.success_lowest": "sunglasses put on or taken off: that share, of the one that succeeds less",
    "arithmetic.half_way_valid": "share of the pictures half-way between two codes that are a look",
    "arithmetic.half_way_of_either": "share of their features that are those of the one or the other",
    "outliers.auroc": "AUROC of looks from outside the law against looks of the law",
    **{f"outliers.auroc_{kind.replace(' ', '_')}": f"AUROC of looks with {kind}" for kind in OUTSIDE},
    **{f"outliers.flagged_{a}": f"share of looks from outside that are flagged at α = {a}" for a in ALPHAS},
    **{f"outliers.false_flags_{a}": f"share of looks of the law that are flagged at α = {a}" for a in ALPHAS},
    "outliers.promises_kept": "share of the promised false-flag rates that are kept",
    "independence.together": "correlation of neighbouring pixels of test pictures",
    "independence.together_drawn": "correlation of neighbouring pixels of the pictures that are drawn",
    "independence.nats_of_law": "nats that a picture takes to tell, of the law",
    "independence.nats_of_model": "nats that a picture takes to tell, drawn pixel by pixel",
    "new_looks.new": "share of the new looks that are none of the fifty",
    "new_looks.different": "different looks as a share of the new ones",
    "new_looks.least_probable": "probability of the least probable new look",
}
