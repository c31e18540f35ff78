"""How the programs of tests are compiled: fast rather than well, as most run once."""

from importlib.metadata import version

FAST_COMPILES = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # The older of two emitters takes half the time of the newer; 0.11.1 has no choice.
    FAST_COMPILES += ("--xla_cpu_use_fusion_emitters=false",)

if __name__ == "__main__":
    print(*FAST_COMPILES)
