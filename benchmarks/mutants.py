"""Which changes of the code no test notices: mutants.py [MODULE …] [--most N] [--seed S] [--timeout SECONDS] [--json FILE].

Each mutant is the package with one thing changed: a comparison, an operator, a constant, a condition, or a statement left
out. The tests that `TESTS` names for its module run on a copy of the package; a mutant that they pass has survived. Those
that nobody can observe do not count: they are in `EQUIVALENT`, with the reason, or change one of the `BUDGETS`. `--again
FILE` tries only those that survived in an earlier run's FILE.
"""

import argparse
import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]

TESTS = {
    "search/verify.py": "tests/test_verify.py",
    "search/verdict.py": "tests/test_verdict.py tests/test_pipeline.py -k 'not real'",
    "search/doubt.py": "tests/test_doubt.py",
    "ordering/bubble.py": "tests/test_repair.py -k 'not guided and not proposals and not real and not precision'",
    "ordering/bradley_terry.py": "tests/test_bradley_terry.py -k 'not benchmark and not rivals'",
    "moves/arrangements.py": "tests/test_moves.py -k 'not real and not first_order_scores'",
    "moves/exact.py": "tests/test_moves.py tests/test_fused.py -k 'not real and not first_order_scores'",
    "moves/first_order.py": "tests/test_moves.py tests/test_regression.py -k 'not real and not straight'",
    "runtime/mesh.py": "tests/test_mesh.py",
}
"""The tests of each module."""

NEVER_READ = "what is read of it was written over"
ENDS = "any negative number ends the walk back"
LOOKED_AT = "that more or fewer moves are looked at closely changes no verdict on them"
SHARED = "who computes it, and how many together, changes no score"
SAME_AXIS = "axis 2 of four is axis −2"
UNUSED = "entries from `rounds` on are unused"
ONE_DIMENSION = "moves in a list have one dimension"
IN_LOGS = "what goes through logs or not is the same there"
HELD = "any weight holds the item in place"
EXACTLY = "no float is exactly there"
ONE_PROCESS = "the way through all processes, of which there is one, is as right"
EQUIVALENT: dict[str, dict[str, str]] = {
    "search/doubt.py": {
        "→  before = np.full": NEVER_READ,
        "→  before[k] = last_of[length - 1] if length else -2": ENDS,
        "→  kept, k = (np.zeros(len(one), bool), last_of[-1] if last_of else -2)": ENDS,
    },
    "search/verify.py": {
        "→  return cls(np.ones((0, 3)": "there are none, whatever they are",
        "→  return cls(np.zeros((0, 4)": "there are none, however long they are",
        "→  padded =": LOOKED_AT,
        "if len(moves) > PADDED:  →": LOOKED_AT,
        "NEAR / noise": LOOKED_AT,
        "NEARER / noise": LOOKED_AT,
        "2 / np.sqrt(passed.mse)": LOOKED_AT,
        "3 * np.sqrt(passed.mse)": LOOKED_AT,
        "moves[changes < max(": EXACTLY,
        "if fall >= noise ** 2": EXACTLY,
    },
    "moves/arrangements.py": {
        "(k <= j)": "position j is written over",
        "(j <= k)": "position j is written over",
        "arrangement[outs_from, 2]": "JAX takes the last column for one beyond it",
    },
    "moves/first_order.py": {
        "→  together =": SHARED,
        "if not together else": SHARED,
        "-1, +2)": SAME_AXIS,
        "axis=+2)": SAME_AXIS,
        "kind == 2, +1)": ONE_DIMENSION,
        "axis=+1)": ONE_DIMENSION,
    },
    "ordering/bradley_terry.py": {
        "→  log_most =": IN_LOGS,
        "<= 690": IN_LOGS,
        "< 691": IN_LOGS,
        "<= 100)": EXACTLY,
        "multiply(3)": HELD,
    },
    "ordering/bubble.py": {"jnp.ones(most": UNUSED, "jnp.ones((most": UNUSED},
    "runtime/mesh.py": {
        "if a.is_fully_addressable or a.is_fully_replicated:  →": ONE_PROCESS,
        "if jax.process_count() == 1:  →  pass": ONE_PROCESS,
    },
    "moves/exact.py": {"→  parts =": SHARED, "→  return lax.map(run": SHARED, "→  if together >": SHARED},
}
"""Mutants that do what the code does: for each module, part of what they change, and the reason."""

