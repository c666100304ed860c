"""How hard the property tests search.

`CI=true` searches more; `mutants` wants any failure soon, and its simplest form not at all.
"""

import os

from hypothesis import Phase, settings

settings.register_profile("dev", max_examples=40, stateful_step_count=40, deadline=None)
settings.register_profile("ci", max_examples=200, stateful_step_count=50, deadline=None, print_blob=True)
settings.register_profile(
    "mutants",
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate,),
)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")
