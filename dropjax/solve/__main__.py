"""`python -m dropjax.solve [PUZZLE]`: put a dropped stack back in order."""

import argparse
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import jax

from dropjax import console
from dropjax.core.options import Options
from dropjax.core.puzzle import Puzzle
from dropjax.core.solution import Solution
from dropjax.core.stack import ACTIVATIONS
from dropjax.io.arguments import read_permutation, read_roles
from dropjax.io.loading import example, load
from dropjax.io.results import write_json, write_result
from dropjax.ordering import bradley_terry, seeding
from dropjax.pairing.signals import CHOICES
from dropjax.runtime import device, mesh
from dropjax.runtime.journal import Journal
from dropjax.runtime.writing import Results, ensure_writable, is_standard_output
from dropjax.search.many import as_solved
from dropjax.search.solving import identity, solve
from dropjax.solve.advice import advice

SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def memory_size(text: str) -> int:
    """The bytes that a number with the unit K, M or G (or KiB, MiB, GiB) means."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in ("K", "M", "G") else ""
    try:
        size = int(float(number.removesuffix(unit)) * SIZES[unit])
    except (ValueError, OverflowError):
        size = 0
    if size < 1 << 20:
        raise argparse.ArgumentTypeError(f"expected a size of at least 1 MiB such as 512M or 2G, got {text!r}")
    return size


def mesh_sizes(text: str) -> dict[str, int]:
    """Devices along each axis of a mesh, from text such as rows=4,orders=2."""
    sizes = {mesh.ROWS: 1, mesh.ORDERS: 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in sizes or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(f"expected devices along each axis such as rows=4,orders=2, got {text!r}")
        sizes[name] = int(size)
    return sizes


def sha256_digest(text: str) -> str:
    """A SHA-256: 64 hexadecimal digits, returned in lower case."""
    digest = text.lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"expected 64 hexadecimal digits, got {text!r}")
    return digest


def positive(kind: type[int] | type[float]):
    """A parser of finite numbers above 0."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
        return value

    return parse


def parser() -> console.Parser:
    """The command line's arguments; each search option carries the name of its field in `Options`."""
    defaults = Options()
    p = console.Parser(
        prog="python -m dropjax.solve",
        description=__doc__.split(": ", 1)[1].capitalize() if __doc__ else "",
        done="0 all solved; 1 not solved, or not with the expected hash: the best order found is written, and labelled so",
    )
    p.add_argument(
        "puzzles",
        nargs="*",
        type=Path,
        metavar="PUZZLE",
        help="puzzle folders or converted .safetensors (default: the example)",
    )
    _add_search(p, defaults)
    check = p.add_argument_group("verification")
    check.add_argument("--verify", choices=("fast", "full"), default=defaults.verify, help="full: float64 replay, every tie")
    check.add_argument(
        "--expect-sha256", type=sha256_digest, metavar="HEX", help="the answer's expected hash, compared at the end"
    )
    _add_machine(p, defaults)
    result = p.add_argument_group("results")
    result.add_argument(
        "--out", type=Path, metavar="DIR", help="permutation.txt, solution.json, model.safetensors, index.html"
    )
    result.add_argument(
        "--json", type=Path, metavar="FILE", help="solution.json alone; - prints only that on standard output"
    )
    result.add_argument("--quiet", action="store_true", help="print only the permutation")
    return p


def _add_search(p: console.Parser, defaults: Options) -> None:
    search = p.add_argument_group("search")
    search.add_argument("--method", choices=("auto", "paper"), default=defaults.method)
    search.add_argument(
        "--pairing",
        choices=CHOICES,
        help="signal that pairs the halves (default: ddr, then auto if necessary)",
    )
    search.add_argument("--seed-order", choices=seeding.SEED_ORDERS, help="default: the best of all (paper: delta_norm)")
    search.add_argument("--direction", choices=seeding.DIRECTIONS, help="of the seed order (default: ascending)")
    search.add_argument("--rank", choices=("bradley_terry", "none"), default=defaults.rank, help="of --method paper")
    search.add_argument("--bt-solver", choices=tuple(bradley_terry.LIMITS), default=defaults.bt_solver)
    search.add_argument("--temperature", type=positive(float), default=defaults.temperature, help="T of the paper's Eq. 8")
    search.add_argument("--initial-order", type=Path, metavar="FILE", help="a permutation to start from, or to check")
    search.add_argument(
        "--activation",
        choices=(*ACTIVATIONS, "auto"),
        default=defaults.activation,
        help="auto tries every one (%(default)s)",
    )
    search.add_argument("--search-rows", type=positive(int), default=defaults.search_rows, help="of --method paper")
    search.add_argument("--pred-decimals", type=int, choices=range(8), help="decimals that pred is rounded to")
    search.add_argument("--pred-noise", type=positive(float), metavar="SIGMA", help="standard deviation of noise in pred")
    search.add_argument("--time-limit", type=positive(float), metavar="SECONDS", help="keep trying until the time is up")
    search.add_argument("--checkpoint", type=Path, metavar="FILE", help="file in which the search keeps its results so far")
    search.add_argument("--resume", action="store_true", help="continue the search in --checkpoint")
    search.add_argument("--random-seed", type=int, default=defaults.random_seed)
    search.add_argument("--roles", type=Path, metavar="FILE", help="JSON: piece number → in, out or last, if h = d")


