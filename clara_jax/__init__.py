"""CLaRa in JAX: retrieval and generation in one continuous space."""

__version__ = "0.1.0"
