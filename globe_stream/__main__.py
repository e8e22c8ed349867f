"""`python -m globe_stream`."""

from globe_stream.cli.main import main

if __name__ == "__main__":
    main()
