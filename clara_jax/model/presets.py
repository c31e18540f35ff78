"""Shapes of known backbones, for tests, planning and random starts."""

from clara_jax.config import ModelConfig, RopeConfig

TINY = ModelConfig(
    vocab_size=128,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
)

SMOLLM2_135M = ModelConfig(
    vocab_size=49152,
    width=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    tied=True,
    rope=RopeConfig(theta=100000.0, max_position=8192),
)

SMOLLM3_3B = ModelConfig(
    vocab_size=128256,
    width=2048,
    num_layers=36,
    num_heads=16,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=11008,
    norm_eps=1e-6,
    tied=True,
    unrotated_layers=(3, 7, 11, 15, 19, 23, 27, 31, 35),
    rope=RopeConfig(theta=5000000.0, max_position=65536),
    dtype="bfloat16",
    param_dtype="bfloat16",
)

GEMMA3_1B = ModelConfig(
    vocab_size=262144,
    width=1152,
    num_layers=26,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    mlp_dim=6912,
    norm_eps=1e-6,
    tied=True,
    qk_norm=True,
    sliding_window=512,
    full_layers=(5, 11, 17, 23),
    rope=RopeConfig(theta=1000000.0, max_position=32768),
    window_rope=RopeConfig(theta=10000.0, max_position=32768),
    activation="gelu_tanh",
    centered_norms=True,
    output_norms=True,
    scaled_embeddings=True,
    dtype="bfloat16",
    param_dtype="bfloat16",
)

# Mistral-7B-Instruct-v0.2: unlike v0.1 it has no sliding window.
MISTRAL_7B = ModelConfig(
    vocab_size=32000,
    width=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=14336,
    rope=RopeConfig(theta=1000000.0, max_position=32768),
    dtype="bfloat16",
    param_dtype="bfloat16",
)

# fmt: off
_PHI4_LONG_FACTORS = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817,
    2.187582649, 2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687,
    4.279200023, 4.785517845, 5.351743533, 5.984965424, 6.693110555, 7.485043894,
    8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884,
    32.03, 32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97,
    33.28, 33.49, 33.5, 44.16, 47.77,
)
# fmt: on

PHI4_MINI = ModelConfig(
    vocab_size=200064,
    width=3072,
    num_layers=32,
    num_heads=24,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=8192,
    tied=True,
    fused_qkv=True,
    fused_gate_up=True,
    sliding_window=262144,
    rope=RopeConfig(
        theta=10000.0,
        fraction=0.75,
        kind="longrope",
        original_max_position=4096,
        max_position=131072,
        short_factors=(1.0,) * 48,
        long_factors=_PHI4_LONG_FACTORS,
    ),
    dtype="bfloat16",
    param_dtype="bfloat16",
)

PRESETS = {
    "tiny": TINY,
    "smollm2_135m": SMOLLM2_135M,
    "smollm3_3b": SMOLLM3_3B,
    "gemma3_1b": GEMMA3_1B,
    "mistral_7b": MISTRAL_7B,
    "phi4_mini": PHI4_MINI,
}
"""Name to shape, as in ``backbone="random:tiny"``."""
