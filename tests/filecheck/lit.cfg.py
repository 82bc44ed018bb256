"""How lit finds and runs the FileCheck tests: `lit tests/filecheck`."""

import os
import sys
from pathlib import Path

import lit.formats

config.name = "speqc"  # noqa: F821 (lit puts `config` into this file's names)
config.test_format = lit.formats.ShTest(execute_external=False)  # noqa: F821
config.suffixes = [".mlir", ".test"]  # noqa: F821
config.test_source_root = str(Path(__file__).parent)  # noqa: F821
config.test_exec_root = str(Path(__file__).parent)  # noqa: F821

# The tools of the environment that lit itself runs in, wherever the PATH of the shell leads.
tools = Path(sys.executable).parent
config.environment["PATH"] = os.pathsep.join((str(tools), os.environ["PATH"]))  # noqa: F821
# The tests read plain text, whatever the terminal of the caller can show.
config.environment["NO_COLOR"] = "1"  # noqa: F821
