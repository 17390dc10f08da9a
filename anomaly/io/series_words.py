"""What the words of a series description or file name say about an image.

A word counts only as a whole: ``rest`` is not found in ``restore``, nor ``map`` in ``bitmap``. Words that are
written together (``AXFLAIR``, ``T1post``, ``sagGD``) are taken apart where every part is a known word.

Names follow the vendors' protocol trees (Siemens, GE, Philips, Canon), the public studies (ADNI, HCP, PPMI, UK
Biobank, BraTS) and BIDS.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from anomaly.core.volume import Modality

LOCALIZER = "a localizer"
SCREEN_CAPTURE = "a screen capture or report"
SPECTROSCOPY = "a spectroscopy"
PROJECTION = "an intensity projection (MIP)"
SUBTRACTION = "a subtraction"
ELASTOGRAPHY = "an elastography"
ADC = "an ADC map"
DIFFUSION = "a diffusion image"
PERFUSION = "a perfusion image"
ASL = "an arterial spin labelling image"
SWI = "a susceptibility image"
ANGIOGRAPHY = "an angiography"
BOLD = "a BOLD image"
EPI = "an echo-planar image"
T2STAR = "a T2*-weighted image"
PROTON_DENSITY = "a proton-density or dual-echo image"
T1_MAP = "a T1 map"
T2_MAP = "a T2 map"
QUANTITATIVE = "a quantitative map"
FIELD_MAP = "a field map"
CALIBRATION = "a calibration scan"
PHASE = "a phase image"
REAL_OR_IMAGINARY = "a real or imaginary image"
MAGNITUDE = "a magnitude image of another sequence"
INVERSION = "an inversion image of MP2RAGE"
UNIT1 = "a UNIT1 image of MP2RAGE"
MAGNETIZATION_TRANSFER = "a magnetization transfer image"
DOUBLE_INVERSION = "a double inversion recovery image"
STIR = "a STIR image"
OTHER_INVERSION = "a phase-sensitive or fluid-and-white-matter-nulled inversion recovery image"
STEADY_STATE = "a balanced steady-state image"
DIXON = "a fat or opposed-phase image"
CEST = "a CEST image"
ULTRASHORT = "an ultrashort echo time image"
SYNTHETIC = "a synthetic image"
NUCLEAR = "a PET or SPECT image"
SEGMENTATION = "a segmentation"
PARAMETRIC_MAP = "a derived map"

T1_FLAIR_NOTE = "a T1-weighted inversion recovery (T1 FLAIR)"
REFORMAT_NOTE = "a reformat of the acquired images"
MP2RAGE_NOTE = "an MP2RAGE image, of which a scan has several"

_KINDS: tuple[tuple[str, str], ...] = (
    (LOCALIZER, "localizer|localiser|loc|locs|scout|survey|topogram|scanogram|scano|surview|smartbrain"),
    (SCREEN_CAPTURE, "screen|screensave|screenshot|capture|report|phoenixzipreport|key ?images\\w*|processed images"
                     "|dynasuite|dynacad|results|summary|kos|physiolog"),
    (SPECTROSCOPY, "svs|csi|mrs|mrsi|spectroscopy|spectroscopic|spectro|spectra|press|probe|mega ?press"),
    (PROJECTION, "t?mips?|minip|mnip|maxip|min ip|max ip|(?:maximum|minimum) intensity|projections?"
                 "|volume rendering|vrt"),
    (SUBTRACTION, "subs?(?! \\d{2})|subtr|subtract|subtracted|subtractions?"),
    (ELASTOGRAPHY, "mre|elastography|elasto|stiffness|wave images?"),
    (ADC, "[ed]?adc|isoadc|expadc|apparent diffusion|average dc"),
    (FIELD_MAP, "field ?maps?|field ?mapping|fmap|b0 ?maps?|b1 ?maps?|b0rf|[tr]b1\\w*|b1(?! corr)|phasediff|shim"
                "|topup"),
    (DIFFUSION, "[ed]?dwi|isodwi|dwibs|dw|dti|dki|diff|diffusion|diffuse|tracew?|b ?\\d{3,4}t?|b0|\\d{3,4}b|noddi"
                "|hardi|tensor|tractography|dmri|ivim|fractional anisotropy|fa maps?|colfa|colou?r ?fa"),
    (ASL, "asl|pasl|casl|pcasl|m0|m0scan|spin labell?ing"),
    (PERFUSION, "(?<!pre )(?<!post )(?<!before )(?<!after )(?:perf|perfusion)|pwi|dsc|dce|(?:r|rel|relc)?cb[fv]"
                "|cbvcorr|(?:rel)?mtt|ttp|tmax|[pg]bp|cerebral blood|mean transit time|ktrans|twist"
                "|tricks|dynamics?|dyn"),
    (SWI, "swip?|swan|s?ven ?bold|veno ?bold|susceptibility|qsm|fsbb"),
    (ANGIOGRAPHY, "tof|mra|mrv|angio|angiography|angiogram|venography|venogram|phase contrast|pca|3d pc|pcvipr|s3di"
                  "|inhance|velocity|venc"),
    (BOLD, "bold|[rt]?fmri|rsfmri|fcmri|rsmri|resting|rest|func|sbref"),
    (EPI, "epi|ep2d|ep3d"),
    (T1_MAP, "t1 (?:maps?|mapping|images)|molli|r1 ?maps?"),
    (T2_MAP, "(?:t2|t2star) (?:maps?|mapping|images)|r2 ?maps?"),
    (QUANTITATIVE, "t1rho|r2star|relaxometry|mapit|despot|mpm|vfa|quantitative|fat fraction"),
    (T2STAR, "t2star|t2 (?:.* )?star|hemo|haemo|hemoflash|medic|merge"
             "|t2 (?:.* )?(?:gre|fgre|ffe|fl2d|fl3d|flash|gradient)|(?:gre|ffe|flash) t2"),
    (CALIBRATION, "calibration|cal|calib|prescan|ref scan|coil sensitivity|bias \\d+ch"),
    (PHASE, "(?<!in )(?<!out )(?<!of )(?<!opp )(?<!opposed )(?<!arterial )(?<!venous )(?<!delayed )(?<!single )"
            "(?<!late )(?<!early )(?<!portal )(?<!dynamic )(?<!multi )"
            "phase(?! (?:enc|encoding|direction|dir|ap|pa|rl|lr|[aprlhfis]|fov|oversampling)(?!\\S))|pha"
            "|unwrapped"),
    (REAL_OR_IMAGINARY, "real images?|imaginary"),
    (INVERSION, "inv ?[12]"),
    (UNIT1, "unit1|uniden|uni (?:den|images)|mp2rage (?:.* )?uni"),
    (MAGNETIZATION_TRANSFER, "mtw?|mtc|mton|mtoff|mtr|mtsat|mti|mto|magneti[sz]ation transfer|neuromelanin"),
    (DOUBLE_INVERSION, "(?<!\\d )dir(?! (?:ap|pa|lr|rl|\\d+)(?!\\S))|double inversion"),
    (STIR, "stir"),
    (OTHER_INVERSION, "psir|phase sensitive|fgatir|wair"),
    (STEADY_STATE, "ciss|fiesta|trufi|true ?fisp|bssfp|bffe|cosmic"),
    (DIXON, "fat (?:only|images?)|out ?phase|out of phase|opp ?phase|opposed ?phase"
            "|m?dixon (?:.* )?(?:f|fat|op|opp|ff|quant)"),
    (CEST, "cest|aptw?"),
    (ULTRASHORT, "ute|zte|petra"),
    (SYNTHETIC, "synthetic|magic|symri|mdme|synthsr"),
    (NUCLEAR, "umap|mrac"),
    (SEGMENTATION, "seg|dseg|probseg|aseg|aparc|segmentation|masks?|labels?|rois?|parcellation|contours?"),
    (PARAMETRIC_MAP, "maps?|mapping|parametric|[zt]map|rgb"),
)  # fmt: skip
_WEAK_KINDS: tuple[tuple[str, str], ...] = (
    (PROTON_DENSITY, "pd|pdt2|proton density|(?:dual|double) ?(?:tse|fse|echo)|de tse|t2 de|2 echos?"),
    (MAGNITUDE, "mag(?! prep)|magnitude(?! prep)"),
    (NUCLEAR, "pet|spect"),
)  # fmt: skip
"""Kinds that do not count beside a word for T1 or FLAIR: PD is also Parkinson's disease, and PET a scanner."""

