"""`python -m speqc` is `speqc`."""

from speqc.cli import main

if __name__ == "__main__":
    main()
