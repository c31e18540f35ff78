"""Records as a TensorFlow Datasets folder of ArrayRecord files, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from clara_jax.data.records import RecordSource


class ClaraRecords(tfds.core.GeneratorBasedBuilder):
    """Records of the stage format, one dataset split per source.

    Args:
      splits: split name to records.
      data_dir: where the folder ``clara_records/VERSION`` is made.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Documents, questions, answers, positives."}  # noqa: RUF012

    def __init__(self, *, splits: Mapping[str, RecordSource], data_dir: str):
        self._records = splits
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> Any:
        texts = tfds.features.Sequence(tfds.features.Text())
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "docs": texts,
                    "question": texts,
                    "answers": texts,
                    "data_type": tfds.features.Text(),
                    "pos_index": tfds.features.Sequence(np.int32),
                    "gold_answer": texts,
                }
            ),
            description="Documents with questions about them, for CLaRa.",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {
            name: self._generate_examples(records)
            for name, records in self._records.items()
        }

    def _generate_examples(
        self, records: RecordSource
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(len(records)):
            record = records[i]
            yield (
                i,
                {
                    "docs": list(record.documents),
                    "question": list(record.questions),
                    "answers": list(record.answers),
                    "data_type": record.kind,
                    "pos_index": list(record.positives),
                    "gold_answer": list(record.gold),
                },
            )
