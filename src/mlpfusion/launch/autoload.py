"""A file beside the installed packages that makes every Python of the environment import this package."""

import sysconfig
from pathlib import Path

from mlpfusion.storage.atomic import write_file

# At its start Python runs lines of .pth files that begin with `import`. `pip uninstall` leaves this one: no error then.
_LINE = 'import importlib.util; importlib.util.find_spec("mlpfusion") and importlib.import_module("mlpfusion")\n'


def autoload_file() -> Path:
    """The file, there or not: `mlpfusion-autoload.pth` in the site-packages of this Python."""
    return Path(sysconfig.get_path("purelib")) / "mlpfusion-autoload.pth"


def switch_on() -> Path:
    """Writes the file."""
    write_file(autoload_file(), _LINE)
    return autoload_file()


def switch_off() -> Path:
    """Removes the file, if it is there."""
    autoload_file().unlink(missing_ok=True)
    return autoload_file()
