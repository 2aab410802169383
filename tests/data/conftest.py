"""A small synthetic set and the real clip, shared by the data tests."""

import pytest

from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.synthetic_pose import Scene, generate

SCENE = Scene(height=96, width=128, frames=10)


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory):
    """16 clips of 10 frames, 96 x 128; read only."""
    root = tmp_path_factory.mktemp("synthetic_pose")
    generate(root, 16, SCENE, seed=5, workers=1)
    return root


@pytest.fixture(scope="session")
def synthetic_clips(synthetic_root):
    folder = JhmdbFolder(synthetic_root)
    clips, damaged = folder.clips(folder.names())
    assert not damaged
    return clips


@pytest.fixture(scope="session")
def real_jhmdb(shared_dir):
    """The folder with one real clip of JHMDB."""
    return JhmdbFolder(shared_dir / "data" / "jhmdb")
