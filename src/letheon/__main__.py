"""`python -m letheon` and `accelerate launch -m letheon`."""

from letheon.cli.main import main

if __name__ == "__main__":
    main()
