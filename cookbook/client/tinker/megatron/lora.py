"""../self_host/lora.py: clients do not see which engine trains. Its server is server.py beside this file."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "self_host" / "lora.py"), run_name="__main__")
