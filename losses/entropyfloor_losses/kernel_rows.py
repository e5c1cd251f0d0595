"""What the GPU kernels write and read for each row of logits, by its place."""

from enum import IntEnum


class Sum(IntEnum):
    """Rows of the matrix that `fold` returns; s = z - maximum."""

    MAXIMUM = 0
    TOTAL = 1  # sum exp s
    MEAN_SHIFTED = 2  # sum p s
    SECOND = 3  # the second largest s
    AVERAGE = 4  # of s over the vocabulary
    POWER_TOTAL = 5  # sum exp(r s)
    POWER_MEAN = 6  # sum exp(r s) s by it
    BASE_MAXIMUM = 7  # of the reference's logits
    BASE_TOTAL = 8
    KL = 9


class Term(IntEnum):
    """Rows of the matrix that `write_gradient` takes: what dL/dz is multiplied from."""

    P = 0
    P_LOG_P = 1  # p (log p + offset)
    OFFSET = 2
    POWER = 3  # exp(r s)
    ALL = 4
    BASE = 5  # the reference's probability
    LABEL = 6
