"""How the programs of tests are compiled: fast rather than well, as most run once."""

from importlib.metadata import version

FAST_COMPILES = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
AS_USERS_COMPILE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
"""Options of a `jax.jit` whose last digits matter: they depend on the compilation."""

if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # The older of two emitters takes half the time of the newer; 0.11.1 has no choice.
    FAST_COMPILES += ("--xla_cpu_use_fusion_emitters=false",)
    AS_USERS_COMPILE["xla_cpu_use_fusion_emitters"] = True

if __name__ == "__main__":
    print(*FAST_COMPILES)
