"""The report's figures: each function takes the numbers and returns a matplotlib Figure whose title says what is seen.

With `narrow` the panels stand below one another, for a phone. Colours are Okabe and Ito's, and viridis and a red-blue
scale for values, which colour-blind readers can tell apart.
"""

from dropjax.reporting.figures.blocks import (
    activation_fractions,
    block_properties,
    commutator_sizes,
    proposition_1,
    training_curves,
)
from dropjax.reporting.figures.orders import preference_cycles, progression, repairs, seed_league
from dropjax.reporting.figures.pairing import (
    all_products,
    pairing_histogram,
    pairing_matrices,
    pairing_theory,
    product_examples,
)
from dropjax.reporting.figures.puzzle import architecture, table_character, table_overview
from dropjax.reporting.figures.style import STYLE

__all__ = [
    "STYLE",
    "activation_fractions",
    "all_products",
    "architecture",
    "block_properties",
    "commutator_sizes",
    "pairing_histogram",
    "pairing_matrices",
    "pairing_theory",
    "preference_cycles",
    "product_examples",
    "progression",
    "proposition_1",
    "repairs",
    "seed_league",
    "table_character",
    "table_overview",
    "training_curves",
]
