"""A process group of threads."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from cocoseg.distributed.group import Group
from cocoseg.errors import CocosegError


class Board(Group):
    """A process group of threads."""

    def __init__(self, rank: int, board: list, barrier: threading.Barrier) -> None:
        super().__init__(rank, len(board), torch.device("cpu"))
        object.__setattr__(self, "board", board)
        object.__setattr__(self, "barrier", barrier)

    def gather(self, value: object) -> list:
        self.board[self.rank] = value
        self.barrier.wait(600)
        values = list(self.board)
        self.barrier.wait(600)
        return values


def all_of(world_size: int, work: Callable[[Group], object]) -> list[object]:
    """Let every rank work; return what came of it, errors for users too.

    Any other error is raised at once: the ranks that wait for the one that failed end as well.
    """
    board, barrier = [None] * world_size, threading.Barrier(world_size)
    failures: list[BaseException] = []

    def one(rank: int) -> object:
        try:
            return work(Board(rank, board, barrier))
        except CocosegError as error:
            return error
        except BaseException as error:
            failures.append(error)
            barrier.abort()
            return None

    with ThreadPoolExecutor(world_size) as pool:
        told = list(pool.map(one, range(world_size)))
    if failures:
        raise failures[0]
    return told
