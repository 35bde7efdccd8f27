"""Draw the minimum rate of an Echo channel against its number of terms, next to this file."""

import math
from pathlib import Path

from matplotlib.figure import Figure

import echo_ext

TERMS = [round(10 ** (exponent / 20)) for exponent in range(12, 81)]


def main():
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for bound in (1.0, 10.0):
        floors = [-math.log(echo_ext.max_scale(terms, bound=bound)) for terms in TERMS]
        axes.loglog(TERMS, floors, label=f"bound = {bound:g}")
    for terms in (31, 99, 511, 8191):
        floor = -math.log(echo_ext.max_scale(terms))
        axes.plot(terms, floor, "o", color="C0")
        axes.annotate(f"{terms}: {floor:.2g}", (terms, floor), xytext=(-6, -14), textcoords="offset points", ha="right")
    axes.set(xlabel="num_terms", ylabel="minimum rate, nats per dimension", ylim=(1e-3, 5))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
