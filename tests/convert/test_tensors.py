import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clara_jax.convert import load_model, model_config_from_hf
from clara_jax.convert.gguf import GgufFile
from clara_jax.convert.model_folder import read_tokenizer
from clara_jax.convert.names import hf_tensors
from clara_jax.convert.pth import read_pth
from clara_jax.convert.tensors import SafetensorsFile, build_tree, check_tensors
from clara_jax.errors import ClaraError


def test_cast_on_the_way(llama_values):
    tensors = hf_tensors(model_config_from_hf(llama_values, ""))
    tree = build_tree(tensors, lambda t: np.full(t.shape, 1 / 3), np.float16)
    kernel = tree["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == np.float16 and np.all(kernel == np.float16(1 / 3))


def test_wrong_tensors_are_named(llama_values):
    tensors = hf_tensors(model_config_from_hf(llama_values, ""))
    good = {tensor.name: tensor.shape for tensor in tensors}
    check_tensors(tensors, good, "some/file")

    def fails(pattern, shapes, **more):
        with pytest.raises(ClaraError, match=pattern):
            check_tensors(tensors, shapes, "some/file", **more)

    odd, norm = {"model.odd": (3,)}, {"model.norm.weight": (3,)}
    fails("some/file: tensor 'model.odd' is not exp", good | odd)
    fails(r"'model.norm.weight' has shape \[3\].*\[16", norm)
    fails("its/file: tensor 'model.norm", norm, files={"model.norm.weight": "its/file"})
    one = {"model.norm.weight": (16,)}
    fails("some/file: tensor 'model.embed_tokens.weight' and .* more is missing", one)
    del good["model.norm.weight"]
    fails("tensor 'model.norm.weight' is missing", good)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_device_gets_its_slices(tmp_path, llama_values, hf_writer, dtype):
    """On every axis in turn: stacked layers, transposed kernels, plain tables."""
    values = {**llama_values, "num_hidden_layers": 4, "vocab_size": 44}
    hf_writer(tmp_path, values, shards=2)
    whole = load_model(tmp_path, dtype)
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    for axis in range(3):

        def shardings(shapes, axis=axis):
            specs = [None] * axis + ["x"]
            return jax.tree.map(
                lambda leaf: NamedSharding(
                    mesh, PartitionSpec(*specs[: leaf.ndim] if leaf.ndim > axis else ())
                ),
                shapes,
            )

        placed = load_model(tmp_path, dtype, placement=shardings)
        for ours, theirs in zip(
            jax.tree.leaves(placed.params), jax.tree.leaves(whole.params), strict=True
        ):
            assert ours.dtype == theirs.dtype and isinstance(ours, jax.Array)
            np.testing.assert_array_equal(np.asarray(ours), theirs)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("adapters.pth", read_pth),
        ("x.gguf", GgufFile),
        ("model.safetensors", SafetensorsFile),
        ("tokenizer.json", lambda path: read_tokenizer(path.parent)),
    ],
)
def test_pointers_of_git_lfs(tmp_path, name, read):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ClaraError, match=f"{name}: is a pointer of Git LFS, .* lfs pu"):
        read(tmp_path / name)
