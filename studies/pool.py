"""Many runs side by side, each in a process of its own, for the scripts here, whose functions return what they found.

Studies have distill.lab.pool, whose jobs return nothing and outlive the crash of another.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from tqdm.auto import tqdm


def run_all(train: Callable, rows: Iterable[tuple], jobs: int) -> list:
    """`train(*row)` for every row, `jobs` at a time; the results in the order of the rows."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = [pool.submit(train, *row) for row in rows]
        for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
            future.result()  # the first failure ends the study at once
    return [future.result() for future in futures]
