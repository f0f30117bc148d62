"""`python -m easyjobs`: the same as the console script."""

from easyjobs.cli import main

if __name__ == "__main__":
    main()
