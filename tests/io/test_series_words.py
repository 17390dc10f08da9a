"""Whole words of descriptions and names, and what they mean."""

from __future__ import annotations

import pytest

from anomaly.core.volume import Modality
from anomaly.io.series_words import T1_FLAIR_NOTE, is_generic, normalise, read_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("T1-w", "t1"),
        ("T1 weighted", "t1"),
        ("SAGITTAL T 1", "sagittal t1"),
        ("Ax T2* GRE", "ax t2star gre"),
        ("AXFLAIR", "ax flair"),
        ("t1_mprage_sagGD", "t1 mprage sag gd"),
        ("OAx T1+C", "oax t1 gd"),
        ("T1post", "t1 post"),
        ("rfMRI_REST1_AP", "rfmri rest 1 ap"),
        ("SpinEchoFieldMap", "spin echo fieldmap"),
        ("sT1W_3D_TFE", "t1 3d tfe"),
        ("hemimapping", "hemimapping"),
        ("T1 restore", "t1 restore"),
        ("ADC in T1 space", "adc"),
        ("Schädel T1", "schadel t1"),
        ("张伟_T1", "t1"),
    ],
)
def test_a_text_is_split_into_whole_words(text: str, words: str) -> None:
    assert normalise(text) == words


@pytest.mark.parametrize(
    "text", ["restore", "bitmap", "hemimapping", "subject", "localized", "perfect", "tofts", "masked", "Adcock"]
)
def test_a_word_inside_another_word_does_not_count(text: str) -> None:
    assert not read_words(text).is_known


def test_t1_flair_is_t1w_with_a_note() -> None:
    found = read_words("Sag T1 FLAIR")
    assert (found.modality, found.notes) == (Modality.T1W, (T1_FLAIR_NOTE,))


@pytest.mark.parametrize(
    ("text", "has_agent"),
    [("T1 post", True), ("T1 +C", True), ("T1 mit KM", True), ("T1 pre", False), ("T1 pre gad", False),
     ("T1 w/o contrast", False), ("T1 noncontrast", False), ("T1 post op", False), ("T1 nativ", False)],
)  # fmt: skip
def test_a_contrast_agent_counts_unless_it_is_denied(text: str, has_agent: bool) -> None:
    assert read_words(text).has_agent is has_agent


def test_a_generic_name_names_nobody() -> None:
    assert all(is_generic(name) for name in ("T1", "mprage_brain", "T2_FLAIR", "scan", "t1_tse_tra", "T1_2"))
    assert not any(is_generic(name) for name in ("Smith_T1", "a", "BraTS-0001-t1n", "", "subj01"))
