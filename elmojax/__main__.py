"""`python -m elmojax` is the `elmojax` command."""

from elmojax.cli import main

if __name__ == "__main__":
    main()
