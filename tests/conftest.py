"""Settings of all tests."""

from hypothesis import settings

# Examples are measured by what they find, not by how long they take on a busy machine.
settings.register_profile("statepool", deadline=None, print_blob=True)
settings.load_profile("statepool")
