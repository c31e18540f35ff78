"""What a row of a store is: a piece of a document with its vectors and a checksum.

| column | type | what it holds |
|---|---|---|
| id, title, text, source | string | of the document; where it was found |
| start, stop, part, parts | int64, int32 | the piece's place in its document |
| fields of the user's own | as inferred | the document's metadata |
| codes, scales | fixed-size binary; float32 [M] | the vectors, see ``codecs`` |
| norm | float32 | Euclidean norm of the flat vectors |
| checksum | uint64 | CRC-32 of the vectors, and below it of the document |
| key | float16 [Q] | the short key, once there is an index; see ``keys`` |

Settings lie in the schema's metadata. Own fields are columns under their own names, or
``own_NAME`` where the store has a column of that name.
"""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped, UInt64

from clara_jax.config import MemoryConfig, parse
from clara_jax.documents import Document, is_unicode
from clara_jax.errors import ClaraError
from clara_jax.files import first_line
from clara_jax.search.codecs import FLOATS, code_type, decode_parts, encode, read_center

FORMAT = 2  # of the store; a program reads its own only

_META = b"clara"
_KIND, _NAME = b"clara.type", b"clara.field"  # of a field of the user's own

DOCUMENT = {
    **dict.fromkeys(("id", "title", "text", "source"), pa.string()),
    **dict.fromkeys(("start", "stop"), pa.int64()),
    **dict.fromkeys(("part", "parts"), pa.int32()),
}
VECTORS = ("codes", "scales", "norm")
RESERVED = (*DOCUMENT, *VECTORS, "checksum", "key")

# Not compressed, so that rows of a local file can be mapped into memory.
_PLAIN = {
    "lance-encoding:compression": "none",
    "lance-encoding:structural-encoding": "fullzip",
}

# What Arrow and JSON raise where a document does not fit.
_UNFIT = (pa.ArrowException, OverflowError, TypeError, ValueError)

# Of fields without a value, and of lists that are empty.
_UNKNOWN = {"": "text", "list ": "list text"}

_SCALARS = {
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
}


@dataclasses.dataclass(frozen=True)
class StoreSettings:
    """What all vectors of a store have in common."""

    fingerprint: str  # of everything that document vectors depend on
    model: str  # a path relative to the store, an absolute one, or a hub name
    base: str  # the same for a backbone kept elsewhere; empty: none
    memory: MemoryConfig  # how a document became vectors
    width: int  # D
    dtype: str = "bfloat16"  # how vectors are kept, one of `codecs.CODECS`
    compute: str = ""  # type that the model computed in; for information
    center: str = ""  # see `codecs.center_of`

    def __post_init__(self) -> None:
        code_type(self.dtype, self.width)  # refuses a codec that there is not


