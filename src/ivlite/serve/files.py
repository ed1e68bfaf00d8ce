"""Files that clients have uploaded, and media that came within requests, in a folder that ends with the server.

No name of a client becomes a path: files lie under random ids.
"""

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ivlite.serve.wire import Refused
from ivlite.stop import current

FILE_ID, UPLOAD_ID, PART_ID = (re.compile(f"{kind}-[0-9a-f]{{32}}") for kind in ("file", "upload", "part"))
MOST_FILES = 10_000
MOST_PARTS = 10_000
LONGEST_NAME = 255
SHARE = 0.5  # of the space that is free on the disk


@dataclass(frozen=True)
class Stored:
    """A file that was uploaded. name: what the client calls it."""

    id: str
    name: str
    purpose: str
    nbytes: int
    created: int = field(default_factory=lambda: int(time.time()))

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "object": "file", "bytes": self.nbytes, "created_at": self.created, "filename": self.name,
            "purpose": self.purpose, "status": "processed",
        }  # fmt: skip


@dataclass
class Upload:
    """A file that comes in parts. parts: bytes of each, by id, in the order of their coming."""

    id: str
    name: str
    purpose: str
    nbytes: int
    parts: dict[str, int] = field(default_factory=dict)
    status: str = "pending"
    created: int = field(default_factory=lambda: int(time.time()))
    file: Stored | None = None

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's object, and the parts that have come: a client that was cut off sends the others."""
        return {
            "id": self.id, "object": "upload", "bytes": self.nbytes, "created_at": self.created, "filename": self.name,
            "purpose": self.purpose, "status": self.status, "expires_at": self.created + 7 * 86400,
            "file": self.file and self.file.as_dict(),
            "parts": [{"id": part, "bytes": size} for part, size in self.parts.items()],
        }  # fmt: skip


