"""The keys of Hydra's own that a command line may give."""

import re

from hydra.core.override_parser.types import Override

from lora_zoo.config.groups import OWN_FILES
from lora_zoo.config.validate import check_folder
from lora_zoo.core.errors import unknown

_OF_HYDRA = (
    *("hydra/launcher", "hydra.launcher.NAME", "hydra/sweeper", "hydra.sweeper.NAME", "hydra.run.dir"),
    *("hydra.sweep.dir", "hydra/job_logging", "hydra/hydra_logging", "hydra.verbose"),
)
_HYDRAS = "|".join(re.escape(key).replace("NAME", r"[\w.]+") for key in _OF_HYDRA)
_CALLED = re.compile(r"hydra\.(?:launcher|sweeper)\.")
_REFERENCE = re.compile(r"\$\{(?:hydra\.(?!callbacks)[\w.]+|oc\.env:\w+(?:,[\w./-]*)?)\}")
_INSTEAD = {
    "hydra.mode": (sweep := "-m and KEY=VALUE,VALUE make a sweep"),
    "hydra.sweeper.params": sweep,
    "hydra.searchpath": OWN_FILES,
    "hydra.job.chdir": "paths are taken from the folder where the command is typed; out= says where runs go",
}
"""Keys of Hydra's that cannot be given -> what can."""


def check_hydra(override: Override) -> None:
    """Let through what says where and how a sweep runs; the rest of Hydra makes another program of this one.

    Hydra calls what a launcher's settings name, so that they are plain values, or refer to such.
    Raises ValueError.
    """
    key, value = override.key_or_group, override.value()
    if key in _INSTEAD:
        raise ValueError(f"{key} cannot be given; {_INSTEAD[key]}")
    if not re.fullmatch(_HYDRAS, key):
        raise ValueError(unknown("key", key, _OF_HYDRA))
    if override.is_sweep_override():
        raise ValueError(f"{override.input_line}: a setting of Hydra's takes one value")
    if "/" in key and not re.fullmatch(r"[\w-]+", str(value)):
        raise ValueError(f"{override.input_line}: {key} is chosen by name")
    if _CALLED.match(key) and "${" in _REFERENCE.sub("", str(override.input_line)):
        raise ValueError(f"{override.input_line}: a launcher's setting is a plain value")
    if key in ("hydra.run.dir", "hydra.sweep.dir") and "${" not in str(value):
        check_folder(key, str(value))
