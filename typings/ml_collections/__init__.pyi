from typing import Any
from . import config_dict as config_dict, config_flags as config_flags
from .config_dict import ConfigDict as ConfigDict
