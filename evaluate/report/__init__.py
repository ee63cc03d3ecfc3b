"""An evaluation as one HTML file that needs nothing else: ``write_report(path, evaluation)``."""

from genflow.lazy import lazy_exports

_WHERE = {"write_report": "page"}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
