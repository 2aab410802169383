"""A small synthetic set and the real clip, shared by the data tests."""

import pytest

from skipconv_jax.data import synthetic_traffic
from skipconv_jax.data.jhmdb_folder import JhmdbFolder
from skipconv_jax.data.synthetic_pose import Scene, generate
from skipconv_jax.data.synthetic_traffic import TrafficScene
from skipconv_jax.data.ua_detrac_folder import DetracFolder

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


TRAFFIC = TrafficScene(height=108, width=192, frames=20, night=0.4, density=0.6)


@pytest.fixture(scope="session")
def traffic_root(tmp_path_factory):
    """5 sequences of 20 frames, 108 x 192: three to train, two to test; read only."""
    root = tmp_path_factory.mktemp("synthetic_traffic")
    synthetic_traffic.generate(root, 5, TRAFFIC, seed=2, workers=1)
    return root


@pytest.fixture(scope="session")
def traffic(traffic_root):
    return DetracFolder(traffic_root)
