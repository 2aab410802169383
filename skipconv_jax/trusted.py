"""Folders and files that code or compiled plans may be loaded from: ours alone, or not at all.

A cache that others can write to is a way to run their code as us. The rules are those of OpenSSH's
`StrictModes`: absolute paths, owned by this user or root all the way up, writable by nobody else
(a sticky folder such as /tmp may be, because entries there belong to who made them).
"""

import os
import pathlib
import stat
import tempfile

NAME = "skipconv_jax"


class UntrustedError(OSError):
    """A folder or file that somebody else could have written; says which, why and what to do."""


def user_cache(*parts: str, create: bool = True) -> pathlib.Path:
    """This user's own cache folder, created with mode 0700 and checked: `.../skipconv_jax/<parts>`.

    It lies in `$XDG_CACHE_HOME` where that is an absolute path (others are ignored, as the XDG
    specification says), else in the home's `.cache`, else, for a user without a home or a passwd
    entry, in a folder of the temporary directory that carries the user's number.

    Args:
      parts: names of folders inside it.
      create: make what is missing; without it the folder may not exist.

    Raises:
      UntrustedError: somebody else owns or may write the folder or one above it.
      OSError: it cannot be created.
    """
    folder = _root().joinpath(*parts)
    if create:
        # `mode` of mkdir applies to the last folder only: those between must be ours too.
        for missing in reversed([folder, *folder.parents]):
            missing.mkdir(mode=0o700, exist_ok=True)
    check(folder)
    return folder


def _root() -> pathlib.Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return pathlib.Path(given, NAME)
    home = _home()
    if home is not None:
        return home / ".cache" / NAME
    return pathlib.Path(tempfile.gettempdir()).absolute() / f"{NAME}-{os.geteuid()}"


def _home() -> pathlib.Path | None:
    try:
        home = pathlib.Path.home()
    except (RuntimeError, KeyError):
        return None
    # "/" and folders that are not there are what containers give to users without a home.
    usable = home.is_absolute() and home.is_dir() and os.access(home, os.W_OK | os.X_OK)
    return home if usable else None


def check(path: str | os.PathLike[str]) -> None:
    """Refuses a path that others could have written; what does not exist yet is no danger.

    Raises:
      UntrustedError: `path`, or a folder above it, belongs to or is writable by somebody else.
    """
    given = pathlib.Path(path)
    if not given.is_absolute():
        raise UntrustedError(
            f"`path` (={str(given)!r}) must be absolute; nothing is loaded from it."
        )
    # A link in a folder of others may be turned elsewhere after it was resolved: check both chains.
    for chain in dict.fromkeys((given, given.resolve())):
        for step in (chain, *chain.parents):
            try:
                info = step.lstat()
            except FileNotFoundError:
                continue
            fault = _fault(info)
            if fault:
                raise UntrustedError(
                    f"{str(step)!r} {fault}, so {str(given)!r} is not used: others could put "
                    f"code there. Make it yours alone (chown, chmod go-w), or set XDG_CACHE_HOME "
                    "to a folder that is."
                )


def _fault(info: os.stat_result) -> str:
    user = os.geteuid()
    if info.st_uid not in (user, 0):
        return f"belongs to user {info.st_uid}, not to {user} or root"
    if stat.S_ISLNK(info.st_mode):
        return ""  # a link has no mode of its own
    mode = stat.S_IMODE(info.st_mode)
    sticky = stat.S_ISDIR(info.st_mode) and bool(mode & stat.S_ISVTX)
    if mode & stat.S_IWOTH and not sticky:
        return f"is writable by everybody (mode {mode:o})"
    # Many systems give each user a group of the same number, and folders that it may write.
    own_group = info.st_gid == info.st_uid == user or info.st_gid == 0
    if mode & stat.S_IWGRP and not sticky and not own_group:
        return f"is writable by group {info.st_gid} (mode {mode:o})"
    return ""
