"""The puzzle: unlabelled pieces and a table of inputs with predictions, checked once, here, on the host."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int
from numpy.typing import ArrayLike, NDArray

from dropjax.core.errors import InputError
from dropjax.core.stack import Stack
from dropjax.core.table import table_of_frame

ROLES = ("in", "out", "last")


@dataclass(frozen=True)
class Piece:
    """One unlabelled linear layer, and where it came from (for messages)."""

    weight: Float32[np.ndarray, "out in"]
    bias: Float32[np.ndarray, " out"]
    source: str


@dataclass(frozen=True)
class Puzzle:
    """L input halves, L output halves, one last layer, and the table.

    Halves are sorted by their piece numbers; input half i and output half i have nothing to do with one another.
    """

    in_numbers: Int[np.ndarray, " L"]
    out_numbers: Int[np.ndarray, " L"]
    last_number: int
    w_in: Float32[np.ndarray, "L h d"]
    b_in: Float32[np.ndarray, "L h"]
    w_out: Float32[np.ndarray, "L d h"]
    b_out: Float32[np.ndarray, "L d"]
    w_last: Float32[np.ndarray, "o d"]
    b_last: Float32[np.ndarray, " o"]
    x: Float32[np.ndarray, "N d"]
    pred: Float32[np.ndarray, "N o"]
    true: Float32[np.ndarray, "N o"] | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of what it was read from, by role; empty if it came from arrays."""
    notes: Sequence[str] = ()
    """What reading changed, such as casts to float32."""

    @property
    def depth(self) -> int:
        """Number of blocks L."""
        return len(self.in_numbers)

    @property
    def pieces(self) -> dict[int, tuple[Float32[np.ndarray, "out in"], Float32[np.ndarray, " out"]]]:
        """(weight, bias) by piece number, as `from_arrays` takes them."""
        halves = ((self.in_numbers, self.w_in, self.b_in), (self.out_numbers, self.w_out, self.b_out))
        found = {int(n): (w, b) for numbers, ws, bs in halves for n, w, b in zip(numbers, ws, bs, strict=True)}
        return dict(sorted({**found, self.last_number: (self.w_last, self.b_last)}.items()))

    @property
    def roles(self) -> dict[int, str] | None:
        """Role of each piece, where shapes cannot tell them apart (`_tell_apart`); else None."""
        outputs, d = self.w_last.shape
        if self.w_in.shape[1] not in (outputs, d) and outputs < d:
            return None
        ins, outs = dict.fromkeys(self.in_numbers.tolist(), "in"), dict.fromkeys(self.out_numbers.tolist(), "out")
        return {**ins, **outs, self.last_number: "last"}

    def stack(self, activation: str = "relu") -> Stack:
        """The halves as NumPy arrays, in the order of their piece numbers."""
        return Stack(self.w_in, self.b_in, self.w_out, self.b_out, self.w_last, self.b_last, activation)  # pyright: ignore[reportArgumentType]  # NumPy's arrays until they are put on a device

    def permutation(self, arrangement: Int[np.ndarray, "L 2"]) -> tuple[int, ...]:
        """The answer that an arrangement stands for: piece numbers in, out, in, out, …, last."""
        arrangement = np.asarray(arrangement)
        blocks = np.stack([self.in_numbers[arrangement[:, 0]], self.out_numbers[arrangement[:, 1]]], axis=1)
        return (*map(int, blocks.reshape(-1)), self.last_number)

    def arrangement(self, permutation: Sequence[int]) -> Int[np.ndarray, "L 2"]:
        """The arrangement that an answer stands for; `InputError` where the numbers are not this puzzle's."""
        numbers = np.asarray(permutation, np.int64)
        own = np.concatenate([np.stack([self.in_numbers, self.out_numbers], axis=1).reshape(-1), [self.last_number]])
        if numbers.shape != own.shape:
            raise InputError(f"permutation: expected {len(own)} piece numbers, got {numbers.size}")
        if numbers[-1] != self.last_number:
            raise InputError(
                f"permutation: expected the last layer, piece {self.last_number}, at the end, got {numbers[-1]}"
            )
        columns = []
        for role, theirs, given in (
            ("input", self.in_numbers, numbers[0:-1:2]),
            ("output", self.out_numbers, numbers[1:-1:2]),
        ):
            if not np.array_equal(np.sort(given), theirs):
                wrong = sorted(set(given.tolist()) - set(theirs.tolist())) or sorted(
                    n for n, times in Counter(given.tolist()).items() if times > 1
                )
                raise InputError(f"permutation: expected every {role} half once, got piece {wrong[0]} in such a place")
            columns.append(np.searchsorted(theirs, given))
        return np.stack(columns, axis=1).astype(np.int32)

    @classmethod
    def from_arrays(
        cls,
        pieces: Mapping[int, tuple[ArrayLike, ArrayLike | None] | ArrayLike] | Sequence,
        x: ArrayLike,
        pred: ArrayLike,
        true: ArrayLike | None = None,
        roles: Mapping[int, str] | None = None,
    ) -> "Puzzle":
        """A puzzle from arrays: `pieces` maps each piece's number to (weight [out, in], bias [out] or None).

        A list of pieces numbers them from 0; an array alone, or (weight,), is a piece whose bias is zeros.
        x is [N, d]; pred and true are [N] or [N, o]. `roles` ("in", "out" or "last" by piece number) is needed only where
        shapes cannot tell the pieces apart. Everything is cast to float32. Raises `InputError`.
        """
        named = {}
        for number, piece in _numbered(pieces):
            weight, bias = _weight_and_bias(number, piece)
            weight = _floats(f"piece {number}: weight", weight)
            bias = np.zeros(weight.shape[:1], np.float32) if bias is None else _floats(f"piece {number}: bias", bias)
            named[number] = Piece(weight, bias, f"piece {number}")
        return cls.from_pieces(named, x, pred, true, roles)

    @classmethod
    def from_frame(
        cls,
        pieces: Mapping[int, tuple[ArrayLike, ArrayLike | None] | ArrayLike] | Sequence,
        frame: Any,
        roles: Mapping[int, str] | None = None,
    ) -> "Puzzle":
        """`from_arrays` with the table in a DataFrame, of pandas or another library. Raises `InputError`.

        The columns are named as in the puzzle's CSV: `measurement_0`, …, `pred` or `pred_0`, …, and, if given, `true` or
        `true_0`, …; others are not read.
        """
        return cls.from_arrays(pieces, *table_of_frame(frame), roles)

    @classmethod
    def from_pieces(
        cls,
        pieces: Mapping[int, Piece],
        x: ArrayLike,
        pred: ArrayLike,
        true: ArrayLike | None = None,
        roles: Mapping[int, str] | None = None,
        hashes: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> "Puzzle":
        """`from_arrays`, with each piece's origin for the messages. Raises `InputError`."""
        for number, piece in pieces.items():
            if not isinstance(number, int | np.integer) or not 0 <= number < 2**31:
                raise InputError(f"{piece.source}: expected a piece number from 0 to {2**31 - 1}, got {number!r}")
            _check_piece(piece)
        ins, outs, last = _tell_apart(pieces) if roles is None else _by_role(pieces, roles)
        w_last = pieces[last].weight
        outputs, width = w_last.shape
        x = _table_part("x", x, width, "inputs (measurement_0, …)")
        pred = _table_part("pred", pred, outputs, "outputs", len(x))
        true = None if true is None else _table_part("true", true, outputs, "outputs", len(x))

        def stacked(numbers: list[int], field: str) -> NDArray[np.float32]:
            return np.stack([getattr(pieces[n], field) for n in numbers])

        return cls(
            np.array(ins), np.array(outs), int(last),
            stacked(ins, "weight"), stacked(ins, "bias"), stacked(outs, "weight"), stacked(outs, "bias"),
            w_last, pieces[last].bias, x, pred, true, dict(hashes or {}), tuple(notes),
        )  # fmt: skip


def _numbered(pieces: Mapping | Sequence) -> Iterable[tuple[int, Any]]:
    """The pieces with their numbers."""
    if isinstance(pieces, Mapping):
        return pieces.items()
    if isinstance(pieces, list | tuple):
        return enumerate(pieces)
    raise InputError(f"pieces: expected pieces by number, or a list of them, got a {type(pieces).__name__}")


def _weight_and_bias(number: Any, piece: Any) -> tuple[ArrayLike, ArrayLike | None]:
    """Its two arrays; one array is a weight, though it may have two rows."""
    if hasattr(piece, "shape"):
        return piece, None
    if not isinstance(piece, list | tuple) or not 1 <= len(piece) <= 2:
        got = f"{len(piece)} parts" if isinstance(piece, list | tuple) else f"a {type(piece).__name__}"
        raise InputError(f"piece {number}: expected (weight, bias), got {got}")
    return piece[0], piece[1] if len(piece) == 2 else None


def _floats(field: str, values: ArrayLike) -> NDArray[np.float32]:
    """The values as float32; overflow becomes infinite, for the checks to find."""
    if np.ma.is_masked(values):
        raise InputError(f"{field}: expected no value missing, got {np.ma.count_masked(values)} that are masked")
    try:
        values = np.asarray(values)
        if values.dtype.kind in "cmMOSU":
            raise TypeError
        with np.errstate(over="ignore"):
            return values.astype(np.float32, order="C")
    except (TypeError, ValueError):
        got = values.dtype if isinstance(values, np.ndarray) else f"a {type(values).__name__} that is no array"
        raise InputError(f"{field}: expected real numbers, got {got}") from None


def _check_piece(piece: Piece) -> None:
    if piece.weight.ndim != 2 or 0 in piece.weight.shape:
        raise InputError(f"{piece.source}: weight: expected a matrix [out, in], got shape {list(piece.weight.shape)}")
    if piece.bias.shape != piece.weight.shape[:1]:
        expected, got = list(piece.weight.shape[:1]), list(piece.bias.shape)
        raise InputError(f"{piece.source}: bias: expected shape {expected} as the weight's, got {got}")
    for name, values in (("weight", piece.weight), ("bias", piece.bias)):
        if not np.isfinite(values).all():
            at = np.argwhere(~np.isfinite(values))[0]
            raise InputError(f"{piece.source}: {name}: expected finite numbers, got {values[tuple(at)]} at {at.tolist()}")


def _table_part(name: str, values: ArrayLike, width: int, of: str, rows: int | None = None) -> NDArray[np.float32]:
    values = _floats(f"table: {name}", values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != width:
        got = values.shape[1] if values.ndim == 2 else f"shape {list(values.shape)}"
        raise InputError(f"table: {name}: expected width {width}, the last layer's {of}, got {got}")
    if rows is None and len(values) == 0:
        raise InputError(f"table: {name}: expected at least one row, got none")
    if rows is not None and len(values) != rows:
        raise InputError(f"table: {name}: expected {rows} rows as x has, got {len(values)}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"table: {name}: expected finite numbers, got {values[row, column]} in row {row + 1}, column {column}"
        )
    return values


def _shape_counts(pieces: Mapping[int, Piece]) -> str:
    counts = Counter(piece.weight.shape for piece in pieces.values())
    return ", ".join(f"{n} of {list(shape)}" for shape, n in counts.most_common())


def _gaps(numbers: Mapping[int, object]) -> str:
    known = sorted(numbers)
    before = [-1 if known[0] <= 1 else known[0] - 1, *known]
    missing = [n for a, b in zip(before, known, strict=False) for n in range(a + 1, min(b, a + 10))]
    if not missing:
        return ""
    return f"; the numbering lacks {', '.join(map(str, missing[:8]))}" + (", …" if len(missing) > 8 else "")


def _tell_apart(pieces: Mapping[int, Piece]) -> tuple[list[int], list[int], int]:
    """Numbers of the input halves, the output halves and the last layer, by shape alone."""
    expected = "pieces: expected L of [h, d], L of [d, h] and one last layer [o, d] with o < d"
    got = f"got {_shape_counts(pieces) or 'none'}"
    counts = Counter(piece.weight.shape for piece in pieces.values())
    if not counts:
        raise InputError(f"{expected}, {got}")
    a, b = max(counts, key=lambda shape: (sum(counts[s] for s in {shape, shape[::-1]}), shape))
    rest = {n: piece for n, piece in pieces.items() if piece.weight.shape not in ((a, b), (b, a))}
    last_like = [
        n for n, piece in rest.items() if piece.weight.shape[1] in (a, b) and piece.weight.shape[0] < piece.weight.shape[1]
    ]
    odd = [n for n in rest if n not in last_like]
    if odd:
        piece = pieces[odd[0]]
        raise InputError(
            f"{piece.source}: weight: expected shape {[a, b]}, {[b, a]} or one last layer, got {list(piece.weight.shape)}"
        )
    if len(last_like) > 1:
        named = " and ".join(pieces[n].source for n in last_like[:2])
        raise InputError(f"{expected}, {got}: {named} both look like the last layer{_gaps(pieces)}")
    if a == b or (not last_like and abs(counts[a, b] - counts[b, a]) == 1):
        raise InputError(f"{expected} and h ≠ d, o ≠ h, {got}: shapes cannot tell these apart, name them with --roles")
    if not last_like or counts[a, b] != counts[b, a]:
        raise InputError(f"{expected}, {got}{_gaps(pieces)}")
    (last,) = last_like
    width = pieces[last].weight.shape[1]
    halves = sorted(n for n in pieces if n != last)
    ins = [n for n in halves if pieces[n].weight.shape[1] == width]
    outs = [n for n in halves if pieces[n].weight.shape[0] == width]
    return ins, outs, last


def _by_role(pieces: Mapping[int, Piece], roles: Mapping[int, str]) -> tuple[list[int], list[int], int]:
    """Numbers of the input halves, the output halves and the last layer, as `roles` says; shapes are checked."""
    unknown = sorted(set(roles) - set(pieces))
    missing = sorted(set(pieces) - set(roles))
    if unknown or missing:
        which = f"piece {unknown[0]}, which is not there" if unknown else f"no role for piece {missing[0]}"
        raise InputError(f"roles: expected one role for every piece, got {which}")
    wrong = sorted(n for n, role in roles.items() if role not in ROLES)
    if wrong:
        raise InputError(f'roles: piece {wrong[0]}: expected "in", "out" or "last", got {roles[wrong[0]]!r}')
    ins, outs, last = ([n for n in sorted(roles) if roles[n] == role] for role in ROLES)
    if len(last) != 1 or len(ins) != len(outs) or not ins:
        raise InputError(f"roles: expected L in, L out and 1 last, got {len(ins)}, {len(outs)} and {len(last)}")
    width = pieces[last[0]].weight.shape[1]
    hidden = pieces[ins[0]].weight.shape[0]
    for numbers, shape in ((ins, (hidden, width)), (outs, (width, hidden))):
        for n in numbers:
            if pieces[n].weight.shape != shape:
                got = list(pieces[n].weight.shape)
                raise InputError(f"{pieces[n].source}: weight: expected shape {list(shape)} for its role, got {got}")
    return ins, outs, last[0]
