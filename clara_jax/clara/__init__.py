"""CLaRa itself: memory slots, the three roles, soft top-k, losses and stages."""

from clara_jax.clara.batches import IGNORE, Batch, Tokens
from clara_jax.clara.fingerprint import vector_fingerprint
from clara_jax.clara.losses import (
    CompressionLoss,
    EndToEndLoss,
    Loss,
    RerankLoss,
    TextLoss,
    candidate_vectors,
    question_scores,
)
from clara_jax.clara.memory import (
    ROLES,
    fill_slots,
    init_rows,
    memory_slots,
    positions_in_rows,
    role_variables,
)
from clara_jax.clara.roles import (
    Compressor,
    Encoding,
    Generator,
    Reasoner,
    compress,
    generate_hidden,
    logits_of,
    prompt_embeddings,
    reason,
)
from clara_jax.clara.stages import STAGES, StageSpec, make_loss
from clara_jax.clara.topk import SoftTopK, cosine_scores, soft_topk

__all__ = [
    "IGNORE",
    "ROLES",
    "STAGES",
    "Batch",
    "CompressionLoss",
    "Compressor",
    "Encoding",
    "EndToEndLoss",
    "Generator",
    "Loss",
    "Reasoner",
    "RerankLoss",
    "SoftTopK",
    "StageSpec",
    "TextLoss",
    "Tokens",
    "candidate_vectors",
    "compress",
    "cosine_scores",
    "fill_slots",
    "generate_hidden",
    "init_rows",
    "logits_of",
    "make_loss",
    "memory_slots",
    "positions_in_rows",
    "prompt_embeddings",
    "question_scores",
    "reason",
    "role_variables",
    "soft_topk",
    "vector_fingerprint",
]
