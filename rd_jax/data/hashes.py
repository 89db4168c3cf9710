"""What files hold, as hashes, which are remembered: a file is read again once it was touched.

A file is recognised by its path, device and inode, its size, and the times of its last change in
nanoseconds: of what it holds, and of anything about it. The system sets the latter, and nobody sets
it back, so that a file of the same size whose time was restored is read again, too. What changed
in the last seconds is not remembered: it may change again at what is the same time to the disk.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rd_jax.data.files import each_file
from rd_jax.system import hosts
from rd_jax.system.errors import UserError
from rd_jax.system.files import cache_folder, write_whole

logger = logging.getLogger(__name__)

_SETTLED = 5 * 10**9  # nanoseconds after which a file's times tell its contents apart

Hash = tuple[str, str]  # what a file is recognised by, and the SHA-256 of what it holds


def content_sha256(paths: Sequence[Path | None]) -> str:
    """A hash of what the files hold, in order. Raises UserError if processes read other files."""
    there = [path for path in paths if path]
    where = os.path.commonpath([os.path.abspath(path.parent) for path in there]) if there else ""
    memory = cache_folder() / "hashes" / f"{hashlib.sha256(os.fsencode(where)).hexdigest()}.json"
    with hosts.together():
        hashes = _hashes(there, memory)
    empty = bytes(32)
    parts = [bytes.fromhex(hashes[str(path)][1]) if path else empty for path in paths]
    sha256 = hashlib.sha256(b"".join(parts)).hexdigest()
    if not hosts.all_same(sha256):
        raise UserError(f"the processes read different files in {where}: give all the same data")
    return sha256


def _hashes(paths: Sequence[Path], memory: Path) -> dict[str, Hash]:
    """Of each path, from the memory or from the file; those that are settled are remembered."""
    remembered = _read(memory)
    unchanged = {
        str(path): known
        for path in paths
        if (known := remembered.get(str(path))) and known[0] == _recognised_by(path)
    }
    changed = [path for path in paths if str(path) not in unchanged]
    found = dict(zip(map(str, changed), each_file(_hash, changed), strict=True))
    if settled := {path: of for path, of in found.items() if of[0]}:
        try:
            write_whole(memory, json.dumps(unchanged | settled).encode())
        except UserError as error:
            logger.warning("files will be read again at the next start: %s", error)
    return unchanged | found


def _hash(path: Path) -> Hash:
    before = _recognised_by(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return (before if before == _recognised_by(path) else ""), sha256


def _recognised_by(path: Path) -> str:
    """Nothing for a file that was changed so recently that it might be again, unnoticed."""
    try:
        of = os.stat(path)
    except OSError:  # which reading it will tell
        return ""
    if time.time_ns() - max(of.st_mtime_ns, of.st_ctime_ns) < _SETTLED:
        return ""
    return f"{of.st_dev}-{of.st_ino}-{of.st_size}-{of.st_mtime_ns}-{of.st_ctime_ns}"


def _read(memory: Path) -> dict[str, Hash]:
    try:
        return {path: (by, sha256) for path, (by, sha256) in json.loads(memory.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        logger.warning("%s cannot be read (%s): all files are read again", memory, error)
        return {}
