"""Examples of any stage, from a tokenizer and a few settings."""

from typing import Any

from clara_jax.config import DataConfig, MemoryConfig, RunConfig, SelectionConfig
from clara_jax.data import ExampleMaker
from clara_jax.data.collating import Layout
from clara_jax.stages import STAGES
from clara_jax.text import ClaraTokenizer


def run_config(
    stage: str,
    memory: MemoryConfig,
    data: DataConfig,
    top_k: int = 1,
    corpus: bool = False,
    seed: int = 0,
) -> RunConfig:
    return RunConfig(
        stage,
        "-",
        "-",
        seed=seed,
        memory=memory,
        data=data,
        selection=SelectionConfig(top_k=top_k),
        candidates="corpus" if corpus else "given",
    )


def example_maker(
    tokenizer: ClaraTokenizer,
    stage: str,
    memory: MemoryConfig,
    data: DataConfig,
    **settings: Any,
) -> Any:
    """An `ExampleMaker` whose examples are not asked which fields they have."""
    config = run_config(stage, memory, data, **settings)
    return ExampleMaker(STAGES[stage], tokenizer, config)


def layout_of(
    stage: str,
    memory: MemoryConfig,
    data: DataConfig,
    *,
    top_k: int = 1,
    candidates: int = 0,
    pad_id: int = 0,
) -> Layout:
    config = run_config(stage, memory, data, top_k)
    return Layout.of(STAGES[stage].reads(config), config, candidates, pad_id)
