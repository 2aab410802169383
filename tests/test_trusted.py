"""Nothing is loaded from a folder that somebody else could have written to."""

import os
import stat

import pytest

from skipconv_jax import trusted


@pytest.fixture
def safe(tmp_path):
    """A folder below none that others may write; pytest's own lies in /tmp, which is sticky."""
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.mark.parametrize("given", ["", ".", "cache", "./x"])
def test_a_relative_cache_is_ignored(safe, monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", given)
    monkeypatch.setenv("HOME", str(safe))
    monkeypatch.chdir(safe)
    assert trusted.user_cache("plans") == safe / ".cache" / "skipconv_jax" / "plans"


def test_folders_are_made_for_us_alone(safe, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(safe / "new"))
    folder = trusted.user_cache("a", "b")
    for made in (folder, folder.parent, folder.parent.parent, safe / "new"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("at", ["", "skipconv_jax", "skipconv_jax/plans"])
@pytest.mark.parametrize("mode", [0o777, 0o702, 0o733])
def test_a_folder_everybody_may_write_is_refused_at_any_height(safe, monkeypatch, at, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(safe))
    folder = trusted.user_cache("plans")
    (safe / at).chmod(mode)
    with pytest.raises(trusted.UntrustedError, match=r"writable by everybody.*chmod go-w"):
        trusted.check(folder / "plan.skc")
    with pytest.raises(trusted.UntrustedError, match="writable by everybody"):
        trusted.user_cache("plans")


def test_files_links_and_relative_paths_count_too(safe):
    file = safe / "library.so"
    file.write_bytes(b"")
    file.chmod(0o644)
    trusted.check(file)
    trusted.check(safe / "not" / "there")
    file.chmod(0o666)
    with pytest.raises(trusted.UntrustedError, match=r"library\.so"):
        trusted.check(file)
    open_folder = safe / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    (safe / "link").symlink_to(open_folder)
    with pytest.raises(trusted.UntrustedError, match="open"):
        trusted.check(safe / "link" / "file")
    with pytest.raises(trusted.UntrustedError, match="must be absolute"):
        trusted.check("library.so")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(safe):
    (safe / "theirs").mkdir(mode=0o755)
    os.chown(safe / "theirs", 4242, 4242)
    with pytest.raises(trusted.UntrustedError, match="belongs to user 4242"):
        trusted.check(safe / "theirs" / "library.so")


def test_a_user_without_home_or_passwd_entry_has_a_cache(safe, monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(trusted.pathlib.Path, "home", nobody)
    monkeypatch.setattr(trusted.tempfile, "gettempdir", lambda: str(safe))
    assert trusted.user_cache() == safe / f"skipconv_jax-{os.geteuid()}"
