"""Serves what server_config.yaml beside this file says, until it is stopped.

    python cookbook/client/twinkle/megatron/server.py

Needs `pip install ./python` and the program `twinkle-server`. Without Python: `twinkle-server --config server_config.yaml`.
"""

import os

from twinkle.server import launch_server

file_dir = os.path.abspath(os.path.dirname(__file__))
launch_server(config_path=os.path.join(file_dir, "server_config.yaml"))