class Files:
    """The folder of the server. largest: bytes of one file. Any thread may call any method."""

    def __init__(self, largest: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ivlite-serve-"))  # for this user alone
        self.largest = largest
        self.files: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self, content: bytes) -> Path:
        """The path of a new file with the content of a medium that came within a request, which removes it. Raises Refused."""
        path = self.folder / f"sent-{secrets.token_hex(16)}"
        write(path, [content], self.room())
        return path

    # -------------------------------------------------------------------------------------------------------- files

    def path(self, file_id: str) -> Path | None:
        """The path of an uploaded file, None if there is none of this id."""
        with self._lock:
            return self.folder / file_id if FILE_ID.fullmatch(file_id) and file_id in self.files else None

    def add(self, pieces: Iterable[bytes], name: str, purpose: str) -> Stored:
        """Stores a file. Raises Refused."""
        file_id = f"file-{secrets.token_hex(16)}"
        path = self.folder / f"new-{file_id}"
        try:
            nbytes = write(path, pieces, self.room())
            if not nbytes:
                raise Refused(400, "the file is empty", param="file")
            with self._lock:
                if len(self.files) >= MOST_FILES:
                    raise Refused(413, f"the server holds {MOST_FILES:,} files: delete some", code="too_large")
                os.replace(path, self.folder / file_id)
                self.files[file_id] = Stored(file_id, name[:LONGEST_NAME], purpose[:LONGEST_NAME], nbytes)
                return self.files[file_id]
        finally:
            path.unlink(missing_ok=True)

    def get(self, file_id: str) -> Stored:
        """The file of an id. Raises Refused."""
        with self._lock:
            if FILE_ID.fullmatch(file_id) and file_id in self.files:
                return self.files[file_id]
        raise Refused(404, "there is no file of this id", param="file_id", code="not_found")

    def listed(self) -> list[Stored]:
        """All files, the newest first."""
        with self._lock:
            return list(self.files.values())[::-1]

    def delete(self, file_id: str) -> None:
        """Deletes a file; requests that read it go on. Raises Refused."""
        self.get(file_id)
        with self._lock:
            self.files.pop(file_id, None)
        (self.folder / file_id).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------------ uploads

    def begin(self, name: str, purpose: str, nbytes: int) -> Upload:
        """Begins an upload of `nbytes` in parts. Raises Refused."""
        if nbytes > self.room():
            raise self._full()
        upload = Upload(f"upload-{secrets.token_hex(16)}", name[:LONGEST_NAME], purpose[:LONGEST_NAME], nbytes)
        with self._lock:
            over = next((one for one in self.uploads.values() if one.status != "pending"), None)
            if len(self.uploads) >= MOST_FILES and over is not None:  # the oldest that has ended is forgotten
                del self.uploads[over.id]
            if len(self.uploads) >= MOST_FILES:
                raise Refused(413, f"the server holds {MOST_FILES:,} uploads", code="too_large")
            self.uploads[upload.id] = upload
        return upload

    def upload(self, upload_id: str, pending: bool = False) -> Upload:
        """The upload of an id. pending: only one that is not complete or cancelled. Raises Refused."""
        with self._lock:
            found = self.uploads.get(upload_id) if UPLOAD_ID.fullmatch(upload_id) else None
        if found is None:
            raise Refused(404, "there is no upload of this id", param="upload_id", code="not_found")
        if pending and found.status != "pending":
            raise Refused(400, f"the upload is {found.status}", param="upload_id")
        return found

    def add_part(self, upload: Upload, pieces: Iterable[bytes]) -> str:
        """Stores a part; returns its id. Raises Refused."""
        part = f"part-{secrets.token_hex(16)}"
        nbytes = write(self.folder / part, pieces, min(self.room(), upload.nbytes - sum(upload.parts.values())))
        with self._lock:
            if upload.status == "pending" and len(upload.parts) < MOST_PARTS:
                upload.parts[part] = nbytes
                return part
        (self.folder / part).unlink(missing_ok=True)
        raise Refused(400, "the upload takes no more parts", param="upload_id")

    def part(self, upload: Upload, part: str) -> Path:
        """The path of a part. Raises Refused."""
        if part not in upload.parts:
            raise Refused(400, "part_ids must name parts of this upload, each once", param="part_ids")
        return self.folder / part

    def complete(self, upload: Upload, parts: list[str]) -> Upload:
        """Joins parts, in the order given, to a file. Raises Refused where they are not all of its bytes."""
        if not parts or len(set(parts)) != len(parts) or any(part not in upload.parts for part in parts):
            raise Refused(400, "part_ids must name parts of this upload, each once", param="part_ids")
        have = sum(upload.parts[part] for part in parts)
        if have != upload.nbytes:
            raise Refused(400, f"the parts have {have:,} bytes and the upload {upload.nbytes:,}", param="part_ids")
        upload.file = self.add(pieces_of([self.folder / part for part in parts]), upload.name, upload.purpose)
        self._forget(upload, "completed")
        return upload

    def cancel(self, upload: Upload) -> Upload:
        self._forget(upload, "cancelled")
        return upload

    def _forget(self, upload: Upload, status: str) -> None:
        with self._lock:
            parts, upload.parts, upload.status = upload.parts, {}, status
        for part in parts:
            (self.folder / part).unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes that one more file may have."""
        free = shutil.disk_usage(self.folder).free
        return min(self.largest, int(free * SHARE))

    def _full(self) -> Refused:
        return Refused(
            413, f"the file is larger than the {self.room():,} bytes that there is room for", code="too_large"
        )


def write(path: Path, pieces: Iterable[bytes], most: int) -> int:
    """Writes bytes to a new file; returns how many. Raises Refused for more than `most`, and where the disk is full."""
    nbytes, stop = 0, current()
    try:
        with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            for piece in pieces:
                nbytes += len(piece)
                if nbytes > most:
                    raise Refused(
                        413, f"there is room for {most:,} more bytes, and the file is larger", code="too_large"
                    )
                file.write(piece)
                if stop is not None:
                    stop.check()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Refused(503, "the server cannot write files now", code="disk", detail=error) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return nbytes


def pieces_of(paths: Iterable[Path], size: int = 1 << 20) -> Iterable[bytes]:
    """The content of files, a piece at a time."""
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(size):
                yield piece
