"""What to cite for a solve, as BibTeX."""

from importlib.metadata import version

from dropjax.core.solution import Solution

PAPER = """@misc{park2026dropped,
  title = {I Dropped a Neural Net},
  author = {Park, Hyunwoo},
  year = {2026},
  eprint = {2602.19845},
  archivePrefix = {arXiv},
}"""

KUHN = """@article{kuhn1955hungarian,
  title = {The {Hungarian} method for the assignment problem},
  author = {Kuhn, Harold W.},
  journal = {Naval Research Logistics Quarterly},
  volume = {2},
  number = {1--2},
  pages = {83--97},
  year = {1955},
}"""

BRADLEY_TERRY = """@article{bradley1952rank,
  title = {Rank Analysis of Incomplete Block Designs: {I}. {The} Method of Paired Comparisons},
  author = {Bradley, Ralph Allan and Terry, Milton E.},
  journal = {Biometrika},
  volume = {39},
  number = {3/4},
  pages = {324--345},
  year = {1952},
}"""

HUNTER = """@article{hunter2004mm,
  title = {{MM} algorithms for generalized {Bradley--Terry} models},
  author = {Hunter, David R.},
  journal = {The Annals of Statistics},
  volume = {32},
  number = {1},
  pages = {384--406},
  year = {2004},
}"""

ANNEALING = """@article{kirkpatrick1983optimization,
  title = {Optimization by Simulated Annealing},
  author = {Kirkpatrick, S. and Gelatt, C. D. and Vecchi, M. P.},
  journal = {Science},
  volume = {220},
  number = {4598},
  pages = {671--680},
  year = {1983},
}"""

PLACES = """@article{garciafernandez2015posterior,
  title = {Posterior Linearization Filter: Principles and Implementation Using Sigma Points},
  author = {Garc{\\'i}a-Fern{\\'a}ndez, {\\'A}. F. and Svensson, L. and Morelande, M. R. and S{\\"a}rkk{\\"a}, S.},
  journal = {IEEE Transactions on Signal Processing},
  volume = {63},
  number = {20},
  pages = {5561--5573},
  year = {2015},
}"""

PARTNERS = """@article{dickey1971weighted,
  title = {The Weighted Likelihood Ratio, Linear Hypotheses on Normal Location Parameters},
  author = {Dickey, James M.},
  journal = {The Annals of Mathematical Statistics},
  volume = {42},
  number = {1},
  pages = {204--223},
  year = {1971},
}"""

MOVEMENTS = """@article{efron2011tweedie,
  title = {{Tweedie's} Formula and Selection Bias},
  author = {Efron, Bradley},
  journal = {Journal of the American Statistical Association},
  volume = {106},
  number = {496},
  pages = {1602--1614},
  year = {2011},
}"""

STAGES = {
    "bradley-terry": (BRADLEY_TERRY, HUNTER),
    "annealing": (ANNEALING,),
    "places": (PLACES,),
    "peeling": (PARTNERS,),
}
"""The methods behind a stage's name."""

BY_MOVEMENTS = ("movement", "coherence", "discriminant")
"""Pairing's signals that rest on what training moved."""


def citation(solution: Solution | None = None) -> str:
    """BibTeX entries, a blank line between: dropjax itself, the paper whose method it implements, and the published methods
    that the solution's stages used. Without a solution, those of all stages.
    """
    software = f"""@misc{{dropjax,
  title = {{dropjax: put the dropped layers of a residual network back in order}},
  author = {{{{The dropjax authors}}}},
  note = {{Version {version("dropjax")}}},
}}"""
    used = set(STAGES) if solution is None else {stage.name.partition(",")[0] for stage in solution.stages}
    assigned = solution is None or not solution.pairing.greedy_equals_hungarian
    methods = [entry for name, entries in STAGES.items() if name in used for entry in entries]
    moved = solution is None or solution.pairing.signal in BY_MOVEMENTS
    return "\n\n".join([software, PAPER, *([KUHN] if assigned else []), *([MOVEMENTS] if moved else []), *methods]) + "\n"
