"""What a test has several processes do: each of the command lines in a file, one after another."""

import json
import sys
from pathlib import Path

from letheon.cli.main import cli

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        cli(arguments, standalone_mode=False)
