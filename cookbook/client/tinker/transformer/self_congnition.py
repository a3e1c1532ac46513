"""../self_host/self_cognition.py under the first documents' name, which was spelled so."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "self_host" / "self_cognition.py"), run_name="__main__")
