"""`python -m scratchlm`: the same as the command `scratchlm`."""

from scratchlm.cli import main

if __name__ == "__main__":
    main()
