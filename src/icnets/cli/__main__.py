import sys

from icnets.cli import main

if __name__ == "__main__":
    sys.exit(main())
