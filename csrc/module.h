// An empty Python module in the limited API: importing it runs the registrations of its file.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef PIXELREFER_FAST_SOURCES
#error "PIXELREFER_FAST_SOURCES is the digest of csrc/; pixelrefer_fast/ops/extension/build.py defines it"
#endif

// libstdc++ asks the C library's variable of this name whether counts of references have to be atomic; it came with glibc
// 2.32. Our own says yes always, so that one build runs wherever torch does (glibc 2.28).
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// Read from the file before it is loaded: a build from other sources may have other signatures.
#define PIXELREFER_FAST_MARKER "pixelrefer_fast csrc " PIXELREFER_FAST_SOURCES

#define PIXELREFER_FAST_MODULE(name)                                                                \
  extern "C" PyMODINIT_FUNC PyInit_##name(void) {                                                   \
    static struct PyModuleDef definition = {                                                        \
        PyModuleDef_HEAD_INIT, #name, PIXELREFER_FAST_MARKER, -1, nullptr, nullptr, nullptr, nullptr, nullptr}; \
    return PyModule_Create(&definition);                                                            \
  }
