"""anomaly: learns what healthy tissue looks like in MRI and CT, and finds scans that look different.

    >>> import anomaly
    >>> result = anomaly.load_model("model/").score("scan.nii.gz")
    >>> result.score, result.p_value, result.flagged, result.regions

Importing this package imports nothing heavy: its functions are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly.core.scan_result import ScanResult
    from anomaly.inference.model import Model, load_model
    from anomaly.inference.template_scan import load_scan

__all__ = ["RESEARCH_USE_ONLY", "Model", "ScanResult", "__version__", "load_model", "load_scan"]

__version__ = "0.1.0"
RESEARCH_USE_ONLY = "Research use only. Not a medical device."

_MODULE_OF = {
    "Model": "anomaly.inference.model",
    "ScanResult": "anomaly.core.scan_result",
    "load_model": "anomaly.inference.model",
    "load_scan": "anomaly.inference.template_scan",
}


def __getattr__(name: str) -> Any:
    """Import a public function or class when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
