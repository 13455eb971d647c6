"""Run the command `zart` as `python -m zart_sqla.cli`."""

from zart_sqla.cli import main

if __name__ == "__main__":
    main()
