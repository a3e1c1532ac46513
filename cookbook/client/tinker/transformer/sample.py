"""../self_host/sample.py under the first documents' name; its server is server.py beside this file."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "self_host" / "sample.py"), run_name="__main__")
