"""`python -m twinkle_rs.server --config server_config.yaml`."""

from ..launch import main

if __name__ == "__main__":
    main()
