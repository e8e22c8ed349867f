"""What the operating system refuses because of a path, a permission or a disk, in one line."""

import errno
import os

from globe_stream.io.files import FULL

_ADVICE = {
    errno.EACCES: "Change its permissions or choose another path",
    errno.EPERM: "Change its permissions or choose another path",
    errno.EROFS: "Choose a path on a disk that can be written",
    errno.ENOENT: "Check the path; what should be there is missing",
    errno.ENOTDIR: "Choose a path whose parents are folders",
    errno.EISDIR: "Give a file instead of a folder",
    errno.EEXIST: "Choose another path, or move what is there out of the way",
    **dict.fromkeys(
        FULL, "Make room or raise the limit, then give the command again; what was finished is kept"
    ),
}


def explain(error: OSError) -> str | None:
    """Path, reason and advice for what the user can mend; None for any other error."""
    if error.errno not in _ADVICE:
        return None
    place = error.filename2 or error.filename
    where = f"{os.fsdecode(place)}: " if isinstance(place, str | bytes) else ""
    reason = (error.strerror or "was refused").lower()
    return f"{where}{reason}. {_ADVICE[error.errno]}"
