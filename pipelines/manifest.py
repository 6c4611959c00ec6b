"""What an output folder says of itself: _manifest.json in, the finished shards and parts out, and back."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from convbert.stores import reason
from pipelines.errors import OutputError
from pipelines.partitions import unit_of_file
from pipelines.storage import Location, exists, put, read_bytes, redacted, remove
from pipelines.units import fingerprint_of, number_of, unit_of
from pipelines.write import Part

MANIFEST_NAME = "_manifest.json"
SUCCESS_NAME = "_SUCCESS"
FORMAT = 2
OURS = "convbert-pipelines"
_PACKAGES = (OURS, "pyarrow", "ray", "tokenizers", "torch")


@dataclass(frozen=True)
class ShardEntry:
    """A labelled shard.

    Attributes:
        url: where it lies.
        fingerprint: of this version of it, labelled by this recipe.
        units: parts that its records are in.
        group: the fingerprint in the names of these parts: its own, or that of small shards that share a part.
    """

    url: str
    fingerprint: str
    units: int
    group: str


class Group(NamedTuple):
    """Shards that share parts: one shard, or several small ones."""

    entries: list[ShardEntry]
    parts: list[Part]


@dataclass(frozen=True)
class Manifest:
    """One consistent state of an output folder.

    Attributes:
        recipe: everything that decides what stands in a part, apart from the shard.
        heads: name, task, labels, weight fingerprint and settings of each head.
        passes: names of the heads that share each encoder pass.
        shards: the labelled shards.
        parts: the part files that belong to this state.
        seconds: wall-clock time spent labelling, over all runs.
        versions: of what the numbers in the parts depend on, as the newest run had it.
        nights: what each run that changed the output did, the newest last and in full (pipelines.nights).
    """

    recipe: dict[str, Any]
    heads: list[dict[str, Any]]
    passes: list[list[str]]
    shards: list[ShardEntry]
    parts: list[Part]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    nights: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Records in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def failed(self) -> int:
        """Records with an error."""
        return sum(part.failed for part in self.parts)

    def is_same_state(self, other: Manifest) -> bool:
        """Both name the same parts for the same job and shards."""
        return (self.recipe, self.shards, self.parts) == (other.recipe, other.shards, other.parts)

    def groups(self) -> list[Group]:
        """Shards with the parts that their records are in, in their order."""
        groups = {name: Group([], parts) for name, parts in by_group(self.parts).items()}
        for entry in self.shards:
            groups.setdefault(entry.group, Group([], [])).entries.append(entry)
        return list(groups.values())

    def strays(self, own: Iterable[str]) -> list[str]:
        """Of an output's own files those that do not belong to this state."""
        known = {name for part in self.parts for name in (part.name, *part.files)}
        return [name for name in own if name not in known]

    def to_json(self) -> str:
        """The text of _manifest.json."""
        values = {
            "format": FORMAT,
            "rows_in": self.rows,
            "rows_out": self.rows,
            "rows_failed": self.failed,
            "units": len(self.parts),
            "tokens": sum(part.tokens for part in self.parts),
            "copied_tokens": sum(part.copied_tokens for part in self.parts),
            "seconds": round(self.seconds, 3),
            "busy_s": round(sum(part.busy_s for part in self.parts), 3),
            "labels": total_labels(self.parts),
            "heads": self.heads,
            "passes": self.passes,
            "recipe": self.recipe,
            "versions": self.versions,
            "nights": self.nights,
            "shards": [vars(shard) for shard in self.shards],
            **self._parts_and_indexes(),
        }
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def _parts_and_indexes(self) -> dict[str, Any]:
        """The files that hold rows are what readers look for; the figures of a unit of many stand with its index."""
        parts = [_entry(part) for part in self.parts]
        files = [part.pop("files") for part in parts]
        if "partition_by" not in self.recipe:
            return {"parts": parts}
        rows_of = {name: figures for its in files for name, figures in its.items()}
        return {
            "parts": [{"name": name, "rows": rows, "bytes": size} for name, (rows, size) in sorted(rows_of.items())],
            "indexes": parts,
        }


def _with_files(values: dict[str, Any]) -> Iterator[Part]:
    """The parts of a manifest's text; an index has its files back."""
    files: dict[str, dict[str, list[int]]] = {}
    for file in values["parts"] if "indexes" in values else ():
        files.setdefault(unit_of_file(file["name"]), {})[file["name"]] = [file["rows"], file["bytes"]]
    for part in values.get("indexes", values["parts"]):
        yield Part(**{**part, "files": files.get(unit_of(part["name"]), {})})


