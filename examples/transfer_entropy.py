"""Find which of several recorded series tells about the next rows of which other one, and after how many rows.

Transfer entropy is estimated for each pair and each lag. The largest of the lags is compared with the largest of each
surrogate, in which the source is rotated in time, and the p-values are adjusted for the number of pairs.

Without a file, the series are the size of the daily return of a stock, its range within the day, and its volume, from
1046 days of prices that Matplotlib ships. Volatility persists, and the range of a day measures it more precisely than
the return. The range should thus tell about the size of later returns what earlier returns do not tell, and not the
other way round.

    python examples/transfer_entropy.py
    python examples/transfer_entropy.py FILE.csv --columns a,b,c --lags 5 --window 20

Of the six pairs, the range tells about the size of the return at lag 2 (0.024 nats, adjusted p = 0.03), and no other
p-value is below 0.05. The script succeeds (exit status 0) if the range tells about the return and not the other way
round; with a file, always.
"""

import argparse
from itertools import permutations

import numpy as np
from scipy.stats import false_discovery_control

import echo_ext

RETURN, RANGE, VOLUME = "size of the return", "range", "volume"


def read_prices():
    """Return the series of the stock."""
    from matplotlib.cbook import get_sample_data

    prices = get_sample_data("goog.npz")["price_data"]
    returns = np.diff(np.log(prices["adj_close"]))
    ranges = np.log(prices["high"] / prices["low"])[1:]
    return {RETURN: np.abs(returns), RANGE: ranges, VOLUME: prices["volume"][1:].astype(float)}


def read_table(path, columns):
    """Return the columns of a CSV file, all of them by default."""
    import pandas as pd

    table = pd.read_csv(path)
    return {name: table[name].to_numpy(float) for name in (columns.split(",") if columns else table.columns)}


def scan(source, target, args):
    """Return the transfer entropy at lags 1, 2, ..., and the p-value of the largest."""
    first, n = max(args.history, args.lags), len(target)
    sources = np.stack([source[first - lag : n - lag] for lag in range(1, args.lags + 1)])  # a batch of lags
    past = np.stack([target[first - row : n - row] for row in range(1, args.history + 1)], 1)
    test = echo_ext.independence_test(
        target[first:, np.newaxis],
        sources[..., np.newaxis],
        past,
        k=args.k,
        transform="rank",  # returns and volumes have heavy tails
        surrogate="circular",
        exclude_within=args.window,
        n_resamples=args.surrogates,
        seed=args.seed,
    )
    # All lags of a surrogate have the same rotation, so its largest estimate is comparable with that of the data.
    reached = np.sum(test.null_distribution.max(1) >= test.statistic.max())
    return test.statistic, (1 + reached) / (1 + args.surrogates)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", help="a CSV file whose rows are consecutive times (default: stock prices)")
    parser.add_argument("--columns", help="columns of the file, separated by commas (default: all)")
    parser.add_argument("--lags", type=int, default=3, help="scan lags from 1 to this one")
    parser.add_argument("--history", type=int, default=2, help="rows of the target's past to condition on")
    parser.add_argument("--window", type=int, default=10, help="neighbors have to be more rows apart than this")
    parser.add_argument("--k", type=int, default=50, help="number of neighbors")
    parser.add_argument("--surrogates", type=int, default=199, help="surrogates of each test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the surrogates")
    args = parser.parse_args()
    series = read_table(args.file, args.columns) if args.file else read_prices()

    pairs = list(permutations(series, 2))
    found = [scan(series[source], series[target], args) for source, target in pairs]
    adjusted = false_discovery_control([p for _, p in found])
    print(f"transfer entropy in nats at lags 1 to {args.lags}, and p-values adjusted for {len(pairs)} pairs")
    width = max(len(f"{source} -> {target}") for source, target in pairs)
    for (source, target), (estimates, _), p in zip(pairs, found, adjusted, strict=True):
        each = " ".join(f"{estimate:6.3f}" for estimate in estimates)
        best = f"yes, at lag {1 + estimates.argmax()}" if p <= 0.05 else "no evidence"
        print(f"{f'{source} -> {target}':{width}}  {each}   p = {p:.3f}: {best}")
    if args.file:
        return 0
    significant = {pair for pair, p in zip(pairs, adjusted, strict=True) if p <= 0.05}
    return 0 if (RANGE, RETURN) in significant and (RETURN, RANGE) not in significant else 1


if __name__ == "__main__":
    raise SystemExit(main())
