"""Reading of the small files that command lines take: roles and permutations."""

import json
import re
from pathlib import Path

from dropjax.core.errors import InputError
from dropjax.core.puzzle import ROLES
from dropjax.io.checks import reading


def read_roles(path: str | Path) -> dict[int, str]:
    """The roles ("in", "out" or "last") by piece number in a file that holds a JSON object. Raises `InputError`."""
    path = Path(path)
    try:
        with reading(path):
            pairs = json.loads(path.read_bytes(), object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise InputError(
            f'{path}: expected JSON such as {{"0": "in", "1": "out", "2": "last"}}, got something else'
        ) from None
    return parse_roles(path, pairs)


def parse_roles(path: Path, pairs: object) -> dict[int, str]:
    """The roles by piece number that the pairs of a JSON object give. Raises `InputError`."""
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise InputError(f"{path}: roles: expected a JSON object from piece numbers to roles, got something else")
    roles: dict[int, str] = {}
    for number, role in pairs:
        if role not in ROLES or not re.fullmatch("[0-9]{1,9}", number):
            got = f"{number[:40]!r}: {str(role)[:40]!r}"
            raise InputError(f'{path}: roles: expected a piece number with "in", "out" or "last", got {got}')
        if int(number) in roles:
            raise InputError(f"{path}: roles: expected each piece once, got piece {int(number)} twice")
        roles[int(number)] = role
    return roles


def read_permutation(path: str | Path) -> tuple[int, ...]:
    """The piece numbers in a text file, separated by commas or white space. Raises `InputError`."""
    path = Path(path)
    try:
        with reading(path):
            words = re.split(r"\s*,\s*|\s+", path.read_text("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected piece numbers separated by commas, got no text") from None
    for place, word in enumerate(words, 1):
        if not re.fullmatch("[0-9]{1,9}", word):
            raise InputError(f"{path}: place {place}: expected a piece number, got {word[:40]!r}")
    return tuple(map(int, words))
