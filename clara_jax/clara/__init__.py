"""CLaRa itself: memory slots, the three roles, soft top-k and losses."""

from clara_jax.clara.batches import IGNORE, Batch, Tokens
from clara_jax.clara.fingerprint import (
    vector_fingerprint,
    weights_distance,
    weights_sample,
)
from clara_jax.clara.losses import (
    CompressionLoss,
    EndToEndLoss,
    Loss,
    RerankLoss,
    TextLoss,
    candidate_vectors,
    question_scores,
)
from clara_jax.clara.network import ROLES, Network, init_rows, positions_in_rows
from clara_jax.clara.topk import cosine_scores, soft_topk

__all__ = [
    "IGNORE",
    "ROLES",
    "Batch",
    "CompressionLoss",
    "EndToEndLoss",
    "Loss",
    "Network",
    "RerankLoss",
    "TextLoss",
    "Tokens",
    "candidate_vectors",
    "cosine_scores",
    "init_rows",
    "positions_in_rows",
    "question_scores",
    "soft_topk",
    "vector_fingerprint",
    "weights_distance",
    "weights_sample",
]
