"""How a command says that it failed."""


class CommandError(Exception):
    """A command cannot do what it was asked; the message is the one line that its user sees."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        """Builds the error.

        Args:
            message: What went wrong, for people.
            exit_code: 1 where the command failed, 2 where it was called wrongly.
        """
        super().__init__(message)
        self.exit_code = exit_code
