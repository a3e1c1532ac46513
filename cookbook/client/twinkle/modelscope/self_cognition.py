"""../self_host/self_cognition.py with a key of ModelScope, for a server that is not one's own.

    MODELSCOPE_TOKEN=… TWINKLE_SERVER_URL=https://… python cookbook/client/twinkle/modelscope/self_cognition.py

DATASET and MODEL_PATH are found on ModelScope when they name no file: `pip install modelscope`.
"""

import os
import runpy
from pathlib import Path

if "MODELSCOPE_TOKEN" not in os.environ:
    raise SystemExit("set MODELSCOPE_TOKEN to your key")
os.environ["TWINKLE_SERVER_TOKEN"] = os.environ["MODELSCOPE_TOKEN"]
runpy.run_path(str(Path(__file__).resolve().parents[1] / "self_host" / "self_cognition.py"), run_name="__main__")