OPERATORS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.LShift: ast.RShift},
}
BUDGETS = {
    "NEAR",
    "NEARER",
    "BATCH_ROWS",
    "PASS_ROWS",
    "SCREENED_ROWS",
    "PADDED",
    "CLOSEST",
    "AT_ONCE",
    "LOOKS",
    "POINTS",
    "MOST",
}
BUDGETS |= {"LIMITS", "bytes_per_row", "held"}
"""Names of how much is done at once or looked at, from which time and memory follow, and no result."""

NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
NAMES |= {"argmin": "argmax", "argmax": "argmin", "zeros": "ones", "ones": "zeros"}
FAR = 25
"""Factor for constants of a whole module, most of which are tuned: twice as much, or one more, is as right."""

NOT_MUTATED = ("annotation", "returns", "decorator_list", "type_params", "args")
"""Parts of a node that speak to readers and checkers, or are defaults, such as the memory that the caller is given."""


class Mutant(NamedTuple):
    """One change of one module."""

    module: str
    line: int
    change: str
    source: str


def alternatives(node: ast.AST, of_module: bool) -> Iterator[tuple[str, Any]]:
    """Fields of the node and other values for them; a constant of the whole module is changed by `FAR`."""
    match node:
        case ast.Compare(ops=[op, *rest]) if type(op) in OPERATORS:
            yield "ops", [OPERATORS[type(op)](), *rest]
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield "op", OPERATORS[type(op)]()
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "operand", ast.UnaryOp(ast.Not(), operand)
        case ast.UnaryOp(op=ast.USub()):
            yield "op", ast.UAdd()
        # A comparison or a `not` is changed itself.
        case ast.If(test=ast.BoolOp() | ast.Name() | ast.Attribute() | ast.Call() as test):
            yield "test", ast.UnaryOp(ast.Not(), test)
        case ast.IfExp(test=ast.BoolOp() | ast.Name() | ast.Attribute() | ast.Call() as test):
            yield "test", ast.UnaryOp(ast.Not(), test)
        case ast.Constant(value=bool(value)):
            yield "value", not value
        case ast.Constant(value=int(value) | float(value)):
            near = value + 1 if isinstance(value, int) or value == 0 else 2 * value
            yield "value", FAR * value if of_module and value else near
        case ast.Name(id=name) if name in NAMES:
            yield "id", NAMES[name]
        case ast.Attribute(attr=name) if name in NAMES:
            yield "attr", NAMES[name]
    body = getattr(node, "body", [])
    for k, statement in enumerate(body if isinstance(body, list) else []):
        dropped = isinstance(statement, ast.AugAssign | ast.If | ast.Expr) and not is_text(statement)
        if dropped:
            yield "body", [*body[:k], ast.copy_location(ast.Pass(), statement), *body[k + 1 :]]


def names_in(nodes: list[ast.expr]) -> set[str]:
    """The names below these nodes."""
    return {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}