def _entry(part: Part) -> dict[str, Any]:
    """A part in the manifest, which stays small: of stages and histograms it keeps each night's sums."""
    return {name: value for name, value in vars(part).items() if name not in ("stages_s", "figures")}


def in_order(parts: Iterable[Part]) -> list[Part]:
    """Parts by shard and then by unit, whose number may have more digits than its neighbour's."""
    return sorted(parts, key=lambda part: (unit_of(part.name).rpartition("-")[0], number_of(part.name)))


def by_group(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """Parts in their order by the fingerprint in their names, which is their shards' group."""
    groups: dict[str, list[Part]] = {}
    for part in in_order(parts):
        groups.setdefault(fingerprint_of(part.name), []).append(part)
    return groups


def read_manifest(output: Location) -> Manifest | None:
    """The manifest of an output folder; None where there is none yet.

    Raises:
        OutputError: it is there and cannot be read, or another version of this package wrote it.
    """
    target = output.child(MANIFEST_NAME)
    try:
        values = json.loads(read_bytes(target))
        if values["format"] != FORMAT:
            raise OutputError(
                f"{redacted(target.url)} has format {values['format']}, not {FORMAT}: use another --output"
            )
        return Manifest(
            recipe=values["recipe"],
            heads=values["heads"],
            passes=values["passes"],
            shards=[ShardEntry(**shard) for shard in values["shards"]],
            parts=list(_with_files(values)),
            seconds=values["seconds"],
            versions=values["versions"],
            nights=values.get("nights", []),  # earlier versions kept none
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(
            f"{redacted(target.url)} cannot be read ({reason(error)}): check the address, rights and credentials"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{redacted(target.url)} cannot be read ({reason(error)}): put back a copy of it, or use another --output"
        ) from error


def write_manifest(output: Location, manifest: Manifest) -> None:
    """Put the manifest in one stroke: readers see the old state or the new one."""
    put(output.child(MANIFEST_NAME), manifest.to_json().encode("utf-8"))


def mark_success(output: Location) -> None:
    """Say that everything is there and good, where it is not said already."""
    if not exists(marker := output.child(SUCCESS_NAME)):
        put(marker, b"")


def unmark_success(output: Location) -> None:
    """Take the marker away while work goes on."""
    remove(output.child(SUCCESS_NAME))


def versions() -> dict[str, str]:
    """Versions that the numbers in a part depend on."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in _PACKAGES}}


def version_of(package: str) -> str:
    """An installed package's version; ours may run from its source, as Ray's ``working_dir`` has it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def total_labels(parts: Iterable[Part]) -> dict[str, dict[str, int]]:
    """Records by label for each head, over many parts."""
    totals: dict[str, Counter[str]] = {}
    for part in parts:
        for head, counts in part.labels.items():
            totals.setdefault(head, Counter()).update(counts)
    return {head: dict(sorted(counts.items())) for head, counts in totals.items()}


def total_reasons(parts: Iterable[Part], most: int) -> tuple[dict[str, int], dict[str, str]]:
    """The commonest reasons why records failed, over many parts, and the first example of each that one tells."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for part in parts:
        counts.update(part.reasons)
        for why, example in part.examples.items():
            examples.setdefault(why, example)
    commonest = dict(counts.most_common(most))
    return commonest, {why: examples[why] for why in commonest if why in examples}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What changed between two recipes, in words."""
    heads, new_heads = ({head["name"] for head in recipe.get("heads", ())} for recipe in (before, now))
    old, new = (_settings(recipe, heads & new_heads) for recipe in (before, now))
    alone = [f"head {name} is {'new' if name in new_heads else 'gone'}" for name in sorted(heads ^ new_heads)]
    return alone + [
        f"{key} was {json.dumps(old.get(key), ensure_ascii=False)}, now {json.dumps(new.get(key), ensure_ascii=False)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _settings(recipe: Mapping[str, Any], heads: Set[str]) -> dict[str, Any]:
    """A recipe's settings, each of these heads' under a name of its own."""
    settings = {key: value for key, value in recipe.items() if key != "heads"}
    for head in (head for head in recipe.get("heads", ()) if head["name"] in heads):
        settings.update({f"head {head['name']} {key}": value for key, value in head.items() if key != "name"})
    return settings
