"""``python -m bsdkit`` is the command ``bsdkit``."""

from bsdkit.cli import main

if __name__ == "__main__":
    main()
