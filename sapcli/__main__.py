"""`python -m sapcli`, the same as `sap`."""

from sapcli.cli import main

if __name__ == "__main__":
    main()
