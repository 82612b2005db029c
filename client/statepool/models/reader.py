"""Typed reading of a configuration mapping, with errors that name the key."""

from collections.abc import Mapping
from dataclasses import dataclass

from statepool.shapes import MAX_PARAMETER


@dataclass(frozen=True, slots=True)
class ConfigReader:
    """Reads typed values out of an untyped mapping.

    A key that is null counts as missing, as it does for the libraries that write such files.
    """

    values: Mapping[str, object]
    """What a JSON object held."""
    path: str = ""
    """Where the mapping itself stands, for messages: ``linear_attn_config.``, or empty at the top."""

    def has(self, key: str) -> bool:
        """Tells whether the key has a value."""
        return self.values.get(key) is not None

    def integer(self, key: str, *, most: int = MAX_PARAMETER) -> int:
        """Reads an integer of at least 0.

        Raises:
            ValueError: The key is missing, no integer, or out of range.
        """
        return self._integer(key, self._value(key), most)

    def integers(self, key: str, *, most: int = MAX_PARAMETER) -> tuple[int, ...]:
        """Reads a list of integers of at least 0.

        Raises:
            ValueError: The key is missing, or anything in it is no integer or out of range.
        """
        return tuple(self._integer(f"{key}[{i}]", item, most) for i, item in enumerate(self._list(key)))

    def string(self, key: str) -> str:
        """Reads a string.

        Raises:
            ValueError: The key is missing or no string.
        """
        return self._string(key, self._value(key))

    def strings(self, key: str) -> tuple[str, ...]:
        """Reads a list of strings.

        Raises:
            ValueError: The key is missing, or anything in it is no string.
        """
        return tuple(self._string(f"{key}[{i}]", item) for i, item in enumerate(self._list(key)))

    def readers(self, key: str) -> tuple["ConfigReader", ...]:
        """Reads a list of objects.

        Raises:
            ValueError: The key is missing, or anything in it is no object.
        """
        return tuple(self._nested(f"{key}[{i}]", item) for i, item in enumerate(self._list(key)))

    def nested(self, key: str) -> "ConfigReader":
        """Reads an object.

        Raises:
            ValueError: The key is missing or no object.
        """
        return self._nested(key, self._value(key))

    def _value(self, key: str) -> object:
        value = self.values.get(key)
        if value is None:
            raise ValueError(f"{self.path}{key}: missing")
        return value

    def _integer(self, key: str, value: object, most: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{self.path}{key}: must be an integer, got {_shown(value)}")
        if not 0 <= value <= most:
            raise ValueError(f"{self.path}{key}: must be from 0 to {most}")
        return value

    def _list(self, key: str) -> list[object]:
        value = self._value(key)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{self.path}{key}: must be a list, got {_shown(value)}")
        return list(value)

    def _string(self, key: str, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{self.path}{key}: must be a string, got {_shown(value)}")
        return value

    def _nested(self, key: str, value: object) -> "ConfigReader":
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.path}{key}: must be an object, got {_shown(value)}")
        return ConfigReader(value, f"{self.path}{key}.")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str | bool | int | float) else type(value).__name__
