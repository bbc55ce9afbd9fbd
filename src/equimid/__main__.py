"""`python -m equimid`, also for torchrun: the command line."""

from equimid.cli import main

if __name__ == "__main__":
    main()
