"""Settings every test runs under, and the fixtures that several areas share."""

import os
from pathlib import Path

import jax
import pytest

# Most of the suite's time is XLA compiling networks that run a few times on a few pixels: compile
# them the cheap way, which is 2 to 5 times faster. `TEST_XLA=default` tests what users run.
_CHEAP = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):
    # Half of the gain; later versions have no such emitters, and die of a flag they don't know.
    _CHEAP.append("--xla_cpu_use_fusion_emitters=false")
if os.environ.get("TEST_XLA", "cheap") != "default":
    # What the caller set comes last and wins; processes that tests start inherit it.
    os.environ["XLA_FLAGS"] = " ".join([*_CHEAP, os.environ.get("XLA_FLAGS", "")])

# Silent promotion turns float32 pipelines into float64 ones, and (B,) into (B, B): forbid both.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "tests"

# `make quick`: what compiles little, at least one file of every folder (a test holds that).
QUICK = (
    "baselines/test_cc_image.py",
    "baselines/test_interleaved.py",
    "benchmarks/test_cpu.py",
    "commands/test_config.py",
    "compress/test_search.py",
    "compress/test_svd.py",
    "data/test_augment.py",
    "data/test_coco_folder.py",
    "data/test_detection_pipeline.py",
    "data/test_jhmdb_folder.py",
    "data/test_sources.py",
    "data/test_synthetic_pose.py",
    "data/test_ua_detrac_folder.py",
    "gpu/test_hardware.py",
    "live/test_inbox.py",
    "models/test_flow_net.py",
    "models/test_initialize.py",
    "native/test_engine.py",
    "native/test_random_programs.py",
    "native/test_schema.py",
    "onnx/test_load.py",
    "ops/masked_conv/test_dispatch.py",
    "ops/test_errors.py",
    "paper/test_options.py",
    "plans/test_saved.py",
    "presets/test_presets.py",
    "program/test_canonical.py",
    "quantised/test_skipping.py",
    "random_networks/test_random_networks.py",
    "streaming/test_guards.py",
    "streaming/test_native_streaming.py",
    "streaming/test_sources.py",
    "tasks/test_anchors.py",
    "tasks/test_average_precision.py",
    "tasks/test_pose.py",
    "tasks/test_protocols.py",
    "test_macs.py",
    "test_suite.py",
    "test_transform.py",
    "training/test_metrics.py",
    "training/test_optimizer.py",
    "tuning/test_gate_plan.py",
    "tuning/test_shape.py",
    "viz/test_charts.py",
    "viz/test_draw.py",
    "warp/test_block_matching.py",
)
# Files that take longest go first, so that no worker ends the run alone with one of them.
LONGEST = (
    "paper/test_pose.py",
    "commands/test_commands.py",
    "plans/test_native.py",
    "models/test_efficientdet.py",
    "training/test_loop.py",
    "ops/test_exactness.py",
    "native/test_sanitizers.py",
    "paper/test_figure4.py",
    "commands/test_detection_commands.py",
    "warp/test_warp.py",
    "ops/masked_conv/test_plain.py",
    "ops/masked_conv/test_pallas_gpu.py",
    "models/test_hrnet.py",
    "training/test_step.py",
    "baselines/test_feature_flow.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Builds the native engine once, before any worker starts: unbuilt, its tests would skip.

    Where it can't be built (no compiler) or is switched off they do, with the reason.
    """
    if hasattr(config, "workerinput") or os.environ.get("SKIPCONV_JAX_NATIVE"):
        return
    from skipconv_jax.native import build

    if not build.why_not() and build.find_library() is None:
        build.build()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is quick, and puts what takes longest first."""
    order = {name: index for index, name in enumerate(LONGEST)}

    def file(item: pytest.Item) -> str:
        return item.path.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""

    for item in items:
        if file(item) in QUICK:
            item.add_marker("quick")
    items.sort(key=lambda item: order.get(file(item), len(order)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout: where the commands and `configs/` lie."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `../shared` with reference figures and real data, which no checkout carries."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the reference material in ../shared, not part of the repository")
    return path
