"""Settings of all tests."""

import os

from hypothesis import settings

# Examples are measured by what they find, not by how long they take on a busy machine.
settings.register_profile("statepool", deadline=None, print_blob=True)
settings.load_profile("statepool")

# Arenas of tests lie in host memory, where Triton's kernels run only in its interpreter; read when triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
