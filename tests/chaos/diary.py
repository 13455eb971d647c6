"""What drivers were told by the database, on a file beside it: it outlives the driver that wrote, and the server."""

import json
import os
import time
from pathlib import Path
from typing import Any

DRIVER_CLOCK = time.time
"""Drivers, the server and the injector read the same right clock; only workers have wrong ones."""


class Diary:
    """The file. One write appends one line, so it needs no lock between processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "diary"
        self.path.touch()

    def write(self, did: str, execution_id: str, **more: Any) -> None:
        """Append an entry: what was done, to which execution."""
        line = json.dumps({"at": DRIVER_CLOCK(), "did": did, "id": execution_id, **more})
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)

    def entries(self, did: str | None = None) -> list[dict[str, Any]]:
        """Return the entries, all or those of one kind."""
        entries = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [entry for entry in entries if did in (None, entry["did"])]
