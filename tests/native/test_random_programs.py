"""The engine on random convolutions against NumPy: values to rounding, masks exactly."""

import jax
import numpy as np
import pytest

from skipconv_jax import native
from tests.native.emulation import random_case

needs_engine = pytest.mark.skipif(not native.available(), reason=native.status())


@needs_engine
@pytest.mark.parametrize("seed", range(40))
def test_random_programs_equal_numpy(seed: int) -> None:
    case = random_case(seed)
    constants, state = case.program.constants, case.program.init_state(case.frames.shape[1])
    step = jax.jit(case.program.apply, static_argnames="threads")
    for t, frame in enumerate(case.frames):
        if t:
            state = case.program.reset(state, case.fresh[t])
        outputs, state, masks = step(constants, state, frame, threads=case.threads)
        for made, want in zip(outputs, case.outputs[t], strict=True):
            tolerance = 2e-5 * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(made, want, rtol=0, atol=tolerance, err_msg=case.text)
        np.testing.assert_array_equal(masks, case.masks[t], err_msg=case.text)
