"""The same recipe as ../transformer/lora.py: clients do not see which engine trains.

    python cookbook/client/twinkle/megatron/server.py     # in another terminal
    python cookbook/client/twinkle/megatron/lora.py
"""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "transformer" / "lora.py"), run_name="__main__")
