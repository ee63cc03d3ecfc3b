"""``python -m genflow``: the same as the ``genflow`` command, for ``accelerate launch -m genflow generate``."""

from genflow.cli.main import main

if __name__ == "__main__":
    main()
