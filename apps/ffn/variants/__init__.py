"""The architectures that a flood-filling network can have, by name.

To add one: a module here with a function over `apps.ffn.variants.operations.Operations`, and its name below.  What it
weighs, costs and sees is derived from it, and the tests of all variants run over it.
"""

from __future__ import annotations

from apps.ffn.variants.bottleneck import bottleneck
from apps.ffn.variants.convstack import convstack
from apps.ffn.variants.depthwise import depthwise
from apps.ffn.variants.operations import Variant
from apps.ffn.variants.separable import separable
from apps.ffn.variants.twoscale import twoscale

VARIANTS: dict[str, Variant] = {
    "convstack": convstack,
    "bottleneck": bottleneck,
    "separable": separable,
    "depthwise": depthwise,
    "twoscale": twoscale,
}
