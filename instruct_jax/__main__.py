"""python -m instruct_jax VERB ..., the same as instruct-jax VERB ..."""

import sys

from instruct_jax.cli import main

sys.exit(main())
