"""Guarantee: a scheduler that drives sequences over a Schedule stream sees the reference engine's align mode."""

from typing import Any

import pytest

from service.servers import Servers
from support.traces import NAMES, SCENARIOS
