"""Classify an image: its contrast, that it is known to be another kind of image, or that nothing says what it is.

File names and DICOM headers get the same kind of answer. What a description says in words counts more than what the
codes and times of the header suggest, except for codes that only one kind of image has (``ADC``, ``MIP``, ``P``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace

from pydicom import Dataset

from anomaly.core.errors import ScanRefusedError
from anomaly.core.volume import Modality
from anomaly.io import series_words as kinds
from anomaly.io.series_words import ImageKind, read_words
from anomaly.io.vocabulary import is_missing

CONTRAST_TAGS = (
    "Modality", "ImageType", "SeriesDescription", "ProtocolName", "ScanningSequence", "SequenceName",
    "AcquisitionContrast", "ContrastBolusAgent", "DiffusionBValue", "EchoTime", "RepetitionTime", "InversionTime",
    "FlipAngle",
)  # fmt: skip
"""DICOM attributes that decide the contrast."""

_KIND_BY_BIDS_SUFFIX: dict[str, str] = {
    suffix: kind
    for kind, suffixes in {
        kinds.BOLD: "bold cbv sbref norf",
        kinds.DIFFUSION: "dwi fa trace colfa s0map",
        kinds.ADC: "adc expadc",
        kinds.ASL: "asl m0scan aslcontext",
        kinds.SWI: "swi chimap",
        kinds.PROJECTION: "minip",
        kinds.ANGIOGRAPHY: "angio",
        kinds.T2STAR: "t2star t2starw megre",
        kinds.PROTON_DENSITY: "pd pdw pdt2 mese",
        kinds.T1_MAP: "t1map r1map irt1",
        kinds.T2_MAP: "t2map r2map t2starmap r2starmap",
        kinds.QUANTITATIVE: "t1rho mwfmap mtvmap pdmap pdt2map m0map mtrmap vfa mpm",
        kinds.MAGNETIZATION_TRANSFER: "mtw mtr mts mtsat",
        kinds.INVERSION: "mp2rage",
        kinds.UNIT1: "unit1",
        kinds.FIELD_MAP: "fieldmap phasediff phase1 phase2 magnitude1 magnitude2 epi b0map b1map tb1map rb1map"
                         " tb1dam tb1epi tb1afi tb1tfl tb1rfm tb1srge rb1cor",
        kinds.PHASE: "phase",
        kinds.MAGNITUDE: "magnitude",
        kinds.EPI: "inplanet1 inplanet2",
        kinds.SPECTROSCOPY: "svs mrsi mrsref unloc",
        kinds.NUCLEAR: "pet blood",
        kinds.SEGMENTATION: "dseg probseg mask",
    }.items()
    for suffix in suffixes.split()
}  # fmt: skip
_MODALITY_BY_BIDS_SUFFIX = {"t1w": Modality.T1W, "t2w": Modality.T2W, "flair": Modality.FLAIR, "ct": Modality.CT}
_ENTITY = re.compile(
    r"(?:^|(?<=_))(sub|ses|sample|task|acq|nuc|voi|ce|trc|rec|dir|run|mod|echo|flip|inv|mt|part|proc|hemi|space|split"
    r"|recording|chunk|seg|res|den|label|desc)-([^_]+)(?:_|$)"
)
_DERIVED_LABELS = {
    kinds.PROJECTION, kinds.SUBTRACTION, kinds.PHASE, kinds.REAL_OR_IMAGINARY, kinds.PARAMETRIC_MAP, kinds.T1_MAP,
    kinds.T2_MAP, kinds.QUANTITATIVE, kinds.SYNTHETIC, kinds.SEGMENTATION, kinds.ADC,
}  # fmt: skip
"""Kinds that a label such as ``acq-`` can name beside ``T1w``; other labels name the session or the task."""

_COHORT_PREFIX = re.compile(
    r"(?i)^(?:(?:sub|subj|subject)[\s_-]|(?:sub|subj|pd|ms|mt|map|dir|loc|cal|mag|fa|case|pat|patient)[\s_-]*\d+)"
)
"""An identifier in front of a free name; PD is also Parkinson's disease."""