_T1 = "t1|mprage|memprage|mp ?rage|mpra|mp2rage|bravo|f?spgr|irfspgr|tfl|tfl3d|tfe|vibe|lava|thrive|turboflash"
_T2 = "t2|frfse"
_FLAIR = "flair|dark ?fluid|da fl|tirm|fluid attenuated"
_CT = "ct|ncct|nect"
_SPIN_ECHO_INVERSION = "tirm?|ir"
_GRADIENT_ECHO = "mprage|memprage|mp ?rage|bravo|f?spgr|irfspgr|tfl|tfl3d|tfe"
_REFORMAT = (
    "reformat|reformatted|rformat|rfmt|recons?|mpr range|mpr ob|multiplanar|(?:flair|mprage|spgr|bravo) (?:.* )?mpr"
)

_AGENTS = (
    "gd|gad|gado|gadolinium|gadovist|gadavist|dotarem|magnevist|multihance|prohance|omniscan|clariscan|gbca|ce"
    "|contrast|enhanced|postcontrast|km|kontrastmittel|mdc|inj|injection|post"
)
_WITHOUT = "pre|no|non|not|without|wo|sans|ohne|sin|senza|before|vor|avant|nativ|native"
_NO_AGENT = (
    f"(?:{_WITHOUT}) (?:iv )?(?:{_AGENTS})|post (?:op|operative|surgery|surgical|treatment|rt|ictal|label|labeling)"
)

