"""``python -m statepool.cli``: the same as the ``statepool`` command."""

from statepool.cli import main

if __name__ == "__main__":
    main()
