"""Which disk a folder lies on, as Linux tells it; nothing is known elsewhere."""

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/mounts")
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|glusterfs|afs|ncpfs|orangefs|pvfs2|panfs|wekafs"
    r"|fuse\.(sshfs|glusterfs\w*|ceph\S*|s3fs|gcsfuse|rclone|juicefs|beegfs\w*|lustre)"
)
"""Kinds of file systems that several machines share."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and where it is mounted."""

    folder: Path
    kind: str
    """By its name in /proc/mounts."""

    @property
    def is_network(self) -> bool:
        """Whether other machines may write to it."""
        return _NETWORK.fullmatch(self.kind) is not None


def mount_of(path: Path) -> Mount | None:
    """Return the mount that a path, which need not be there, lies on; None where the system does not say."""
    try:
        lines = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    place = path.resolve()
    # Of two mounts on one folder the later one is seen.
    found = [mount for mount in map(_mount, lines) if mount is not None and place.is_relative_to(mount.folder)]
    return max(reversed(found), key=lambda mount: len(mount.folder.parts), default=None)


def _mount(line: str) -> Mount | None:
    parts = line.split(" ")
    return Mount(Path(_unescaped(parts[1])), parts[2]) if len(parts) > 2 else None


def _unescaped(text: str) -> str:
    """Spaces and the like stand there as octal numbers."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), text)
