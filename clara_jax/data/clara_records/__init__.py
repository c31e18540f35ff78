"""The TFDS builder of CLaRa records, in a package of its own as TFDS wants it."""

from clara_jax.data.clara_records.builder import ClaraRecords

__all__ = ["ClaraRecords"]
