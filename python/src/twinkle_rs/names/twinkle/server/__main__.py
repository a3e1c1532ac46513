"""`python -m twinkle.server --config server_config.yaml`."""

from twinkle_rs.launch import main

if __name__ == "__main__":
    main()