def _add_machine(p: console.Parser, defaults: Options) -> None:
    machine = p.add_argument_group("machine")
    machine.add_argument("--platform", choices=("cpu", "gpu", "cuda", "rocm", "tpu"))
    machine.add_argument("--memory", type=memory_size, default=defaults.memory, metavar="SIZE", help="such as 512M or 2G")
    machine.add_argument(
        "--screen-precision",
        choices=("highest", "high", "default"),
        default=defaults.screen_precision,
        help="of scores that propose moves, on an accelerator; moves are always accepted at the highest",
    )
    machine.add_argument("--mesh", type=mesh_sizes, metavar="SIZES", help="devices, such as rows=4,orders=2 (default: rows)")
    machine.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of the first of several processes; auto: ask the cluster"
    )
    machine.add_argument(
        "--num-processes", type=positive(int), metavar="N", help="number of processes started with this command"
    )
    machine.add_argument("--process-id", type=int, metavar="K", help="number of this process, from 0")
    machine.add_argument("--no-cache", action="store_true", help="keep no compiled programs between runs")


def describe_puzzle(puzzle: Puzzle, name: str) -> str:
    """A line about the puzzle, and another if its table is small for it."""
    _, hidden, width = puzzle.w_in.shape
    rows, outputs = puzzle.pred.shape
    plural = "output" if outputs == 1 else "outputs"
    text = f"{name}: {puzzle.depth} blocks, d = {width}, h = {hidden}, {outputs} {plural}, {rows:,} rows"
    if rows < 2 * puzzle.depth:
        text += (
            f"\nwarning: expected at least {2 * puzzle.depth} rows for {puzzle.depth} blocks; other orders may fit as well"
        )
    return text


def verdict(solution: Solution, expected_sha256: str | None) -> list[str]:
    """The closing lines: the outcome, the permutation and its hash."""
    error = f"MSE {solution.mse:.3g} over all {solution.rows:,} rows, largest error {solution.max_abs_error:.2g}"
    if solution.solved:
        lines = [f"solved, {solution.outcome.value.replace('_', ' ')}: {error}"]
    else:
        share = solution.mse_of_variance
        of_variance = "" if share is None else f", {share:.2g} of pred's variance"
        lines = [f"NOT SOLVED ({solution.stop_reason}); the best so far: {error}{of_variance}"]
        lines += [] if solution.reason is None else [solution.reason]
    lines += solution.notes
    lines += [f"interchangeable pieces: {', '.join(map(str, group))}" for group in solution.ties]
    depth = solution.stack.depth
    if solution.doubtful:
        halves = ", ".join(map(str, solution.doubtful))
        lines.append(f"input halves with a doubtful partner, {len(solution.doubtful)} of {depth}: {halves}")
    if solution.unsettled:
        halves = ", ".join(map(str, solution.unsettled))
        lines.append(f"input halves of blocks whose place is in doubt, {len(solution.unsettled)} of {depth}: {halves}")
    if solution.replay is not None:
        lines.append(f"float64 replay: MSE {solution.replay['mse']:.3g}, largest {solution.replay['max_abs_error']:.2g}")
    times = "  ".join(f"{name} {seconds:.2f} s" for name, seconds in solution.seconds.items())
    lines += [f"time: {times}", "", f"permutation: {solution.permutation_text}", f"SHA-256: {solution.sha256}"]
    if expected_sha256 is not None:
        lines.append("as expected" if solution.sha256 == expected_sha256 else f"NOT as expected: {expected_sha256}")
    return lines


def solve_one(args: argparse.Namespace, given: dict, start: float) -> int:
    """Solves one puzzle and prints everything about it."""
    results = Results()
    with console.interruptions() as interrupted:
        roles = given.pop("roles")
        if args.puzzles:
            puzzle, name = load(args.puzzles[0], roles), str(args.puzzles[0])
        else:
            puzzle, name = example(), "the example"
        loaded = time.perf_counter()
        options, journal = Options(**given), None
        if args.checkpoint is not None:
            journal = Journal(args.checkpoint, identity(puzzle, options), args.resume, lost=console.goes_on)
        alone = is_standard_output(args.json)
        quiet = args.quiet or alone or not mesh.is_first()
        if not quiet:
            print(describe_puzzle(puzzle, name), flush=True)
        with console.progress(quiet) as progress:
            solution = solve(puzzle, options, progress=progress, interrupted=interrupted, journal=journal)
        seconds = {"load": loaded - start, **solution.seconds, "total": time.perf_counter() - start}
        solution = replace(solution, seconds=seconds)
        if mesh.is_first():
            if args.out is not None:
                results.attempt(args.out, lambda: write_result(args.out, solution, args.expect_sha256))
            if not alone:
                lines = [*verdict(solution, args.expect_sha256), *advice(solution, options, args.checkpoint)]
                text = solution.permutation_text if args.quiet else "\n".join(lines)
                if args.verify == "full" and solution.replay is None and not args.quiet:
                    print("the full verification was interrupted; what follows is the result of --verify fast")
                print(text, flush=True)
            if args.json is not None:
                results.attempt(args.json, lambda: write_json(args.json, solution, args.expect_sha256))
    solved = solution.solved and args.expect_sha256 in (None, solution.sha256)
    if not solved and journal is not None and journal.error is not None:
        return console.NOT_WRITTEN  # as was said
    return console.with_results(console.SOLVED if solved else console.NOT_SOLVED, results)


