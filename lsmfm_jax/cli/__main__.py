"""`python -m lsmfm_jax.cli`."""

import sys

from lsmfm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
