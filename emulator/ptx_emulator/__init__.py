"""Runs PTX on the CPU, under a checked memory model. See the README beside this package."""

from .counters import Counters, Counts
from .faults import Fault, Finding, FindingsError, UnknownInstructionError
from .launch import Report, run
from .memory.global_memory import Buffer
from .options import Numerics, Options
from .parser import Instruction, Kernel, Module, parse

__all__ = [
    "Buffer",
    "Counters",
    "Counts",
    "Fault",
    "Finding",
    "FindingsError",
    "Instruction",
    "Kernel",
    "Module",
    "Numerics",
    "Options",
    "Report",
    "UnknownInstructionError",
    "parse",
    "run",
]
