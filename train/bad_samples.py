"""Samples that a run could not read: every rank learns of them, and all ranks stop together."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint.save import explained
from ..distributed.group import Group
from ..errors import DataError, StoreError
from ..shards.reader import BadSample
from ..storage import Location

log = logging.getLogger(__name__)

BAD_SAMPLES = "bad-samples.jsonl"
_TOLD = 5  # bad samples that an error names


@dataclass(slots=True)
class BadSamples:
    """Counts each bad sample once, whichever process met it, and however often.

    Parameters
    ----------
    run
        Folder that gets the list.
    most
        How many are accepted.
    """

    run: Location
    most: int
    group: Group
    _found: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def note(self, step: int, bad: Sequence[BadSample]) -> None:
        """Add what this process met in a step; all processes call it together.

        Raises
        ------
        DataError
            On every process, if there are more than `most`; names shards and keys.
        """
        known = len(self._found)
        for one in (one for part in self.group.gather(list(bad)) for one in part):
            record = {"step": step, "shard": one.shard, "key": one.key, "problem": one.problem}
            self._found.setdefault((one.shard, one.key), record)
        with self.group.together():
            if self.group.leads and len(self._found) > known:
                self.publish()
                for record in list(self._found.values())[known:]:
                    log.warning("bad sample: %(shard)s: sample %(key)s: %(problem)s", record)
        if len(self._found) > self.most:
            told = [
                f"  {one['shard']}: sample {one['key']}: {one['problem']}"
                for one in list(self._found.values())[-_TOLD:]
            ]
            error = DataError(
                f"bad samples: {len(self._found)}, train.max_bad is {self.most}:\n"
                + "\n".join(told)
                + f"\nAll are listed in {self.run / BAD_SAMPLES}."
            )
            self.group.stop(error)

    def __len__(self) -> int:
        return len(self._found)

    def publish(self) -> None:
        """Write the list; without bad samples there is none."""
        file = self.run / BAD_SAMPLES
        try:
            with explained(self.run):
                if self._found:
                    lines = "".join(json.dumps(record) + "\n" for record in self._found.values())
                    file.publish_bytes(lines.encode())
                else:
                    file.remove()
        except StoreError as error:  # checkpoints hold it, too
            log.warning("%s", error)

    def state_dict(self, step: int) -> list[dict[str, Any]]:
        """Return what a checkpoint after `step` steps keeps: none of a step that is yet to come."""
        return [record for record in self._found.values() if record["step"] < step]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Resume from what a checkpoint kept."""
        self._found = {(one["shard"], one["key"]): one for one in state}