def make_schema(settings: StoreSettings, kinds: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a store.

    Args:
      settings: go into its metadata.
      kinds: of the fields of metadata, see ``documents.kind_of``.
    """
    fields = [pa.field(name, type, False) for name, type in DOCUMENT.items()]
    fields += own_fields(kinds, RESERVED)
    count = settings.memory.num_memory
    kind, length = code_type(settings.dtype, settings.width)
    binary = pa.binary(count * length * kind.itemsize)
    fields.append(pa.field("codes", binary, False, _PLAIN))
    if settings.dtype not in FLOATS:
        scales = pa.list_(pa.field("item", pa.float32(), False), count)
        fields.append(pa.field("scales", scales, False, _PLAIN))
    fields.append(pa.field("norm", pa.float32(), False, _PLAIN))
    fields.append(pa.field("checksum", pa.uint64(), False, _PLAIN))
    note = {**dataclasses.asdict(settings), "format": FORMAT}
    return pa.schema(fields, {_META: json.dumps(note, sort_keys=True).encode()})


def read_settings(schema: pa.Schema, place: str) -> StoreSettings:
    """Read the settings of the store at `place`; refuse what is of another format."""
    try:
        note = json.loads((schema.metadata or {})[_META])
        known = note.pop("format") == FORMAT
    except (KeyError, ValueError, AttributeError, TypeError):
        note, known = {}, False
    if not known:
        raise ClaraError(
            f"{place}: is a Lance dataset, but not a store of document vectors of "
            f"format {FORMAT}, which this version of clara_jax reads; make one with "
            "`python -m clara_jax.compress`"
        )
    return parse(StoreSettings, note, place)


def own_fields(kinds: Mapping[str, str], taken: Iterable[str]) -> list[pa.Field]:
    """Return columns for fields of metadata; `taken` are names that they cannot have.

    A name is kept in the column's metadata, whatever the column is called.
    """
    names = {name.lower() for name in taken}
    order = sorted(kinds, key=lambda name: (name.lower() not in names, name))
    fields = []
    for name in order:  # the same for all processes; reserved ones first
        kind = _UNKNOWN.get(kinds[name], kinds[name])
        if not is_unicode(name):
            raise ClaraError(
                f"the field {name!a} has half of a surrogate pair in its name, "
                "which is not text"
            )
        column = name.replace(".", "_").replace("`", "_")
        while not column or column.lower() in names or column.startswith("_"):
            column = f"own_{column.lstrip('_')}"
            column += "_" if column.lower() in names else ""
        names.add(column.lower())
        meta = {_NAME: name.encode(), _KIND: kind.encode()}
        fields.append(pa.field(column, _type_of(kind), True, meta))
    return fields


def own_columns(schema: pa.Schema) -> dict[str, tuple[str, str]]:
    """Return fields of metadata: name to the column and the kind of its values."""
    return {
        field.metadata[_NAME].decode(): (field.name, field.metadata[_KIND].decode())
        for field in schema
        if field.metadata and _NAME in field.metadata
    }


def _type_of(kind: str) -> pa.DataType:
    outer, _, inner = kind.rpartition(" ")
    found = _SCALARS.get(inner, pa.string())
    return pa.list_(found) if outer else found


def to_table(
    documents: Sequence[Document],
    arrays: Mapping[str, Shaped[np.ndarray, "n ..."]],
    schema: pa.Schema,
) -> pa.Table:
    """Put documents and their vectors, as of `encoded`, into rows of a store.

    Raises:
      ClaraError: a document is not Unicode, its metadata are not JSON or not of the
        columns' types.
    """
    try:
        table = _to_rows(documents, schema)
    except _UNFIT:
        for document in documents:  # which one was it?
            try:
                _to_rows([document], schema)
            except _UNFIT as error:
                place = document.source or document.id or "a piece"
                place = place.encode("utf-8", "replace").decode()
                why = f"cannot be kept ({first_line(error)})"
                if isinstance(error, UnicodeError):
                    why = "holds half of a surrogate pair, which is not text"
                raise ClaraError(f"{place}: {why}") from error
        raise
    for name in schema.names:
        if name in arrays:
            array = _to_arrow(arrays[name], schema.field(name).type)
            table = table.append_column(schema.field(name), array)
    sums = checksums_of_vectors(arrays) << np.uint64(32) | checksums_of(table)
    return table.append_column(schema.field("checksum"), pa.array(sums))


def _to_rows(documents: Sequence[Document], schema: pa.Schema) -> pa.Table:
    own, rows = own_columns(schema), []
    for document in documents:
        row = {name: getattr(document, name) for name in DOCUMENT}
        for name, value in document.metadata.items():
            if name not in own:
                raise ValueError(f"the job was not told of its field '{name}'")
            column, kind = own[name]
            if kind == "json" and value is not None:
                value = json.dumps(value, sort_keys=True, ensure_ascii=False)
            row[column] = value
        rows.append(row)
    columns = [*DOCUMENT, *(column for column, _ in own.values())]
    return pa.Table.from_pylist(rows, pa.schema([schema.field(c) for c in columns]))


def to_documents(table: pa.Table, place: str) -> list[Document]:
    """Return documents of the store at `place`, read with all `document_columns`.

    Raises:
      ClaraError: a row's document is not what was written; says which.
    """
    sums = table["checksum"].to_numpy() & np.uint64(0xFFFFFFFF)
    if (wrong := sums != checksums_of(table)).any():
        raise damaged(place, table.filter(pa.array(wrong)))
    own = own_columns(table.schema)
    found = []
    for row in table.to_pylist():
        metadata = {}
        for name, (column, kind) in own.items():
            value = row.get(column)
            if value is not None:
                metadata[name] = json.loads(value) if kind == "json" else value
        fields = {name: row[name] for name in DOCUMENT}
        found.append(Document(**fields, metadata=metadata))
    return found


def document_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that make a document, and the checksum."""
    own = (column for column, _ in own_columns(schema).values())
    return [*DOCUMENT, *own, "checksum"]


def damaged(place: str, table: pa.Table) -> ClaraError:
    """Return the error for damaged rows of a store; it names the first of the table."""
    id, part = table["id"][0].as_py(), table["part"][0].as_py()
    return ClaraError(
        f"{place}: part {part} of document {id!r} is damaged (its checksum is wrong); "
        "put it in again with --replace"
    )


def checksums_of(table: pa.Table) -> UInt64[np.ndarray, "n"]:
    """Return CRC-32 of the document of each row; absent fields do not count."""
    own = sorted(own_columns(table.schema).items())
    names = [*DOCUMENT, *(column for _, (column, _) in own)]
    labels = [*DOCUMENT, *(f".{name}" for name, _ in own)]
    found = np.empty(table.num_rows, np.uint64)
    columns = [table[name].to_pylist() for name in names]
    for i, values in enumerate(zip(*columns, strict=True)):
        known = [p for p in zip(labels, values, strict=True) if p[1] is not None]
        found[i] = zlib.crc32(repr(known).encode("utf-8", "surrogatepass"))
    return found


def checksums_of_vectors(
    arrays: Mapping[str, Shaped[np.ndarray, "n ..."]],
) -> UInt64[np.ndarray, "n"]:
    """Return CRC-32 of codes, scales and norm of each row."""
    count = len(arrays["norm"])
    bits = [
        np.ascontiguousarray(arrays[name]).reshape(count, -1).view(np.uint8)
        for name in VECTORS
        if name in arrays and count  # numpy makes nothing of 0 rows of -1 columns
    ]
    rows = np.concatenate(bits, axis=1) if count else ()
    return np.fromiter(map(zlib.crc32, rows), np.uint64, count)


def encoded(
    vectors: Float[np.ndarray, "n M D"], settings: StoreSettings
) -> dict[str, np.ndarray]:
    """Return codes, scales (none for floats) and norms of vectors.

    Raises:
      ClaraError: a number is not finite.
    """
    center = read_center(settings.center, vectors.shape[1:])
    codes, scales = encode(vectors, settings.dtype, center)
    norms = np.empty(len(codes), np.float32)
    for part, decoded in decode_parts(codes, scales, settings.dtype, settings.width):
        whole = decoded if center is None else decoded + center
        # Not a dot product, whose last bit depends on the number of threads.
        norms[part] = np.sqrt(np.square(whole, dtype=np.float64).sum(axis=(1, 2)))
    found = {"codes": codes, "norm": norms}
    return found if scales is None else {**found, "scales": scales}


def _to_arrow(array: np.ndarray, type: pa.DataType) -> pa.Array:
    """Turn an array [n, ...] into a column without copying it."""
    buffer = pa.py_buffer(np.ascontiguousarray(array))
    if pa.types.is_fixed_size_binary(type):
        return pa.FixedSizeBinaryArray.from_buffers(type, len(array), [None, buffer])
    if pa.types.is_fixed_size_list(type):
        values = pa.array(array.reshape(-1), type.value_type)
        return pa.FixedSizeListArray.from_arrays(values, type=type)
    return pa.array(array, type)