_KIND_BY_IMAGE_TYPE: dict[str, str] = {
    value: kind
    for kind, values in {
        kinds.LOCALIZER: "LOCALIZER",
        kinds.SCREEN_CAPTURE: "SCREEN SAVE|SCREENSHOT|CSA REPORT|CSA BLACK IMAGE",
        kinds.PROJECTION: "MIP|MNIP|MINIP|MIN IP|MAX IP|PROJECTION IMAGE|MAXIMUM|MINIMUM|VOLUME RENDERING",
        kinds.SUBTRACTION: "SUB|SUBTRACT|SUBTRACTION",
        kinds.ADC: "ADC|EADC",
        kinds.DIFFUSION: "DIFFUSION|TRACEW|TRACE|FA|TENSOR|COLFA",
        kinds.PERFUSION: "PERFUSION|CBF|CBV|RCBF|RCBV|RELCBF|RELCBV|MTT|TTP|TMAX|PBP|GBP|KTRANS",
        kinds.ASL: "ASL",
        kinds.SWI: "SWI",
        kinds.ANGIOGRAPHY: "ANGIO|TOF|VELOCITY|VELOCITY MAP|FLOW|PCA",
        kinds.BOLD: "FMRI|BOLD",
        kinds.T1_MAP: "T1 MAP|T1MAP|R1 MAP",
        kinds.T2_MAP: "T2 MAP|T2MAP|T2 STAR MAP|T2* MAP|R2 MAP|R2 STAR MAP|R2* MAP",
        kinds.FIELD_MAP: "B0 MAP|B1 MAP|FIELD MAP|FIELDMAP",
        kinds.QUANTITATIVE: "QUANTITY|FAT FRACTION|FF",
        kinds.PHASE: "P|PHASE|PHASE MAP",
        kinds.REAL_OR_IMAGINARY: "R|REAL|I|IMAGINARY",
        kinds.UNIT1: "UNI",
        kinds.ELASTOGRAPHY: "MRE|STIFFNESS|WAVE",
        kinds.DIXON: "F|FAT|OP|OPP PHASE|OUT PHASE|OPPOSED PHASE",
    }.items()
    for value in values.split("|")
}  # fmt: skip
_KIND_BY_ACQUISITION_CONTRAST = {
    "DIFFUSION": kinds.DIFFUSION, "FLOW ENCODED": kinds.ANGIOGRAPHY, "PERFUSION": kinds.PERFUSION,
    "PROTON DENSITY": kinds.PROTON_DENSITY, "STIR": kinds.STIR, "T2 STAR": kinds.T2STAR, "TOF": kinds.ANGIOGRAPHY,
    "TAGGING": kinds.MAGNITUDE,
}  # fmt: skip
_MODALITY_BY_ACQUISITION_CONTRAST = {
    "T1": Modality.T1W, "T2": Modality.T2W, "FLUID ATTENUATED": Modality.FLAIR,
}  # fmt: skip
_KINDS_OF_CT = {
    kinds.LOCALIZER, kinds.SCREEN_CAPTURE, kinds.PROJECTION, kinds.SUBTRACTION, kinds.PERFUSION, kinds.SEGMENTATION,
}  # fmt: skip
_SEQUENCE_NAMES: tuple[tuple[str, ImageKind], ...] = (
    (r"ep_b\d", ImageKind(other=kinds.DIFFUSION)),
    (r"ep(fid|se|2d)", ImageKind(other=kinds.EPI)),
    (r"swi", ImageKind(other=kinds.SWI)),
    (r"fm2d", ImageKind(other=kinds.FIELD_MAP)),
    (r"svs|csi", ImageKind(other=kinds.SPECTROSCOPY)),
    (r"tfl3d", ImageKind(Modality.T1W)),
)
"""Siemens SequenceName, after ``*``, and what it says."""

LONG_ECHO_MS = 60
SHORT_ECHO_MS = 30
FLAIR_INVERSION_MS = 1500


def agent_note(modality: Modality) -> str:
    """Return the note on a contrast agent where it makes no modality of its own."""
    return f"a {modality.value} scan with contrast agent"


def wrong_kind_refusal(kind: ImageKind, source: str) -> ScanRefusedError | None:
    """Return the refusal of an image that is known to be of another kind; None for any other.

    Parameters
    ----------
    source
        What says so: ``"name"`` or ``"header"``.
    """
    if not kind.other:
        return None
    return ScanRefusedError("wrong_modality", f"{kind.other} by its {source}", "T1w, T2w, FLAIR or CT",
                            f"name the modality in a manifest.csv if the {source} misleads")  # fmt: skip


def classify_name(stem: str) -> ImageKind:
    """Classify an image by its file name without ending: by its BIDS suffix and entities, else by its words."""
    name = unicodedata.normalize("NFC", stem)
    suffix = name.rsplit("_", 1)[-1].lower()
    entities = dict(_ENTITY.findall(name))
    other = ImageKind(other=_KIND_BY_BIDS_SUFFIX.get(suffix, ""))
    if "sub" in entities and other.is_known:
        return other
    is_bids = "sub" in entities and suffix in _MODALITY_BY_BIDS_SUFFIX
    found = ImageKind(_MODALITY_BY_BIDS_SUFFIX[suffix]) if is_bids else _classify_free_name(name)
    return with_agent_modality(_with_entities(found, entities)) if found.is_known else other


