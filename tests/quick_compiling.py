"""XLA's flags under which most tests compile: quickly, as what a test runs is small and runs a few times.

What users run is compiled with all optimisation: so are the whole steps that `parity/test_vs_torch.py` compares with
PyTorch, and what the wheel's check runs.
"""

import os
import subprocess
import sys

# XLA reads its flags once, and one that it does not know ends the process: so another one asks which it knows.
_ASK = """
from lsmfm_jax.train.compilation import run_once_options
print(*(f"--{name}={str(value).lower()}" for name, value in (run_once_options("cpu") or {}).items()))
"""
_ASKED = "LSMFM_TESTS_XLA_FLAGS"


def quick_flags() -> str:
    """The flags, asked for once by the first process of a test run; those that it starts inherit the answer."""
    if _ASKED not in os.environ:
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(
            [sys.executable, "-c", _ASK], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        os.environ[_ASKED] = done.stdout.strip()
    return os.environ[_ASKED]
