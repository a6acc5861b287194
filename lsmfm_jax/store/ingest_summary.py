"""What one ingestion did, in words: patches added, and why a file was not used."""

import dataclasses
import pathlib
from collections import Counter

from lsmfm_jax.errors import LsmfmError
from lsmfm_jax.volumes.names import describe_volumes, printable


@dataclasses.dataclass
class IngestSummary:
    """What one ingestion did.

    Attributes:
        added: patches added, from `added_files` files; `known` files were in the store and not read again.
        failed: files (path, reason) that could not be used.
        duplicates: files (path, what they repeat) whose bytes or pixels are in the store under another name.
        left_out: files (path, reason) with nothing wrong but nothing to learn from: blank volumes, masks.
        members: files (path, of which) that belong to an image that another of its files was named for.
        notes: what else a reader should know, such as merged captions; `file_notes` of single files, by text.
        volumes: the volume of each patch that was added.
    """

    store: pathlib.Path
    added: int = 0
    added_files: int = 0
    known: int = 0
    failed: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    duplicates: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    left_out: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)
    members: list[tuple[pathlib.Path, pathlib.Path]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    file_notes: dict[str, list[pathlib.Path]] = dataclasses.field(default_factory=dict)
    volumes: list[str] = dataclasses.field(default_factory=list)

    def text(self) -> str:
        """Give the summary for people: counts, then a line for each file that was left out."""
        lines = [
            f"{printable(self.store)}: {self.added} patches added from {self.added_files} files, "
            f"{self.known} files known, {len(self.failed)} failed, {len(self.duplicates)} duplicates, "
            f"{len(self.left_out)} left out"
        ]
        if self.volumes:
            lines.append(f"added: {describe_volumes(self.volumes)}")
        lines += [f"failed: {printable(path)}: {printable(reason)}" for path, reason in self.failed]
        lines += [f"duplicate: {printable(path)}: {reason}" for path, reason in self.duplicates]
        lines += [f"left out: {printable(path)}: {reason}" for path, reason in self.left_out]
        for main, count in Counter(main for _, main in self.members).items():
            lines.append(f"note: {count} files are parts of the image of {printable(main)}, read through it")
        lines += [f"note: {note}" for note in self.notes]
        for note, paths in self.file_notes.items():
            more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
            lines.append(f"note: {printable(paths[0])}{more}: {note}")
        return "\n".join(lines)


class IngestFailed(LsmfmError, ValueError):
    """No file could be used, or a strict ingestion met one that could not; what could be used is in the store."""

    def __init__(self, summary: IngestSummary) -> None:
        super().__init__(summary.text())
        self.summary = summary
