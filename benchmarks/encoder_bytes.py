"""Whether an encoder gives the same bytes for the same mask every time, however it is run.

    python benchmarks/encoder_bytes.py ENCODER [MILLIONS]

ENCODER is ``zlib-ng`` (what cocoseg uses), ``isal`` (what it used; pip install isal) or ``faulty``,
which changes its bytes once in 100,000 times and shows that a difference is found. Masks like those
of photographs are encoded in threads and in processes of their own, on a heap that is filled with
other bytes before, half of them with MALLOC_PERTURB_, while three times as many processes run as
there are cores. Prints the number of encodings and of those that differ from the first.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

MASKS, THREADS = 40, 4
Encoder = Callable[[NDArray[np.uint8]], bytes]


def encoder_of(name: str) -> Encoder:
    """Return the encoder of that name."""
    if name == "isal":
        from isal import isal_zlib

        return lambda rows: isal_zlib.compress(rows, 1)
    from zlib_ng import zlib_ng

    def faulty(rows: NDArray[np.uint8]) -> bytes:
        return zlib_ng.compress(rows, 1 if random.random() < 1e-5 else 2)

    return faulty if name == "faulty" else lambda rows: zlib_ng.compress(rows, 2)


def draw(seed: int) -> NDArray[np.uint8]:
    """Return the rows of a mask: ellipses, and some ragged outlines."""
    dice = np.random.default_rng(seed)
    height, width = (int(side) for side in dice.integers(64, 320, 2))
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(dice.integers(1, 12))):
        center_y, center_x = dice.uniform(0, height), dice.uniform(0, width)
        radius_y, radius_x = dice.uniform(3, height / 2), dice.uniform(3, width / 2)
        ragged = dice.normal(0, dice.choice([0.0, 0.02, 0.1]), mask.shape)
        inside = ((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 + ragged < 1
        mask[inside] = dice.integers(0, 81)
    return np.pad(mask, ((0, 0), (1, 0)))


def encode_all(name: str, rounds: int, seed: int) -> tuple[int, list[str]]:
    """Encode every mask that often in several threads; return the count and each one's digests."""
    encode, masks = encoder_of(name), [draw(number) for number in range(MASKS)]
    found: list[set[str]] = [set() for _ in masks]

    def work(dice: random.Random) -> None:
        for _ in range(rounds):
            garbage = [os.urandom(dice.randint(1, 1 << 18)) for _ in range(2)]
            del garbage  # the next allocations find what was in it
            for number, mask in enumerate(masks):
                found[number].add(hashlib.blake2b(encode(mask), digest_size=8).hexdigest())

    threads = [
        threading.Thread(target=work, args=(random.Random(f"{seed}-{number}"),))
        for number in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rounds * MASKS * THREADS, [" ".join(sorted(digests)) for digests in found]


def main(name: str, millions: float) -> None:
    """Start the processes and compare what they found."""
    processes = 3 * (os.cpu_count() or 1)
    rounds = 25
    batches = -(-int(millions * 1e6) // (rounds * MASKS * THREADS))
    running: list[subprocess.Popen[str]] = []
    count, digests = 0, [set[str]() for _ in range(MASKS)]
    for batch in range(batches + processes):
        if batch < batches:
            perturb = {"MALLOC_PERTURB_": str(1 + batch % 255)} if batch % 2 else {}
            command = [sys.executable, __file__, "--child", name, str(rounds), str(batch)]
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, text=True, env={**os.environ, **perturb}
                )
            )
        if len(running) >= processes or batch >= batches:
            if not running:
                break
            output, _ = running.pop(0).communicate()
            made, found = json.loads(output)
            count += made
            for number, told in enumerate(found):
                digests[number].update(told.split())
    differing = sum(len(one) > 1 for one in digests)
    print(f"{name}: {count:,} encodings of {MASKS} masks, {differing} masks with several encodings")


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        print(json.dumps(encode_all(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 2)
