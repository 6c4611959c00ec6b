"""A unit's rows in, a file for each value of a column out, in the folders that Hive's readers know: COLUMN=value/."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RunError, SpecError
from pipelines.storage import Info, Location, listed, many_at_a_time
from pipelines.units import fingerprint_of, unit_of

INDEX_FOLDER = "_units"  # readers pass over names with an underscore
INDEX_SUFFIX = ".index"  # an Arrow file without rows, whose schema carries the unit's figures
NULL_VALUE = "__HIVE_DEFAULT_PARTITION__"
MAX_VALUES = 256  # of a unit: beyond it files would hold a few rows each
MAX_NAME_BYTES = 255  # of a folder, on every file system
_ESCAPED = re.compile(r"""[\x00-\x1f\x7f"#%'*/:=?\\{\[\]^]""")  # as Hive and Spark do
_DATA_FILE = re.compile(r"part-.*-[0-9a-f]{16}-\d{5,}-[0-9a-f]{8}\.[a-z]+", re.DOTALL)


@dataclass(frozen=True)
class Partitioning:
    """What rows are parted by.

    Attributes:
        column: of the output: a kept one, or a head's.
        field: of the head's struct; None for a kept column, which is then left out of the files.
    """

    column: str
    field: str | None = None

    @classmethod
    def of(cls, partition_by: str | None, heads: Iterable[str]) -> Partitioning | None:
        """What ``--partition-by`` names: HEAD.FIELD of one of these heads, or else a column of the input."""
        if partition_by is None:
            return None
        head, dot, field = partition_by.partition(".")
        return cls(head, field) if dot and head in heads else cls(partition_by)

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> Partitioning | None:
        """What an output was made with."""
        return cls.of(recipe.get("partition_by"), [head["name"] for head in recipe["heads"]])

    @property
    def key(self) -> str:
        """The column that readers find in the names of the folders."""
        return self.column if self.field is None else f"{self.column}_{self.field}"

    def check(self, types: Mapping[str, pa.DataType]) -> None:
        """Refuse what cannot name a folder.

        Args:
            types: of the output's columns.

        Raises:
            SpecError: the head has no such field, or values of this type do not go into a name.
        """
        type_, named = types[self.column], f"--partition-by {self.column}"
        if self.field is not None:
            named += f".{self.field}"
            fields = {field.name: field.type for field in type_}
            if self.field not in fields:
                raise SpecError(f"{named}: this head has no such field, but {', '.join(fields)}")
            type_ = fields[self.field]
        if not _names_folders(type_):
            raise SpecError(
                f"{named} holds {type_}: folders are named by strings, whole numbers, dates and booleans, "
                "so choose another column, or add one of these to the corpus"
            )

    def split(self, table: pa.Table, part: str) -> Iterator[tuple[str, pa.Table]]:
        """Each file's name below the output folder, without suffix, and its rows in their order.

        The name covers how all rows of the unit were parted. Where a unit is done twice, on machines whose last digits
        differ, a record at the border of two labels may go either way: the files of both are then apart, and the
        unit's index says which count.

        Args:
            table: all rows of a unit.
            part: its name.

        Raises:
            RunError: too many values, or one too long for a name.
        """
        encoded = self._values(table).dictionary_encode(null_encoding="encode")
        folders = [self._folder(value) for value in encoded.dictionary.to_pylist()]
        if len(folders) > MAX_VALUES:
            raise RunError(
                f"--partition-by {self.key}: {len(folders)} values in one unit ({part}), more than {MAX_VALUES}: "
                "choose a column with fewer values, or lower --unit-rows"
            )
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        for code, folder in enumerate(folders):
            if len(folder.encode()) > MAX_NAME_BYTES:
                value, place = encoded.dictionary[code].as_py(), table["id"][int(np.argmax(codes == code))]
                raise RunError(
                    f"--partition-by {self.key}: {value!r:.60} of record {place} is too long for a folder's name: "
                    "shorten it"
                )
        assigned = hashlib.sha256("\n".join(folders[code] for code in codes).encode()).digest()
        rest = table if self.field is not None else table.drop_columns([self.column])
        for code, folder in sorted(enumerate(folders), key=lambda entry: entry[1]):
            digest = hashlib.sha256(assigned + folder.encode()).hexdigest()[:8]
            yield f"{folder}/{part}-{digest}", rest.take(pa.array(np.flatnonzero(codes == code)))

    def _values(self, table: pa.Table) -> pa.Array:
        """The values as they stand in names; null for none."""
        values = table[self.column].combine_chunks()
        if self.field is not None:
            values = pc.struct_field(values, self.field)  # null where the struct is
        values = values.cast(pa.string())
        is_null = pc.is_in(values, pa.array(["", NULL_VALUE]))  # Hive knows no empty name
        return pc.if_else(is_null, pa.scalar(None, pa.string()), values)

    def _folder(self, value: str | None) -> str:
        return f"{escaped(self.key)}={NULL_VALUE if value is None else escaped(value)}"


def is_data_file(name: str) -> bool:
    """Whether a name is one that ``Partitioning.split`` gives."""
    return _DATA_FILE.fullmatch(name.rsplit("/", 1)[-1]) is not None


def unit_of_file(name: str) -> str:
    """Name of the unit that a file's rows belong to."""
    return unit_of(name).rpartition("-")[0]


def escaped(text: str) -> str:
    """Text as Hive writes it into a path: what would mislead there as %XX."""
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", text)


def _names_folders(type_: pa.DataType) -> bool:
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_date, pa.types.is_boolean)
    return any(is_kind(type_) for is_kind in kinds)


def own_files(output: Location) -> dict[str, Info]:
    """Files of an output folder that a job has made, by their names below it, and what the store says of each.

    Those in folders of whatever ``--partition-by`` are among them. What has another name than a part has is not
    ours, such as Spark's part-00000-….parquet.

    Raises:
        OutputError: it cannot be listed.
    """
    files, folders = listed(output)
    found = {name: info for name, info in files.items() if fingerprint_of(name) or is_data_file(name)}
    its = [name for name in folders if name == INDEX_FOLDER or "=" in name]
    return {**found, **_own_files_in(output, its)}


def parted_otherwise(names: Iterable[str], recipe: Mapping[str, Any]) -> list[str]:
    """Those of an output's own files that lie in folders of another ``--partition-by`` than this recipe's."""
    its = Partitioning.of_recipe(recipe)
    keys = {INDEX_FOLDER, escaped(its.key)} if its else set()
    return sorted(name for name in names if "/" in name and name.partition("/")[0].partition("=")[0] not in keys)


def _own_files_in(output: Location, folders: Sequence[str]) -> dict[str, Info]:
    found = {}
    listings = many_at_a_time(lambda name: listed(output.child(name)), folders)
    for folder, (files, _) in zip(folders, listings, strict=True):
        for name, info in files.items():
            if fingerprint_of(name) if folder == INDEX_FOLDER else is_data_file(name):
                found[f"{folder}/{name}"] = info
    return found