_NEUTRAL = (
    "ax axial oax tra trans transverse transversal sag sagittal osag cor coronal ocor 2d 3d iso isotropic"
    " brain head neuro scan image images anat anatomical structural nii nifti orig original raw preproc"
    " restore restored norm normalized normalised corrected biascorr defaced deface bet stripped skullstripped"
    " hires highres se tse fse gre fgre flash ffe fl2d fl3d spc space cube vista brainview blade propeller mpr"
    " repeat rpt repe adni grappa sense ipat fs fatsat fat water dixon weighted star pre post gd spin echo"
    " field map phase double dual postop ir mp volume vol longtr nav acq run high res aa aah aahead"
)
_SHORT_PARTS = {"t1", "t2", "pd", "2d", "3d", "ax", "gd", "b1", "ir", "aa"}
"""Words of two letters that may be part of a longer one."""


@dataclass(frozen=True)
class ImageKind:
    """What a text says about an image.

    Parameters
    ----------
    modality
        T1w, T2w, FLAIR or CT; UNKNOWN if the text does not say, or says that it is another kind.
    other
        The kind of image that it is instead, such as ``"an ADC map"``; ``""`` unless the text says so.
    has_agent
        Whether a contrast agent was given.
    notes
        What a reader of the result should know about the image.
    """

    modality: Modality = Modality.UNKNOWN
    other: str = ""
    has_agent: bool = False
    notes: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether the text says which kind of image it is."""
        return self.modality is not Modality.UNKNOWN or bool(self.other)


@lru_cache(maxsize=4096)
def read_words(text: str) -> ImageKind:
    """Return what a series description, protocol name or free file name says.

    T1 FLAIR (T1 dark-fluid, T1 TIRM) is T1w with a note: white matter is brighter than grey matter and CSF is dark,
    as in T1w, and nothing of the T2 weighting of FLAIR remains. It is refused where FLAIR is expected.
    """
    words = normalise(text)
    has_agent = _has(_AGENTS, _pattern(_NO_AGENT).sub("", words))
    notes = tuple(_notes(words))
    other = _other_kind(words)
    if other:
        return ImageKind(other=other, has_agent=has_agent, notes=notes)
    return ImageKind(_modality(words), has_agent=has_agent, notes=notes)


def normalise(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces.

    ``T1-w``, ``T1WI`` and ``T1 weighted`` become ``t1``, ``T2*`` becomes ``t2star``, ``+C`` becomes ``gd``.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"(?i)(?<=[tr]2)[\s_-]*\*", "star ", plain)
    plain = re.sub(r"(?i)\+\s?[cg](?![a-z])|(?<![a-z])c\+", " gd ", plain)
    plain = re.sub(r"(?i)\bw/(?:w?o)\b", " without ", plain)
    words = " ".join(part for token in re.findall(r"[A-Za-z0-9]+", plain) for part in _parts(token))
    words = re.sub(r"\bt ([12])\b", r"t\1", words)
    words = re.sub(r"\b(t1|t2|pd) (?:w|wi|weighted)\b", r"\1", words)
    words = re.sub(r"\bt2 star\b", "t2star", words)
    return re.sub(r"(?<=\w) (?:in|to|into|onto|2) (?:t1|t2|flair|mni|mprage)(?: space)?\b", "", words)


def is_generic(text: str) -> bool:
    """Return whether a text names only a kind of image, and so nobody: ``T1_brain``, ``mprage``, ``scan``."""
    words = normalise(text).split()
    return bool(words) and all(_is_known(word) or word.isdigit() for word in words)


def _other_kind(words: str) -> str:
    kind = next((kind for kind, pattern in _KINDS if _has(pattern, words)), "")
    if kind or _has(f"{_T1}|{_FLAIR}", words):
        return kind
    return next((kind for kind, pattern in _WEAK_KINDS if _has(pattern, words)), "")


def _modality(words: str) -> Modality:
    t1, t2, flair = _has(_T1, words), _has(_T2, words), _has(_FLAIR, words)
    if t1 and t2:
        return Modality.UNKNOWN
    if t1:
        return Modality.T1W
    if flair:
        return Modality.FLAIR
    if t2:
        return Modality.T2W
    return Modality.CT if _has(_CT, words) else Modality.UNKNOWN


def _notes(words: str) -> list[str]:
    notes = []
    if _has(_T1, words) and not _has(_GRADIENT_ECHO, words) and _has(f"{_FLAIR}|{_SPIN_ECHO_INVERSION}", words):
        notes.append(T1_FLAIR_NOTE)
    if _has("mp2rage", words):
        notes.append(MP2RAGE_NOTE)
    if _has(_REFORMAT, words):
        notes.append(REFORMAT_NOTE)
    return notes


def _has(pattern: str, words: str) -> bool:
    return _pattern(pattern).search(words) is not None


@lru_cache(maxsize=256)
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\S)(?:{pattern})(?!\S)")


def _parts(token: str) -> list[str]:
    """Return the known words that a token consists of, or the token itself."""
    lower = re.sub(r"^[secv](?=(?:t1|t2|pd)w)", "", token.lower())
    found = _split_number(lower) or _split(lower) or _split_camel_case(token)
    return list(found or (lower,))


def _split_number(word: str) -> tuple[str, ...]:
    """Return a known word and the number after it, as in ``rest1``; empty if it is no such word."""
    match = re.fullmatch(r"([a-z]{3,})(\d+)", word)
    return (match[1], match[2]) if match and _is_known(match[1]) else ()


def _split_camel_case(token: str) -> tuple[str, ...]:
    """Return the words of ``SpinEchoFieldMap``; empty unless one of them is known."""
    pieces = re.findall(r"[A-Z]?[a-z]+|[A-Z]*\d+[A-Z]*|[A-Z]+(?![a-z])", token)
    if len(pieces) < 2 or "".join(pieces) != token:
        return ()
    split = [_split(piece.lower()) for piece in pieces]
    if not any(split):
        return ()
    return tuple(word for piece, words in zip(pieces, split, strict=True) for word in words or (piece.lower(),))


@lru_cache(maxsize=4096)
def _split(word: str) -> tuple[str, ...]:
    """Return a word as the fewest known words that it consists of; empty if it does not."""
    if word in _ABBREVIATIONS:
        return _ABBREVIATIONS[word]
    if _is_known(word):
        return (word,)
    for end in range(len(word) - 2, 1, -1):
        head = word[:end]
        if _is_part(head) and (tail := _split(word[end:])) and all(map(_is_part, tail)):
            return (*_split(head), *tail)
    return ()


_ABBREVIATIONS = {
    "t1w": ("t1",), "t1wi": ("t1",), "t1n": ("t1",), "t1c": ("t1", "gd"), "t1ce": ("t1", "gd"),
    "t2w": ("t2",), "t2wi": ("t2",), "t2f": ("t2", "flair"), "pdw": ("pd",), "t2starw": ("t2star",),
    "t2s": ("t2star",),
}  # fmt: skip


def _is_known(word: str) -> bool:
    return word in _ABBREVIATIONS or re.fullmatch(_KNOWN, word) is not None


def _is_part(word: str) -> bool:
    return (len(word) > 2 or word in _SHORT_PARTS) and _is_known(word)


_KNOWN = "|".join(
    (*(kind[1] for kind in (*_KINDS, *_WEAK_KINDS)), _T1, _T2, _FLAIR, _CT, _REFORMAT, _AGENTS, *_NEUTRAL.split())
)