def is_text(statement: ast.AST) -> bool:
    """Whether it is a docstring."""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def code(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that does something when it runs; messages of errors do not count."""
    if isinstance(node, ast.Assign) and BUDGETS & names_in(node.targets):
        return
    yield node
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return  # its sign is changed
    for name, value in ast.iter_fields(node):
        if name in NOT_MUTATED and not isinstance(node, ast.Call):
            continue
        for below in value if isinstance(value, list) else [value]:
            strict = isinstance(below, ast.keyword) and below.arg == "strict"
            if isinstance(below, ast.AST) and not (strict or isinstance(below, ast.Raise | ast.JoinedStr) or is_text(below)):
                yield from code(below)


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of a module of the package."""
    tree = ast.parse((ROOT / "dropjax" / module).read_text())
    before = ast.unparse(tree)
    of_module = {id(node) for statement in tree.body if isinstance(statement, ast.Assign) for node in ast.walk(statement)}
    for node in code(tree):
        for field, value in alternatives(node, id(node) in of_module):
            kept = getattr(node, field)
            setattr(node, field, value)
            after = ast.unparse(ast.fix_missing_locations(tree))
            yield Mutant(module, getattr(node, "lineno", 0), first_change(before, after), after)
            setattr(node, field, kept)


def is_equivalent(mutant: Mutant) -> bool:
    """Whether it is one of `EQUIVALENT`."""
    return any(part in mutant.change for part in EQUIVALENT.get(mutant.module, {}))


def first_change(before: str, after: str) -> str:
    """The first line that differs, before and after."""
    a, b = next(pair for pair in zip(before.splitlines(), after.splitlines(), strict=False) if pair[0] != pair[1])
    return f"{a.strip()}  →  {b.strip()}"


def passes(tests: str, folder: Path, compiled: Path, timeout: float | None) -> bool:
    """Whether the tests pass on the copy in the folder; running into the timeout is failing."""
    environment = {
        **{**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        # JAX finds what it compiled by the program itself, so that only what a mutation changed is compiled again.
        **{"JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *shlex.split(tests)]
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


def measure(
    modules: list[str], most: int, seed: int, timeout: float, again: set[tuple[str, str]] | None
) -> list[dict[str, Any]]:
    """A record for each mutant that was tried: up to `most` of each module, drawn by the seed, or those in `again`."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, compiled = Path(temporary) / "copy", Path(temporary) / "compiled"
        for name in ("dropjax", "tests", "benchmarks", "scripts"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for module in modules:
            path = folder / "dropjax" / module
            whole = path.read_text()
            begun = time.perf_counter()
            if not passes(TESTS[module], folder, compiled, None):
                raise SystemExit(f"{module}: its tests fail without a mutation: {TESTS[module]}")
            allowed = timeout + 10 * (time.perf_counter() - begun)
            every = [mutant for mutant in mutants(module) if not is_equivalent(mutant)]
            if again is not None:
                every = [mutant for mutant in every if (module, mutant.change) in again]
            drawn = np.random.default_rng(seed).permutation(len(every))[:most]
            for mutant in (every[k] for k in sorted(drawn)):
                path.write_text(mutant.source)
                survived = passes(TESTS[module], folder, compiled, allowed)
                rows.append({"module": module, "line": mutant.line, "change": mutant.change, "killed": not survived})
                if survived:
                    print(f"survived: {module}:{mutant.line}: {mutant.change}", flush=True)
            path.write_text(whole)
            killed = [row["killed"] for row in rows if row["module"] == module]
            print(f"{module:<28}{sum(killed):>5} of {len(killed):>4} killed, {len(every)} there are", flush=True)
    return rows


def main() -> int:
    """Exit status 0, whatever survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", choices=[*TESTS, []], help=", ".join(TESTS))
    parser.add_argument(
        "--most", type=int, default=1_000_000, help="mutants of each module, drawn at random; all by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds on top of ten times what the tests take")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only what survived in the run that wrote this")
    args = parser.parse_args()
    again = None
    if args.again is not None:
        again = {(row["module"], row["change"]) for row in json.loads(args.again.read_text())["rows"] if not row["killed"]}
    rows = measure(args.modules or list(TESTS), args.most, args.seed, args.timeout, again)
    killed = sum(row["killed"] for row in rows)
    print(f"{killed} of {len(rows)} killed: {killed / max(1, len(rows)):.1%}")
    if args.json is not None:
        args.json.write_text(json.dumps({"killed": killed, "mutants": len(rows), "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
