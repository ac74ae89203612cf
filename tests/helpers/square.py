"""One marked square that every form of a region can give."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH = 12, 17
SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[3:7, 5:11] = 1
