"""An evaluation as one HTML file that needs nothing else: ``write_report(path, evaluation)``, or several sets."""

from genflow.lazy import lazy_exports

_WHERE = {"write_comparison_report": "comparison", "write_report": "page"}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
