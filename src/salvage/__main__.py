"""`python -m salvage`."""

from salvage.cli import main

if __name__ == "__main__":
    main()