def solve_several(args: argparse.Namespace, given: dict, start: float) -> int:
    """Solves puzzles in one process and prints a line about each when it has ended."""
    roles, results, failed, ended, solved = given.pop("roles"), Results(), [], 0, 0
    with console.interruptions() as interrupted:
        puzzles = (partial(load, path, roles) for path in args.puzzles)
        for number, found in as_solved(puzzles, Options(**given), interrupted):
            path, ended = args.puzzles[number], ended + 1
            if isinstance(found, Exception):
                failed.append(console.told(found, f"{path}: an unforeseen error"))
                continue
            solved += found.solved
            text = f"{found.outcome.value}, MSE {found.mse:.3g}"
            if args.verify == "full" and found.replay is None:
                text += ", not verified in full (interrupted)"
            if args.out is not None:
                folder = args.out / path.stem
                results.attempt(folder, partial(write_result, folder, found))
                if folder in results.lost:
                    text += f", permutation: {found.permutation_text}"
            print(f"{path}: {found.permutation_text if args.quiet else text}", flush=True)
    seconds, count = time.perf_counter() - start, len(args.puzzles)
    if not args.quiet:
        print(f"{solved} of {count} solved in {seconds:.2f} s, {ended / seconds:.2f} a second")
        if ended < count:
            print(f"{count - ended} not begun (interrupted)")
    status = max(failed, default=console.SOLVED if solved == count else console.NOT_SOLVED)
    return console.with_results(status, results)


def join(p: console.Parser, args: argparse.Namespace) -> None:
    """Joins the other processes, and sets the mesh if there are several devices."""
    cluster_of = args.coordinator, args.num_processes, args.process_id
    if args.coordinator is None and cluster_of != (None, None, None):
        p.error("--num-processes and --process-id go with --coordinator, got none")
    try:
        if args.coordinator is not None:
            from dropjax.runtime import cluster

            cluster.join(*cluster_of, console.FAULT)
    except (ValueError, RuntimeError) as error:
        p.error(f"--coordinator: {error}")
    device.ensure_usable()
    try:
        devices = mesh.make(args.mesh)
    except ValueError as error:
        p.error(f"--mesh: {error}")
    if devices is not None:
        jax.set_mesh(devices)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; the exit status is 0 if all is solved, 1 if not, or one of the console's others."""
    start = time.perf_counter()
    p = parser()
    args = p.parse_args(argv)
    if len(args.puzzles) > 1:
        for option in ("checkpoint", "coordinator", "expect_sha256", "initial_order", "json"):
            if getattr(args, option) is not None:
                p.error(f"--{option.replace('_', '-')} goes with one PUZZLE, got {len(args.puzzles)}")
        if len({path.stem for path in args.puzzles}) < len(args.puzzles) and args.out is not None:
            p.error("--out: expected PUZZLEs of different names, got the same name twice")
    if args.resume and args.checkpoint is None:
        p.error("--resume goes with --checkpoint FILE, got none")
    if is_standard_output(args.checkpoint):
        p.error("--checkpoint: expected a file, got standard output")
    for path, folder in ((args.out, True), (args.json, False), (args.checkpoint, False)):
        if path is not None:
            ensure_writable(path, folder=folder)
    device.configure(args.platform, cache=not args.no_cache, alone=args.coordinator is None)
    if args.coordinator is None:
        return run(p, args, start)
    together = "this process or another has failed; with --checkpoint, --resume goes on from there"
    status = console.status_of(lambda: run(p, args, start), together)
    if status not in (console.SOLVED, console.NOT_SOLVED, console.NOT_WRITTEN):
        from dropjax.runtime import cluster

        cluster.leave(status)
    return status


def run(p: console.Parser, args: argparse.Namespace, start: float) -> int:
    """Solves the puzzles that the arguments name."""
    join(p, args)
    given = {f.name: getattr(args, f.name) for f in fields(Options)}
    if args.initial_order is not None:
        given["initial_order"] = read_permutation(args.initial_order)
    given["roles"] = None if args.roles is None else read_roles(args.roles)
    return (solve_several if len(args.puzzles) > 1 else solve_one)(args, given, start)


if __name__ == "__main__":
    console.run_command(main)
