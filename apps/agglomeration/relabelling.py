"""Actions `relabel` and `finish`: the segmentation with its new ids, block by block, then under its name.

The volume in the making is in the work folder.  A block's record, written after its chunks, holds the SHA-256 of its
voxels; `finish` gives the volume its name only when every block has a record of this very decision, and of this very
volume: where that was taken away, what records say was written is not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.agglomeration.collecting import MergeRecord, read_mapping, read_record
from apps.agglomeration.inputs import Inputs, chunks_of
from apps.agglomeration.merging import relabelled
from apps.agglomeration.stamps import made_as
from apps.agglomeration.tables import unit_path
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import move_folder, settled
from apps.core.parameters import Result
from apps.core.parts import Part, share
from apps.core.progress import Reporter
from apps.core.volumes import new_volume, open_volume_to_write

_IN_WORK, _WRITTEN = "relabel-", "written"
DONE_FILE, INTENT_FILE = "finished.json", "finishing.json"


class BlockRecord(Result, frozen=True, kw_only=True):
    """A block that is written."""

    identity: Annotated[str, Meta(description="of the decision that it was written by")]
    volume: Annotated[str, Meta(description="mark of the volume that it was written to")]
    sha256: Annotated[str, Meta(description="of the block's voxels, uint64, in C order")]
    voxels: Annotated[int, Meta(description="voxels in objects")]


class Finished(Result, frozen=True, kw_only=True):
    """What the volume that has its name was written by."""

    identity: Annotated[str, Meta(description="of the decision")]
    output: Annotated[str, Meta(description="the volume")]


class Finishing(Finished, frozen=True, kw_only=True):
    """What is about to get its name."""

    volume: Annotated[str, Meta(description="mark of the volume")]


def published(work: Path) -> str | None:
    """Identity of the decision that the volume with the output's name was written by; None where none has it.

    work: folder of an agglomeration.
    """
    with contextlib.suppress(DataError, ParameterError):
        intent = Finishing.load(work / INTENT_FILE)
        if _mark(Path(intent.output)) == intent.volume:  # a kill may have come before the note that it is done
            return intent.identity
    with contextlib.suppress(DataError, ParameterError):
        return Finished.load(work / DONE_FILE).identity
    return None


@dataclass
class Relabeller:
    """Writes the volume of one decision."""

    inputs: Inputs

    @property
    def work(self) -> Path:
        return self.inputs.parameters.work_folder

    def decision(self) -> MergeRecord:
        """What was decided.  Raises StateError where nothing was."""
        record = read_record(self.work)
        if record is None:
            raise StateError(f"{self.work}: nothing is decided there; run the action merge first")
        return record

    def check_output(self) -> None:
        """Raise StateError where the output is there, and this work folder does not say that it made it.

        Raises ParameterError where the work folder is on another file system than the output, which is renamed to it.
        """
        output = Path(self.inputs.parameters.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        if self.work.stat().st_dev != output.parent.stat().st_dev:
            raise ParameterError(
                f"work {self.work}: is on another file system than {output}, which is made in it and renamed; give one "
                "there"
            )
        if output.exists() and not self._is_ours(output):
            raise StateError(
                f"{output}: exists, and {self.work} does not say that this agglomeration made it; give another output, "
                "or remove it"
            )

    def _is_ours(self, output: Path) -> bool:
        """Whether a volume that is there was put there by this work folder."""
        with contextlib.suppress(DataError, ParameterError):
            if settled(Finished.load(self.work / DONE_FILE).output) == settled(output):
                return True
        intent = self._intent()
        # An intent alone says what was to be there: a kill before the first move leaves room for somebody else's.
        return intent is not None and settled(intent.output) == settled(output) and intent.volume == _mark(output)

    def _intent(self) -> Finishing | None:
        with contextlib.suppress(DataError, ParameterError):
            return Finishing.load(self.work / INTENT_FILE)
        return None

    @property
    def finished(self) -> bool:
        """Whether the output is there, of this very decision."""
        with contextlib.suppress(DataError, ParameterError):
            done = Finished.load(self.work / DONE_FILE)
            return done == self._finished() and Path(done.output).is_dir()
        return False

    def run(self, part: Part | None, report: Reporter) -> int:
        """Write the blocks of a part that are not written yet; returns how many it wrote."""
        decision = self.decision()
        if self.finished or self._is_renamed(decision):
            return 0
        path = self._prepare()
        volume, mark = open_volume_to_write(path), _mark(path)
        if mark is None:
            raise StateError(f"{path}: was taken away just now; run the action relabel again")
        base, objects = read_mapping(self.work)
        numbers, made = share(len(self.inputs.blocks), part), 0
        for done, number in enumerate(numbers):
            report(done, len(numbers), "writing")
            if self._is_written(number, decision, mark):
                continue
            block = self.inputs.blocks[number]
            labels = relabelled(self.inputs.segmentation.read(block), base, objects)
            self._check_segmentation(decision)
            volume.write(block, labels)
            record = BlockRecord(
                identity=decision.identity,
                volume=mark,
                sha256=hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest(),
                voxels=int(np.count_nonzero(labels)),
            )
            file = self._record_path(number, decision)
            file.parent.mkdir(parents=True, exist_ok=True)
            record.save(file)
            made += 1
        return made

    def _check_segmentation(self, decision: MergeRecord) -> None:
        """Raise StateError where the segmentation is not that any more which was decided on."""
        segmentation = self.inputs.segmentation
        if decision.volume not in (None, made_as(segmentation)):
            raise StateError(
                f"{segmentation.name}: was made anew since the decision in {self.work}; run the actions score and "
                "merge again"
            )

    def finish(self) -> None:
        """Give the volume its name.  Raises StateError that names a block that is not written."""
        decision = self.decision()
        if self.finished:
            self._clear()
            return
        made, output = self._volume(decision), Path(self.inputs.parameters.output)
        renamed = self._is_renamed(decision)
        mark = _mark(output if renamed else made)
        if mark is None:
            raise StateError(f"{made}: is not there; run the action relabel first")
        for number in range(len(self.inputs.blocks)):
            if not self._is_written(number, decision, mark):
                raise StateError(
                    f"block {number} ({self.inputs.blocks[number]}) of {self.inputs.parameters.output}"
                    ": is not written; run the action relabel for it"
                )
        if not renamed:
            output.parent.mkdir(parents=True, exist_ok=True)
            before = self._intent()
            if before is not None and before.volume == _mark(output):  # killed before it was noted, and decided anew
                Finished(identity=before.identity, output=before.output).save(self.work / DONE_FILE)
            # The intent tells what a kill just after the renaming leaves from an output that is somebody else's.
            Finishing(**self._finished().to_dict(), volume=mark).save(self.work / INTENT_FILE)
            move_folder(made, output)
        self._finished().save(self.work / DONE_FILE)
        self._clear()

    def _is_renamed(self, decision: MergeRecord) -> bool:
        """Whether a run that was killed at its end has given the volume its name, and not noted it yet."""
        made, output = self._volume(decision), Path(self.inputs.parameters.output)
        if made.exists() or not output.is_dir() or not (made.parent / _WRITTEN).is_dir():
            return False
        return self._intent() == Finishing(**self._finished().to_dict(), volume=str(_mark(output)))

    def _clear(self) -> None:
        """Remove what was written on the way, of this decision and of others."""
        for folder in self.work.glob(f"{_IN_WORK}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _finished(self) -> Finished:
        return Finished(identity=self.decision().identity, output=str(settled(self.inputs.parameters.output)))

    def _folder(self, decision: MergeRecord) -> Path:
        return self.work / f"{_IN_WORK}{decision.identity}"

    def _volume(self, decision: MergeRecord) -> Path:
        return self._folder(decision) / Path(self.inputs.parameters.output).name

    def _record_path(self, number: int, decision: MergeRecord) -> Path:
        return unit_path(self._folder(decision) / _WRITTEN, number, ".json")

    def _is_written(self, number: int, decision: MergeRecord, mark: str | None) -> bool:
        with contextlib.suppress(DataError, ParameterError):  # none, or none that can be read
            record = BlockRecord.load(self._record_path(number, decision))
            return (record.identity, record.volume) == (decision.identity, mark)
        return False

    def _prepare(self) -> Path:
        """The volume in the making; of several jobs that come at once one makes it."""
        target = self._volume(self.decision())
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        segmentation = self.inputs.segmentation
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".", suffix=".partial"))
        try:
            empty, chunks = folder / target.name, chunks_of(segmentation)
            with new_volume(empty, segmentation.shape, np.uint64, self.inputs.voxel_size, chunks):
                pass
            with contextlib.suppress(OSError):  # another job was first
                empty.rename(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return target


def _mark(volume: Path) -> str | None:
    """What tells a volume from another of its name, whatever is written into it, and stays when it is renamed.

    None where there is no volume.
    """
    try:
        found = (volume / "zarr.json").stat()
    except OSError:
        return None
    return f"{found.st_mtime_ns}-{found.st_ino}"
