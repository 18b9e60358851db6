"""Convert a puzzle folder to one file: convert_pieces.py FOLDER OUT.safetensors [--roles FILE]; see `dropjax.convert`."""

from dropjax import console
from dropjax.convert.__main__ import main

if __name__ == "__main__":
    console.run_command(main)
