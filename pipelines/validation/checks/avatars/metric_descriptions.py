"""Descriptions of the measures of checks on avatars, for the report."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.validation.datasets.avatars.distribution import Attributes
from pipelines.validation.datasets.avatars.rendering import OOD_KINDS

ALPHAS = ("0.01", "0.05", "0.1")
_ATTRIBUTES = {name: name.replace("_", " ") for name in Attributes._fields}

_SAMPLES = {
    "valid": "share of the samples that are valid avatars",
    "confident_fraction": "share of the samples all of whose attributes the classifier reads with P ≥ 0.9",
    "similar_fraction": "share of the samples that resemble the drawing of the attributes read",
    "mse_to_drawing": "mean squared difference to the drawing of the attributes read, pixels 0 to 1",
    "chi_square_p": "rule 1: p-value of the frequencies of values, all valid samples against the distribution",
    "chi_square_p_of_50": "rule 1: p-value of the frequencies of values, the first fifty valid samples",
    "total_variation": "rule 1: total variation between samples and distribution, highest of the attributes",
    **{
        f"total_variation_{name}": f"rule 1: total variation between samples and distribution, {text}"
        for name, text in _ATTRIBUTES.items()
    },
    "impossible_values": "rule 1: values of probability 0, per valid sample",
    "novel": "rule 2: share of the valid samples that equal none of the fifty observed avatars",
    "novel_expected": "rule 2: that share, of avatars drawn from the distribution",
    "unseen": "rule 2: share of the valid samples that equal no training image",
    "unseen_expected": "rule 2: that share, of avatars drawn from the distribution",
    "unseen_ratio": "rule 2: share that equals no training image, relative to the distribution's",
    "distinct": "rule 2: distinct avatars as a share of the valid samples",
    "distinct_ratio": "rule 2: share of distinct avatars, relative to the distribution's",
    "attribute_difference": "rule 2: mean number of attributes in which two valid samples differ, of 5",
    "attribute_difference_ratio": "rule 2: that number, relative to the distribution's",
}
_CONDITIONAL = {
    "condition_accuracy": "share of the attributes that are as the condition says",
    "condition_accuracy_lowest": "that share, of the attribute for which it is lowest",
    "condition_accuracy_all": "share of the samples all of whose attributes are as the condition says",
    "valid": "share of the samples that are valid avatars",
    **{
        f"single_change_{name}": f"{text} changed: share in which it changes as the condition says, and no other"
        for name, text in _ATTRIBUTES.items()
    },
    **{
        f"others_unchanged_{name}": f"{text} changed: share in which no other attribute changes"
        for name, text in _ATTRIBUTES.items()
    },
    "single_change_lowest": "share in which the changed attribute alone changes, lowest of the attributes",
    "off_target_change": "change of pixels that should stay, relative to the change of those that should not",
}
_ARITHMETIC = {
    "added": "sunglasses added to the code: share in which the classifier reads them",
    "added_others_unchanged": "sunglasses added to the code: share in which all other attributes stay",
    "removed": "sunglasses removed from the code: share in which the classifier reads no accessory",
    "removed_others_unchanged": "sunglasses removed from the code: share in which all other attributes stay",
    "success": "sunglasses added or removed: share in which this happens and nothing else changes",
    "success_lowest": "that share, of the one of the two for which it is lower",
    "midpoint_valid": "share of the midpoints of two codes that are valid avatars",
    "midpoint_of_either": "share of their attributes that one of the two avatars has",
}
_DETECTION = {
    "auroc": "AUROC of out-of-distribution avatars against in-distribution ones",
    **{f"auroc_{kind.replace(' ', '_')}": f"AUROC of avatars with {kind}" for kind in OOD_KINDS},
    **{f"sensitivity_{a}": f"share of out-of-distribution avatars that are flagged at α = {a}" for a in ALPHAS},
    **{f"fpr_{a}": f"false-positive rate at α = {a}" for a in ALPHAS},
    "fpr_not_exceeded": "share of the target false-positive rates that are not exceeded (99 % band)",
}
_DEPENDENCE = {
    "neighbour_correlation": "correlation of neighbouring pixels, test images",
    "neighbour_correlation_generated": "correlation of neighbouring pixels, samples",
    "entropy_of_distribution": "entropy of the distribution of avatars, nats per image",
    "entropy_of_model": "entropy of independent pixels, nats per image",
}
_UNOBSERVED = {
    "unobserved_fraction": "share of the combinations that none of the fifty observed avatars has",
    "distinct_fraction": "share of the combinations that are distinct",
    "lowest_probability": "lowest probability of a combination",
}

DESCRIPTIONS: Mapping[str, str] = {
    f"{check}.{measure}": text
    for check, measures in {
        "avatar_samples": _SAMPLES,
        "avatar_conditional": _CONDITIONAL,
        "latent_arithmetic": _ARITHMETIC,
        "out_of_distribution": _DETECTION,
        "pixel_dependence": _DEPENDENCE,
        "unobserved_combinations": _UNOBSERVED,
    }.items()
    for measure, text in measures.items()
}
"""``CHECK.MEASURE`` → what it is."""
