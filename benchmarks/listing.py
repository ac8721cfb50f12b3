"""How fast a listing is, beside a bare paginator: the same client asking for one page after another.

    python benchmarks/listing.py                              100,000 objects in a SeaweedFS that it starts
    python benchmarks/listing.py --input s3://bucket/prefix   your own, in a store that the environment leads to

Both sides are measured in the same run, in turns; the figures are medians. Prints a Markdown table. `listing` is what
`score` and `manifest build` use (names, URIs, etags, sizes and times as Arrow tables); `manifest build` is the whole
verb, sorting and writing included.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore

from qualitygate.config import ManifestBuildConfig
from qualitygate.tables import listing, manifest_build, stores

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def bare(uri: str) -> int:
    """Number of objects, by the client's own paginator in its fastest form, each page dropped as it comes."""
    store, key = stores.object_store(uri)
    return sum(page.num_rows for page in obstore.list(store, key or None, chunk_size=1000, return_arrow=True))


def ours(uri: str) -> int:
    """Number of objects, by the package's listing."""
    return sum(table.num_rows for table in listing.batches(uri))


def build(uri: str) -> int:
    """Number of objects, by `manifest build`."""
    with tempfile.TemporaryDirectory() as folder:
        return manifest_build.build(ManifestBuildConfig(input=uri, output=f"{folder}/m.parquet")).images


def fill(uri: str, count: int, prefixes: int) -> None:
    """Write `count` small objects below so many prefixes (0: all in one)."""
    store, key = stores.object_store(uri)

    def put(number: int) -> None:
        folder = f"{number % prefixes:03}/" if prefixes else ""
        obstore.put(store, f"{key}/{folder}{number:07}.jpg", b"x")

    with ThreadPoolExecutor(32) as pool:
        for _ in pool.map(put, range(count), chunksize=256):
            pass


def compare(uri: str, rounds: int) -> None:
    """Print a row for each way of listing."""
    ways: dict[str, Callable[[str], int]] = {"bare paginator": bare, "listing": ours, "manifest build": build}
    counts = {name: way(uri) for name, way in ways.items()}  # also warms the store's caches
    if len(set(counts.values())) > 1:
        sys.exit(f"the ways disagree about what is there: {counts}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(uri)
            seconds[name].append(time.perf_counter() - start)
    count, reference = counts["listing"], statistics.median(seconds["bare paginator"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"| {uri} | {name} | {count:,} | {median:.2f} | {count / median:,.0f} | {reference / median:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", help="prefix to list; default: made here")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, obstore {obstore.__version__}\n")
    print("| input | way | objects | seconds | objects/s | to bare |\n|---|---|---:|---:|---:|---:|")
    if options.input:
        compare(options.input, options.rounds)
        return
    import seaweedfs

    with tempfile.TemporaryDirectory() as folder:
        server = seaweedfs.Server(Path(folder))
        server.start()
        try:
            os.environ.update(server.environment)
            seaweedfs.make_bucket("listing")
            for name, prefixes in (("divided", 50), ("flat", 0)):
                fill(f"s3://listing/{name}", options.count, prefixes)
                compare(f"s3://listing/{name}", options.rounds)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
