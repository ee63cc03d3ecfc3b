"""Where evaluation's images come from: folders, archives, arrays, data sets and pipelines, all with one face."""

from genflow.lazy import lazy_exports

_WHERE = {
    "DecodedBatch": "decoding",
    "ImageSource": "source",
    "Picture": "source",
    "PipelineSource": "pipeline",
    "Source": "source",
    "decode": "decoding",
    "holds_images": "opening",
    "is_statistics_file": "opening",
    "open_source": "opening",
}

__all__ = sorted(_WHERE)

__getattr__, __dir__ = lazy_exports(__name__, _WHERE)