def _with_entities(found: ImageKind, entities: Mapping[str, str]) -> ImageKind:
    """Return what a name says with what its BIDS entities add: part, inversion, echo, agent, derivation."""
    labels = [read_words(entities[key]) for key in ("acq", "rec", "desc") if key in entities]
    other = (
        found.other
        or _kind_by_entities(entities)
        or next((label.other for label in labels if label.other in _DERIVED_LABELS), "")
    )
    if other:
        return ImageKind(other=other)
    notes = [f"echo {entities['echo']} of several"] if "echo" in entities else []
    notes += [note for label in labels for note in label.notes if note != kinds.MP2RAGE_NOTE]
    has_agent = not is_missing(entities.get("ce", "")) or any(m.has_agent for m in (found, *labels))
    return replace(found, has_agent=has_agent, notes=(*found.notes, *notes))


def _kind_by_entities(entities: Mapping[str, str]) -> str:
    if "inv" in entities:
        return kinds.INVERSION
    if entities.get("mt", "off").lower() != "off":
        return kinds.MAGNETIZATION_TRANSFER
    return {"phase": kinds.PHASE, "real": kinds.REAL_OR_IMAGINARY, "imag": kinds.REAL_OR_IMAGINARY}.get(
        entities.get("part", ""), ""
    )


def _classify_free_name(name: str) -> ImageKind:
    free = _ENTITY.sub("_", name)
    without_identifier = read_words(_COHORT_PREFIX.sub("", free))
    return without_identifier if without_identifier.is_known else read_words(free)


def classify_header(ds: Dataset) -> ImageKind:
    """Classify an image by its DICOM header; a value that cannot be read counts as absent."""
    modality = _text(ds, "Modality")
    if modality == "CT":
        return _classify_ct(ds)
    if modality != "MR":
        return ImageKind()
    has_agent = _names_agent(_text(ds, "ContrastBolusAgent")) or "POST CONTRAST" in _image_type(ds)
    found = _classify_mr(ds)
    return with_agent_modality(replace(found, has_agent=found.has_agent or has_agent))


def with_agent_modality(kind: ImageKind) -> ImageKind:
    """Return T1w with contrast agent as a modality of its own; add a note to others."""
    if not kind.has_agent or kind.other or kind.modality is Modality.T1W_CE:
        return kind
    if kind.modality is Modality.T1W:
        return replace(kind, modality=Modality.T1W_CE)
    return replace(kind, notes=(*kind.notes, agent_note(kind.modality)))


def _classify_ct(ds: Dataset) -> ImageKind:
    words = read_words(_text(ds, "SeriesDescription"))
    other = _kind_by_image_type(ds) or words.other
    if other in _KINDS_OF_CT:
        return ImageKind(other=other)
    return with_agent_modality(ImageKind(Modality.CT, has_agent=_names_agent(_text(ds, "ContrastBolusAgent"))))


def _classify_mr(ds: Dataset) -> ImageKind:
    """Classify by the first of these that says something: codes, description, sequence, protocol, times."""
    description = _by_words(ds, "SeriesDescription")
    notes = (*description.notes, *_reformat_notes(ds, description))
    for found in (
        _by_codes(ds),
        description,
        _by_acquisition_contrast(ds),
        _by_sequence_name(ds),
        _by_words(ds, "ProtocolName"),
    ):
        if found.is_known:
            return replace(found, has_agent=found.has_agent or description.has_agent, notes=notes or found.notes)
    return replace(_by_timing(ds), has_agent=description.has_agent, notes=notes)


def _by_codes(ds: Dataset) -> ImageKind:
    is_diffusion = (_number(ds, "DiffusionBValue") or 0) > 0
    return ImageKind(other=_kind_by_image_type(ds) or (kinds.DIFFUSION if is_diffusion else ""))


def _by_words(ds: Dataset, keyword: str) -> ImageKind:
    """Return what a description says; the echo and inversion times decide where its words leave two kinds."""
    text = _text(ds, keyword)
    found = read_words(text)
    if found.modality is Modality.CT:  # an MR image that is planned or fused with a CT
        return replace(found, modality=Modality.UNKNOWN)
    echo, inversion = _number(ds, "EchoTime"), _number(ds, "InversionTime")
    if (
        found.other == kinds.PROTON_DENSITY
        and "t2" in kinds.normalise(text).split()
        and (echo or 0) >= LONG_ECHO_MS
    ):
        return replace(found, modality=Modality.T2W, other="")
    if found.modality is Modality.FLAIR and "t2" not in kinds.normalise(text).split():
        return _plain_flair(found, echo, inversion)
    return found


