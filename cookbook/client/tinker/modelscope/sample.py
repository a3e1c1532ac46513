"""../self_host/sample.py with a key of ModelScope, for a server that is not one's own.

    MODELSCOPE_TOKEN=… TWINKLE_SERVER_URL=https://… python cookbook/client/tinker/modelscope/sample.py
"""

import os
import runpy
from pathlib import Path

if "MODELSCOPE_TOKEN" not in os.environ:
    raise SystemExit("set MODELSCOPE_TOKEN to your key")
os.environ["API_KEY"] = os.environ["MODELSCOPE_TOKEN"]
runpy.run_path(str(Path(__file__).resolve().parents[1] / "self_host" / "sample.py"), run_name="__main__")
