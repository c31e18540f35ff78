"""THE table from logical to mesh axes: the one place that says what lies where.

Code names the axes of its arrays (``"batch", "length"``), never those of the mesh.
Which machine axis an array axis is split over is decided here and nowhere else.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from clara_jax.errors import ClaraError
from clara_jax.shapes import Array, Shaped

MeshAxes = str | tuple[str, ...] | None

MESH_AXES = ("slice", "data", "fsdp", "tensor")
"""``slice`` and ``data`` repeat weights, the former over the slow network between TPU
slices or hosts; ``fsdp`` splits weights and batch, ``tensor`` matrix products."""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each logical axis; None keeps the axis whole on every device.

    Attributes:
      batch: rows are independent, so they go over every axis that repeats the work.
      candidates: a question's candidates stay where the question is: relevance,
        top-k and the weighted sum then need no communication.
      length: prompts and documents are short (at most some thousand tokens).
      width: of *weights*, which are gathered a layer at a time. The width of an
        activation is written None, because its batch already lies over ``fsdp``.
      heads: attention is independent per head.
      kv_heads: as `heads`, so that each query head finds its keys at home.
      mlp: gate and up split their outputs and down its inputs: one sum per layer.
      vocab: table and head are the largest arrays of a small model.
      lora_rank: too narrow (16) to be worth splitting.
      lora_features: of an adapter beside a kernel's `heads` or `mlp`: split over
        ``fsdp`` too, since the adapter's other axis is the rank. As those of `width`
        such parts are gathered a layer at a time.
      layers: scanned over; splitting it would send every layer to every device.
    """

    batch: MeshAxes = ("slice", "data", "fsdp")
    candidates: MeshAxes = None
    length: MeshAxes = None
    width: MeshAxes = "fsdp"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    lora_rank: MeshAxes = None
    lora_features: MeshAxes = ("tensor", "fsdp")
    layers: MeshAxes = None

    def mesh_axes(self, logical: str) -> tuple[str, ...]:
        """Return the mesh axes of one logical axis, or refuse an unknown one."""
        names = [field.name for field in dataclasses.fields(self)]
        if logical not in names:
            raise ClaraError(
                f"sharding: no logical axis '{logical}'; use one of {', '.join(names)}"
            )
        return _names(getattr(self, logical))


RULES = ShardingRules()


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slice: int = 1,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Mesh:
    """Lay out devices as ``slice x data x fsdp x tensor``.

    Args:
      data, fsdp, tensor, slice: devices along each mesh axis. One of them may be -1 and
        takes the devices that the others leave.
      devices: what to lay out; None takes all of ``jax.devices()``.

    Raises:
      ClaraError: the sizes do not multiply to the number of devices.

    Example:
      >>> mesh = make_mesh(fsdp=4)  # 8 devices: data 2, fsdp 4, tensor 1
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(len(devices), data=data, fsdp=fsdp, tensor=tensor, slice=slice)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and sizes[0] != slices:
        raise ClaraError(
            f"mesh slice {sizes[0]}: the devices are {slices} TPU slices; set "
            f"--config.mesh.slice={slices}"
        )
    # Any mesh will do, though it be no product of the torus's own axes.
    how: dict[str, Any] = {"devices": devices, "allow_split_physical_axes": True}
    if slices > 1:
        inside, between = (1, *sizes[1:]), (slices, *(1,) * len(sizes[1:]))
        laid_out = mesh_utils.create_hybrid_device_mesh(inside, between, **how)
    else:
        laid_out = mesh_utils.create_device_mesh(sizes, **how)
    return Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def mesh_sizes(
    count: int, data: int = -1, fsdp: int = 1, tensor: int = 1, slice: int = 1
) -> tuple[int, ...]:
    """Return the sizes of `MESH_AXES` for `count` devices, or refuse misfits."""
    sizes = [slice, data, fsdp, tensor]
    wanted = " x ".join(f"{n} {size}" for n, size in zip(MESH_AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ClaraError(
            f"mesh {wanted}: sizes must be above 0, at most one of them -1"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
        known = count
    if known != count:
        raise ClaraError(f"mesh {wanted} does not fit {count} devices")
    return tuple(sizes)


def partition_spec(*logical: str | None, rules: ShardingRules = RULES) -> PartitionSpec:
    """Return the mesh axes of an array, by its logical axes; None stays whole.

    Raises:
      ClaraError: two of the axes would lie over the same mesh axis, or one is unknown.

    Example:
      >>> partition_spec("width", "mlp") == PartitionSpec("fsdp", "tensor")
      True
    """
    entries: list[MeshAxes] = []
    taken: dict[str, str] = {}
    for name in logical:
        axes = rules.mesh_axes(name) if name is not None else ()
        for axis in axes:
            if axis in taken:
                raise ClaraError(
                    f"sharding: '{taken[axis]}' and '{name}' of one array both lie "
                    f"over mesh axis '{axis}'; write None for one of them"
                )
            taken[axis] = str(name)
        entries.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh | AbstractMesh, *logical: str | None) -> NamedSharding:
    """Return where an array lies on `mesh`, by its logical axes; see `partition_spec`.

    With no axes named, the array is repeated on every device.
    """
    return NamedSharding(mesh, partition_spec(*logical))


def tree_shardings(
    mesh: Mesh | AbstractMesh,
    tree: Any,
    axes: Callable[[tuple[str, ...], int], tuple[str | None, ...]],
) -> Any:
    """Return the `NamedSharding` of every array (or shape) of a tree, as of `place`.

    `axes` gives an array's logical axes, from the names on the way to it and its rank.
    """

    def place(path, leaf) -> NamedSharding:
        shape = jax.numpy.shape(leaf)
        names = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        return NamedSharding(mesh, _fitting(mesh, axes(names, len(shape)), shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def placed(tree: Any, shardings: Any) -> Any:
    """Return the shapes of a tree's arrays, placed by the same tree of shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def place(x: Shaped[Array, "..."], *logical: str | None) -> Shaped[Array, "..."]:
    """Say where an array inside a compiled function lies on the mesh around it.

    The mesh is that of ``jax.set_mesh``; without one nothing happens. Each axis has a
    name of `ShardingRules`, or None. It is split over as many of its mesh axes, from
    the first on, as divide it.

    Example::

      with jax.set_mesh(mesh):
          jax.jit(lambda x: place(x, "batch", None))(x)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, _fitting(mesh, logical, x.shape))


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Return how many devices share the rows of a batch."""
    return _count(mesh, RULES.mesh_axes("batch"))


def _fitting(
    mesh: Mesh | AbstractMesh, logical: Sequence[str | None], shape: tuple[int, ...]
) -> PartitionSpec:
    """Return the `partition_spec` without the last mesh axes that do not divide."""

    def fitting(entry: MeshAxes, size: int) -> MeshAxes:
        names = _names(entry)
        while size % _count(mesh, names):
            names = names[:-1]
        return names[0] if len(names) == 1 else names or None

    pairs = zip(partition_spec(*logical), shape, strict=True)
    return PartitionSpec(*(fitting(entry, size) for entry, size in pairs))


def _count(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in axes)


def _names(axes: MeshAxes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
