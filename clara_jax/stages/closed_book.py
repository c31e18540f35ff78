"""A baseline without documents."""

from clara_jax.data import ExampleMaker, Record
from clara_jax.stages.text import FullText


class ClosedBook(FullText):
    """Train a generator of its own without documents: what is known by heart."""

    name = "closed_book"
    baselines = {"tuned_closed_book": "none"}  # noqa: RUF012

    def texts(self, make: ExampleMaker, record: Record) -> tuple[str, ...]:
        """Return no documents."""
        return ()