def _plain_flair(found: ImageKind, echo: float | None, inversion: float | None) -> ImageKind:
    """Return a FLAIR or TIRM as what its times make it: STIR nulls fat, T1 FLAIR has a short echo time."""
    if inversion is not None and 0 < inversion < 300:
        return replace(found, modality=Modality.UNKNOWN, other=kinds.STIR)
    if echo is not None and echo <= SHORT_ECHO_MS and (inversion is None or inversion < FLAIR_INVERSION_MS):
        return replace(found, modality=Modality.T1W, notes=(*found.notes, kinds.T1_FLAIR_NOTE))
    return found


def _by_acquisition_contrast(ds: Dataset) -> ImageKind:
    value = _text(ds, "AcquisitionContrast").upper().replace("_", " ")
    modality = _MODALITY_BY_ACQUISITION_CONTRAST.get(value, Modality.UNKNOWN)
    return ImageKind(modality, _KIND_BY_ACQUISITION_CONTRAST.get(value, ""))


def _by_sequence_name(ds: Dataset) -> ImageKind:
    name = _text(ds, "SequenceName").lower().lstrip("*")
    found = next((kind for pattern, kind in _SEQUENCE_NAMES if re.match(pattern, name)), ImageKind())
    if not found.is_known and "EP" in _values(ds, "ScanningSequence"):
        return ImageKind(other=kinds.EPI)
    return found


def _by_timing(ds: Dataset) -> ImageKind:
    echo, repetition = _number(ds, "EchoTime"), _number(ds, "RepetitionTime")
    inversion, sequence = _number(ds, "InversionTime"), _values(ds, "ScanningSequence")
    if echo is None or repetition is None:
        return ImageKind()
    if echo >= LONG_ECHO_MS and inversion is not None and inversion >= FLAIR_INVERSION_MS:
        return ImageKind(Modality.FLAIR)
    if echo >= LONG_ECHO_MS and repetition >= 2000:
        return ImageKind(Modality.T2W)
    if echo > SHORT_ECHO_MS:
        return ImageKind()
    if inversion is not None and 400 <= inversion <= 1400:
        return ImageKind(Modality.T1W)
    if "GR" in sequence and "IR" not in sequence:
        return _gradient_echo(echo, repetition, _number(ds, "FlipAngle"))
    if repetition <= 1000:
        return ImageKind(Modality.T1W)
    is_spin_echo = "SE" in sequence and "IR" not in sequence
    return ImageKind(other=kinds.PROTON_DENSITY) if is_spin_echo and repetition >= 2000 else ImageKind()


def _gradient_echo(echo: float, repetition: float, flip_angle: float | None) -> ImageKind:
    """Return a gradient echo as T1w, unless its echo is long (T2*) or its flip angle small (proton density)."""
    if echo >= 15 and repetition <= 1000:
        return ImageKind(other=kinds.T2STAR)
    has_small_angle = flip_angle is not None and flip_angle <= 8 and repetition >= 15
    is_t1w = echo <= 10 and repetition <= 1000 and not has_small_angle
    return ImageKind(Modality.T1W if is_t1w else Modality.UNKNOWN)


def _kind_by_image_type(ds: Dataset) -> str:
    return next((_KIND_BY_IMAGE_TYPE[value] for value in _image_type(ds) if value in _KIND_BY_IMAGE_TYPE), "")


def _image_type(ds: Dataset) -> list[str]:
    return [re.sub(r"[\s_]+", " ", value.upper()) for value in _values(ds, "ImageType")]


def _reformat_notes(ds: Dataset, description: ImageKind) -> list[str]:
    is_reformat = any(value in {"MPR", "REFORMATTED", "RESAMPLED"} for value in _image_type(ds))
    return [kinds.REFORMAT_NOTE] if is_reformat and kinds.REFORMAT_NOTE not in description.notes else []


def _names_agent(text: str) -> bool:
    return not is_missing(text) and text.strip().lower() not in {"no", "n", "without", "0", "ohne", "false"}


def _text(ds: Dataset, keyword: str) -> str:
    return " ".join(_values(ds, keyword))


def _values(ds: Dataset, keyword: str) -> list[str]:
    try:
        value = ds.get(keyword, None)
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError):  # a damaged value
        return []
    if value is None or value == "":
        return []
    several = not isinstance(value, str) and hasattr(value, "__len__")
    return [str(v).strip() for v in (value if several else [value])]


def _number(ds: Dataset, keyword: str) -> float | None:
    text = next(iter(_values(ds, keyword)), "")
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None
