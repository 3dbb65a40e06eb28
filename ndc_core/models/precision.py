"""The precisions that a network can be run in."""

from typing import Literal

# tf32 stores float32 and rounds only the factors of products, to 10 bits, where an NVIDIA GPU can.
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
