"""Whether a run is there already: with the same settings, and with the same content of files.

Files that settings name are part of a run's identity. A data set may be large, and is known by the
hash of its arrays, which a result records.
"""

from pathlib import Path

from fedmpi import config
from fedmpi.config import Settings
from fedmpi.data.files import DataError
from fedmpi.results import record
from fedmpi.results.record import RecordError


def state(path: Path, settings: Settings) -> str | None:
    """Returns the status of a run at `path`, or None if there is no file.

    Raises:
        RecordError: if the file is another run's, or this run's on a data set that has changed
            since. A data set that is not here cannot be compared.
    """
    found = record.state_of(path, settings.identity())
    recorded = record.data_of(path) if found in record.FINISHED else ""
    if recorded:
        try:
            here = config.module("data", settings.data.name).load(settings.data, settings.seed)
        except DataError:
            return found
        if here.sha256 != recorded:
            raise RecordError(
                f"{path}: holds the run on other data, of SHA-256 {recorded}; wanted data of "
                f"{here.sha256}, or no such file"
            )
    return found
