"""`python -m optlayer`: the command line."""

from optlayer.cli import app

if __name__ == "__main__":
    app()
